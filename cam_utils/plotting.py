"""Figures. `plot_*` functions return a Figure; `save_figure` is the only one that writes.

Colours: `SEQUENTIAL` for maps that are never negative, `DIVERGING`, centred on zero, for signed ones. Both are safe for
colour-vision deficiencies, and the sequential one reads in grey as well.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from . import postprocess
from .data import Photo
from .files import write_file
from .language import Catalogue, alternative_texts, load_catalogue, translated
from .paths import figures_folder

SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"
WIDTH = 7.0  # inches: the text width of the thesis


class Figure(matplotlib.figure.Figure):
    """A figure outside pyplot: a notebook shows it once, where it is returned, with its alternative text."""

    catalogue: Catalogue | None = None  # of the labels' language: `use_style` sets it for all figures
    alt = ""  # what the figure shows: `save_figure` looks it up

    def __repr__(self) -> str:
        """The alternative text, or else the titles of the axes."""
        titles = (" ".join(ax.get_title().split()) for ax in self.axes)
        return self.alt or "Figure: " + "; ".join(filter(None, titles))

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        with translated(self, self.catalogue):
            self.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue(), {"alt": repr(self)}


def use_style(lang: str = "en") -> None:
    """The look of every figure of the compendium, and the language of its labels; ValueError for one without a catalogue."""
    Figure.catalogue = load_catalogue(lang)
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    matplotlib.rcParams.update({"pdf.fonttype": 42, "image.interpolation": "nearest", "axes.titlesize": 9})


def new_figure(rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float | None = None) -> Figure:
    """A Figure with rows × columns axes (`figure.axes`), sizes in inches."""
    height = height or width / columns * rows * 1.1
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(rows, columns)
    return figure


def save_figure(figure: Figure, name: str) -> Figure:
    """Write `name`.png and `name`.pdf, the same bytes for the same figure; returns the figure, so that it can end a cell.

    Both carry the figure's alternative text from notebooks/figures.yml. Warns of labels that have no translation.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", str(name)):
        raise ValueError(f'a figure is named like "04_layers": two digits of its notebook, then a slug; not {name!r}')
    folder = figures_folder()
    figure.alt = alternative_texts().get(name, "")
    with translated(figure, figure.catalogue) as missing:
        write_figure(figure, folder / f"{name}.png", {"Description": repr(figure)})
        write_figure(figure, folder / f"{name}.pdf", {"Subject": repr(figure)})
    if missing:
        warnings.warn(f"{name}: no translation of {', '.join(map(repr, sorted(missing)))}", stacklevel=2)
    return figure


def write_figure(figure: Figure, file: Path, about: Mapping[str, str] | None = None, **options) -> None:
    """Write a PNG or PDF with what it says `about` itself, and without a date: the same figure gives the same bytes."""
    silent = ("Software",) if file.suffix == ".png" else ("CreationDate", "Creator", "Producer")
    buffer, metadata = io.BytesIO(), dict.fromkeys(silent) | dict(about or {})
    figure.savefig(buffer, format=file.suffix[1:], dpi=160, metadata=metadata, **options)
    write_file(file, buffer.getvalue())


def show_image(ax: Axes, image: Image.Image | np.ndarray, title: str = "") -> None:
    """An image without axes."""
    ax.imshow(image, **({"cmap": "gray"} if np.ndim(image) == 2 else {}))
    ax.set_title(title)
    ax.set_axis_off()


def show_map(ax: Axes, image: Image.Image, map: Tensor, title: str = "", *, signed: bool = False, alpha: float = 0.65):
    """A map (h,w) over the image in grey; signed: the map over its largest magnitude, else rectified and min-max scaled.

    Returns the drawn map, for the colour bar.
    """
    grey = np.asarray(image.convert("L"))
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255)
    style = {"cmap": DIVERGING, "vmin": -1} if signed else {"cmap": SEQUENTIAL, "vmin": 0}
    drawn = ax.imshow(scaled(map, grey.shape, signed=signed).numpy(), alpha=alpha, vmax=1, **style)
    ax.set_title(title)
    ax.set_axis_off()
    return drawn


def scaled(map: Tensor, size: tuple[int, int], *, signed: bool = False) -> Tensor:
    """A map (h,w) as it is shown, (H,W): over its largest magnitude, in [-1,1], or rectified and min-max scaled to [0,1]."""
    if not isinstance(map, Tensor) or map.ndim != 2:
        found = tuple(map.shape) if isinstance(map, Tensor) else type(map).__name__
        raise ValueError(f"a map must be a tensor (h,w), not {found}: maps[0] is the first of a batch")
    map = map.detach().cpu().float()[None]
    if not signed:
        return postprocess.heatmap(map, size)[0]
    shown = postprocess.upsample(map, size)[0]
    return shown / shown.abs().max().clamp(min=1e-12)


