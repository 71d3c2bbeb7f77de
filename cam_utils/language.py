"""The labels of the figures in another language, and what a figure shows in a sentence.

Notebooks label their figures in English. `notebooks/labels_vi.yml` has the same in Vietnamese, and `labels_XX.yml` would for any
other language: `labels`, English to translated, with `{}` where numbers or names come in, and `keep`, regular expressions of
what needs no translation. `notebooks/figures.yml` has the alternative text of every figure.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from unittest import mock

import yaml
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from . import paths
from .data import load_photos
from .models import IMAGENET_CLASSES

_WORD = re.compile(r"[^\W\d_]{2,}")
_MATHS = re.compile(r"\$[^$]*\$")
_RESULT = re.compile(r",? (p = )?[\d.]+%?$")  # behind the name of a class


@dataclass(frozen=True)
class Catalogue:
    """Labels in one language: exact ones, templates as (pattern, translation), patterns of what is kept."""

    exact: dict[str, str]
    templates: tuple[tuple[re.Pattern, str], ...]
    keep: re.Pattern

    def translate(self, text: str) -> str:
        """The text in the catalogue's language; what it has no words for stays, line by line. A gap `{}` is translated too."""
        if text in self.exact:
            return self.exact[text]
        for pattern, translation in self.templates:
            if found := pattern.fullmatch(text):
                return translation.format(*map(self.translate, found.groups()))
        return "\n".join(map(self.translate, text.split("\n"))) if "\n" in text else text

    def lacks(self, text: str) -> list[str]:
        """The lines of the text that should have a translation and have none."""
        if text in self.exact or any(pattern.fullmatch(text) for pattern, _ in self.templates):
            return []
        one_line = " ".join(text.split())
        if _RESULT.sub("", one_line) in _names() or self.keep.fullmatch(one_line):
            return []
        if "\n" in text:
            return [line for part in text.split("\n") for line in self.lacks(part)]
        return [text] if _WORD.search(_MATHS.sub("", text)) else []


@cache
def _names() -> set[str]:
    return {*IMAGENET_CLASSES, *(photo.name for photo in load_photos())}


@cache
def load_catalogue(language: str) -> Catalogue | None:
    """The catalogue of a language, None for English; ValueError names those that there are."""
    if language == "en":
        return None
    file = paths.NOTEBOOKS / f"labels_{language}.yml"
    if not file.exists():
        known = sorted(other.stem.removeprefix("labels_") for other in paths.NOTEBOOKS.glob("labels_*.yml"))
        raise ValueError(f"no labels in {language!r}; there are en, {', '.join(known)}, and {file.name} would add it")
    try:
        return parse(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, re.error) as error:
        raise ValueError(f"{file.name} cannot be used: {' '.join(str(error).split())}") from None


def parse(content: dict) -> Catalogue:
    """A catalogue from what its file holds. Raises ValueError for what has another form than the head of this module says."""
    if not isinstance(content, dict) or not {"labels", "keep"} <= set(content):
        raise ValueError("it must have `labels` and `keep`")
    if not isinstance(content["keep"], list) or not all(isinstance(pattern, str) for pattern in content["keep"]):
        raise ValueError("`keep` must be a list of regular expressions")
    _check_texts("labels", content["labels"])
    exact = {english: text for english, text in content["labels"].items() if "{}" not in english}
    templates = tuple(
        (re.compile(re.escape(english).replace(r"\{\}", "(.+?)"), re.DOTALL), text)
        for english, text in content["labels"].items()
        if "{}" in english
    )
    for pattern, text in templates:
        try:
            text.format(*[""] * pattern.groups)
        except (IndexError, KeyError, ValueError):
            raise ValueError(f"{text!r} has other gaps {{}} than its English") from None
    return Catalogue(exact, templates, re.compile("|".join(content["keep"])))


def _check_texts(name: str, content: dict) -> dict:
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be texts by name, not a {type(content).__name__}")
    for key, text in content.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"{name}: {key!r} and {text!r} must be texts: put them into quotes")
    return content


@contextmanager
def translated(figure: Figure, catalogue: Catalogue | None) -> Iterator[set[str]]:
    """The figure with every label translated, ticks included; English again afterwards.

    Yields what has no translation: those labels stay English. Complete once the figure is drawn.
    """
    missing = set()
    if catalogue is None:
        yield missing
        return

    def say(text: str) -> str:
        missing.update(catalogue.lacks(text))
        return catalogue.translate(text)

    def say_ticks(format_ticks: Callable, places: Sequence) -> list[str]:
        return [say(str(text)) for text in format_ticks(places)]

    with ExitStack() as stack:
        axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        for formatter in {one for axis in axes for one in (axis.get_major_formatter(), axis.get_minor_formatter())}:
            in_words = partial(say_ticks, formatter.format_ticks)
            stack.enter_context(mock.patch.object(formatter, "format_ticks", in_words))
        of_ticks = {
            label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)
        }  # set by the formatters
        for text in set(figure.findobj(Text)) - of_ticks:
            stack.callback(text.set_text, text.get_text())
            text.set_text(say(text.get_text()))
        yield missing


@cache
def alternative_texts() -> dict[str, str]:
    """What each figure of the notebooks shows, {name: text}."""
    file = paths.NOTEBOOKS / "figures.yml"
    try:
        return _check_texts(file.name, yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be used: {' '.join(str(error).split())}") from None
