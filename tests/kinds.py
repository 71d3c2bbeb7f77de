"""Kinds of bad and of unusual input: what each is tried on, and what it must give. `test_bad_input.py` runs the tables.

A kind is one cause. It is either refused, by one error of the right type whose message names the cause and the way out, or
answered, by what an oracle gives; over many methods or files where that matters. Both leave everything as it was.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode

from cam_utils import METHODS
from cam_utils.models import ModelSpec
from conftest import same_state, state_of, toy_cnn

FAST = {  # options that make a method cheap
    "score_cam": {"progress": False},
    "ablation_cam": {"progress": False},
    "shap_cam": {"samples_per_position": 2, "progress": False},
    "lime": {"n_samples": 30, "n_segments": 9, "progress": False},
}
LAYERED = [name for name in METHODS if name != "lime"]  # LIME has no layer
GRADIENT = ["grad_cam", "grad_cam_pp", "hires_cam", "layer_cam", "xgrad_cam"]


def run(method, model, layer, x, target, **options):
    """The maps of a method, by few samples."""
    return METHODS[method](model, layer, x, target, **FAST.get(method, {}) | options)


def with_spec(model: nn.Module, **changes) -> nn.Module:
    """`model` with the spec of a toy: 12×12 pixels, three classes."""
    about = {
        "name": "toy",
        "layer": "features",
        "input_size": 12,
        "resize_size": 14,
        "interpolation": InterpolationMode.BILINEAR,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.25, 0.2, 0.3),
        "class_names": ("a cat", "a dog", "a bird"),
    }
    model.spec = ModelSpec(**about | changes)
    return model


def noise(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A network, images and a folder to try a kind on; `unchanged` says whether what was handed out is as it was."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.monkeypatch, self._watched = folder, monkeypatch, []
        self.net, self.x = self.watch(with_spec(toy_cnn())), self.watch(noise(2, 3, 12, 12))
        self._random = torch.get_rng_state()

    def watch(self, thing: Any) -> Any:
        """`thing` itself, whose state is remembered."""
        self._watched.append((thing, _state(thing)))
        return thing

    def file(self, name: str, content: bytes) -> Path:
        """A file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return self.watch(path)

    def unchanged(self) -> bool:
        """Whether everything is as it was, torch's random state and the mode of autograd included."""
        alone = torch.equal(self._random, torch.get_rng_state()) and torch.is_grad_enabled()
        return alone and all(_same(_state(thing), before) for thing, before in self._watched)


def _state(thing: Any) -> Any:
    if isinstance(thing, nn.Module):
        return state_of(thing)
    if isinstance(thing, torch.Tensor):
        return thing.detach().clone(), thing.requires_grad, thing.grad
    if isinstance(thing, Image.Image):
        return thing.mode, thing.size, thing.tobytes()
    return thing.read_bytes() if isinstance(thing, Path) else np.array(thing)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return same_state(a, b)
    if isinstance(a, tuple) and isinstance(a[0], torch.Tensor):
        equal = a[0].is_meta or torch.equal(a[0].to_dense().nan_to_num(), b[0].to_dense().nan_to_num())
        return equal and a[1:] == b[1:]
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc") if isinstance(a, np.ndarray) else a == b


@dataclass(frozen=True)
class Case:
    """One call of a kind."""

    kind: str
    over: str  # the method or file that it is tried on
    call: Callable[[Bench], Any]
    error: type[Exception] | None = None  # None: the call is answered
    message: str = ""
    expected: Callable[[Bench], Any] | None = None


CASES: list[Case] = []


def refused(kind: str, error: type[Exception], message: str, call: Callable, over: Iterable | None = None) -> None:
    """`call(bench)`, or `call(bench, each)` for each of `over`, raises `error` with a message like the regex."""
    CASES.extend(Case(kind, name, each, error, message) for name, each in _calls(call, over))


def answered(kind: str, call: Callable, expected: Callable, over: Iterable | None = None) -> None:
    """`call` gives what `expected` gives: both of (bench), or of (bench, each) for each of `over`."""
    pairs = zip(_calls(call, over), _calls(expected, over), strict=True)
    CASES.extend(Case(kind, name, each, expected=oracle) for (name, each), (_, oracle) in pairs)


def _calls(call: Callable, over: Iterable | None) -> list[tuple[str, Callable]]:
    if over is None:
        return [("", call)]
    return [(getattr(each, "__name__", str(each)), lambda bench, each=each: call(bench, each)) for each in over]