def plot_maps(
    image: Image.Image,
    maps: Mapping[str, Tensor],
    *,
    title: str = "image",
    signed: bool = False,
    columns: int = 4,
) -> Figure:
    """The image, then each map (h,w) over it under its name, with one colour bar. Raises ValueError without a map."""
    if not isinstance(maps, Mapping) or not maps:
        raise ValueError(f"there is no map to plot: give at least one as {{name: map}}, not {str(maps)[:80]}")
    columns = min(columns, len(maps) + 1)
    figure = new_figure(-(-(len(maps) + 1) // columns), columns)
    axes = figure.axes
    show_image(axes[0], image, title)
    for ax, (name, map) in zip(axes[1:], maps.items(), strict=False):
        drawn = show_map(ax, image, map, name, signed=signed)
    for ax in axes[len(maps) + 1 :]:
        ax.remove()
    label = "map / its\nlargest magnitude" if signed else "rectified map,\nmin–max scaled"
    figure.colorbar(drawn, ax=axes[: len(maps) + 1], label=label, shrink=0.8, aspect=30)
    return figure


def plot_explanations(explanations: Sequence, *, signed: bool = False, columns: int = 4) -> Figure:
    """`explanation.Explanation`s of one image: the image with its likeliest classes, then the map of each, and a colour bar."""
    if not explanations:
        raise ValueError("there is no explanation to plot: give at least one")
    first = explanations[0]
    length, fontsize = (28, 9) if len(explanations) < 3 else (18, 7)  # narrow columns
    classes = "\n".join(f"{textwrap.shorten(label, length)} {p:.1%}" for label, p in first.top[:3])
    maps = {}
    for e in explanations:
        size = "×".join(map(str, e.map.shape))
        error = f"\nstandard error {e.relative_error:.0%}" if e.relative_error else ""
        about = f"{e.method} at {e.layer}\n{textwrap.shorten(e.label, length)} {e.score:.1%}\n"
        about += f"{size}, {e.n_evaluations:.4g} evaluations{error}"
        maps[about] = e.map
    rows = -(-(len(maps) + 1) // columns)
    columns = -(-(len(maps) + 1) // rows)  # rows of the same length, as far as it goes
    figure = plot_maps(first.image, maps, title=classes, signed=signed, columns=columns)
    for ax in figure.axes:
        ax.title.set(fontsize=fontsize, parse_math=False)  # a class or layer may be called $
    return figure


def plot_contact_sheet(explanations: Sequence, names: Sequence[str], *, columns: int = 6) -> Figure:
    """One overlay for each of many `Explanation`s, with its name, class and probability."""
    if not explanations:
        raise ValueError("there is no explanation to plot: give at least one")
    columns = min(columns, len(explanations))
    figure = new_figure(-(-len(explanations) // columns), columns)
    for ax, e, name in zip(figure.axes, explanations, names, strict=False):
        title = f"{textwrap.shorten(name, 20)}\n{textwrap.shorten(e.label, 18)} {e.score:.0%}"
        show_map(ax, e.image, e.map, title)
        ax.title.set_parse_math(False)  # a file may be called $
    for ax in figure.axes[len(explanations) :]:
        ax.remove()
    return figure


def overlay(image: Image.Image, heat: Tensor, *, alpha: float = 0.5, signed: bool = False) -> Image.Image:
    """A heat map (H,W), of [0,1] or if signed of [-1,1], in colour over an image of that size, weighted by alpha in [0,1]."""
    if not isinstance(heat, Tensor) or heat.shape != image.size[::-1]:
        found = tuple(heat.shape) if isinstance(heat, Tensor) else type(heat).__name__
        raise ValueError(
            f"heat must be a tensor {image.size[::-1]} like the image, not {found}: postprocess.heatmap makes one"
        )
    if not 0 <= alpha <= 1 or not bool(((heat >= -int(signed)) & (heat <= 1)).all()):
        raise ValueError(f"heat must lie in [{-int(signed)},1], without NaN, and alpha, {alpha}, in [0,1]")
    heat = heat.detach().cpu().numpy()
    colours = matplotlib.colormaps[DIVERGING]((heat + 1) / 2) if signed else matplotlib.colormaps[SEQUENTIAL](heat)
    colours = colours[..., :3]
    mixed = (1 - alpha) * np.asarray(image.convert("RGB")) / 255 + alpha * colours
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def credit(figure: Figure, photos: Iterable[Photo]) -> None:
    """Author and licence of each photo, under the figure, as the licences ask."""
    named = "; ".join(f"{photo.name}: {photo.author} ({photo.licence})" for photo in photos)
    figure.supxlabel(textwrap.fill(f"Photos, cropped. {named}", 130, break_on_hyphens=False), fontsize=6)


def label_points(ax: Axes, points: Mapping[str, tuple[float, float]], *, side: str = "right") -> None:
    """A small label beside each point {name: (x, y)}, on its other side where it would cover another point; labels that would
    cover each other part. Limits and scales must be set.
    """
    pixels = {name: ax.transData.transform(place) for name, place in points.items()}
    sign = dict.fromkeys(points, 1 if side == "right" else -1)
    for a in points:
        apart = [(pixels[b] - pixels[a]) * (sign[a], 1) for b in points]
        ahead, behind = (any(2 < s * x < 60 and abs(y) < 8 for x, y in apart) for s in (1, -1))
        if ahead and not behind:
            sign[a] *= -1
    names = sorted(points, key=lambda name: tuple(pixels[name][::-1]))
    close = [(a, b) for j, b in enumerate(names) for a in names[:j] if abs(pixels[a][0] - pixels[b][0]) < 75]
    close = [(a, b) for a, b in close if sign[a] == sign[b]]
    for _ in range(1000):  # each pair that overlaps parts by half, which ends where no other is in the way
        overlaps = 0
        for a, b in close:
            overlap = max(0, 11 - (pixels[b][1] - pixels[a][1]))
            pixels[a][1] = max(pixels[a][1] - overlap / 2, ax.bbox.y0)
            pixels[b][1] = min(pixels[b][1] + overlap / 2, ax.bbox.y1)
            overlaps = max(overlaps, overlap)
        if overlaps < 1e-3:
            break
    for name in names:
        place, (x, y) = points[name], pixels[name]
        at = ax.transData.inverted().transform((x + 9 * sign[name], y))
        style = {"fontsize": 7, "va": "center", "ha": "left" if sign[name] > 0 else "right"}
        style["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
        ax.annotate(name, place, xytext=at, color="0.1", **style)
