"""What the explorer shows of a photo, network, layer and class: computed once, remembered, and of use without a widget."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import plotting
from .data import Photo, load_image
from .explanation import Explanation, check_options, explain
from .games import LayerGame
from .layers import map_sizes
from .models import class_names, load_model, preprocess, spec_of, view
from .owen import DEFAULT_BUDGET, NODES

BUDGETS = (int(DEFAULT_BUDGET), 128, 256, 512, 1024, 2048)  # of Owen-CAM, in head evaluations
MAX_UPLOAD = 9 * 2**20  # bytes: Jupyter's connection to the browser breaks at 10 MiB
MAX_POSITIONS = 300  # of a layer: the methods that sample take minutes on finer ones
SLOW = ("score_cam", "shap_cam", "lime")  # seconds, score_cam up to a minute
_SAMPLES = {"lime": 200, "shap_cam": 1000}  # passes that they are given here, so that nobody waits for minutes


@dataclass(frozen=True)
class Upload:
    """An image file that came as bytes; the explorer takes it where it takes a `data.Photo`."""

    name: str
    content: bytes = field(repr=False)

    @property
    def image(self) -> Image.Image:
        """The picture in RGB. Raises ValueError with the cause where it is too large or no image."""
        if len(self.content) > MAX_UPLOAD:
            size = f"{len(self.content) / 2**20:.1f} MB, the limit is {MAX_UPLOAD / 2**20:.0f} MB"
            raise ValueError(f"{self.name} is too large ({size}): save it smaller first")
        with TemporaryDirectory() as folder:
            file = Path(folder) / "upload"
            file.write_bytes(self.content)
            try:
                return load_image(file)
            except ValueError as error:
                raise ValueError(str(error).replace(repr(str(file)), self.name)) from None


@dataclass(frozen=True)
class Choice:
    """What is explained: a photo's class, at a layer of a network (a name of REGISTRY)."""

    photo: Photo | Upload
    model: str
    layer: str
    target: int


network: Callable[[str], nn.Module] = cache(load_model)


@lru_cache(maxsize=16)
def picture(photo: Photo | Upload) -> Image.Image:
    """The photo, decoded once."""
    return photo.image


@lru_cache(maxsize=64)
def probabilities(model: str, photo: Photo | Upload) -> Tensor:
    """What the network makes of the photo: (K,)."""
    with torch.no_grad():
        return network(model)(preprocess(picture(photo), network(model))).softmax(1)[0]


@cache
def layers(model: str) -> tuple[str, ...]:
    """The layers to choose from, early to late: of every size of feature maps the last, with at most MAX_POSITIONS positions."""
    spec = spec_of(network(model))
    sizes = map_sizes(network(model), torch.zeros(1, 3, spec.input_size, spec.input_size))
    containers = {name.rpartition(".")[0] for name in sizes if name.count(".") == 1}
    last = {}
    for name, (c, h, w) in sizes.items():
        if name and name.count(".") <= 1 and name not in containers and 16 <= h * w <= MAX_POSITIONS:
            last[c, h, w] = name
    return tuple({**last, sizes[spec.layer]: spec.layer}.values())


@lru_cache(maxsize=512)
def explained(choice: Choice, method: str, budget: float | None = None) -> Explanation:
    """`explain` for a choice. budget: of owen_cam (None: its default), which shap_cam and lime do not share."""
    options = {}
    if method == "owen_cam" and budget is not None:
        options = {"budget": budget}
    elif method == "shap_cam":
        options = {"samples_per_position": max(1, _SAMPLES[method] // (2 * game(choice).n_players))}
    elif method == "lime":
        options = {"n_samples": _SAMPLES[method]}
    if "progress" in check_options(method):
        options["progress"] = False
    model = network(choice.model)
    return explain(model, picture(choice.photo), choice.target, method, choice.layer, **options)


@lru_cache(maxsize=16)
def game(choice: Choice) -> LayerGame:
    """The game that Owen-CAM plays."""
    model = network(choice.model)
    x = preprocess(picture(choice.photo), model)
    return LayerGame(model, choice.layer, x, choice.target, deferred=True)


@lru_cache(maxsize=64)
def diagonal(choice: Choice, points: int = 41) -> tuple[np.ndarray, np.ndarray]:
    """Shares q in [0,1] of the activation that are there, all positions alike, and the class's probability at each."""
    q = torch.linspace(0, 1, points)
    values = game(choice).value(q[:, None].expand(-1, game(choice).n_players))
    return q.numpy(), values.numpy()


@lru_cache(maxsize=512)
def faded(choice: Choice, q: float) -> tuple[float, Tensor]:
    """At q on Owen's diagonal: the class's probability, and its slope by the presence of each position (h,w)."""
    value, slopes = game(choice).gradient(torch.full((1, game(choice).n_players), float(q)))
    return value.item(), slopes.view(game(choice).shape)


def plot_error(found: Mapping[int, Explanation], budget: int) -> plotting.Figure:
    """Owen-CAM's values at `budget` with their intervals, and the standard error at all budgets in `found`."""
    figure = plotting.new_figure(1, 2, width=6.4, height=2.6)
    left, right = figure.axes
    e = found[budget]
    values, error = e.map.flatten(), e.standard_error.flatten()
    order = values.argsort(descending=True)
    bars = 1.96 * error[order] if error.isfinite().all() else None
    left.errorbar(range(len(values)), values[order], bars, fmt="o", markersize=2, linewidth=0.8)
    left.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    left.set(xlabel="position, by value", ylabel="Shapley value ± 1.96 SE", title=f"budget {budget}")
    stated = {b: 100 * f.relative_error for b, f in sorted(found.items()) if f.relative_error is not None}
    right.plot(stated.keys(), stated.values(), "o-", markersize=4, linewidth=1)
    right.axvline(budget, color="0.6", linestyle="--", linewidth=0.8)
    right.set_xscale("log", base=2)
    right.set(xlim=(BUDGETS[0] / 1.3, BUDGETS[-1] * 1.3), ylim=(0, 1.1 * max([*stated.values(), 1])))
    right.set_xticks(BUDGETS, [str(b) for b in BUDGETS], rotation=45)
    right.set(xlabel="budget in head evaluations", ylabel="standard error, % of map", title=stated_error(e))
    return figure


def stated_error(e: Explanation) -> str:
    """What Owen-CAM says of its own error."""
    if e.relative_error is None:
        return "too small a budget to state an error"
    return f"standard error {e.relative_error:.1%} of the map" if e.relative_error else "exact"


def plot_fade(choice: Choice, q: float) -> plotting.Figure:
    """The class's probability along Owen's diagonal with q marked, and the slopes of all positions there."""
    figure = plotting.new_figure(1, 2, width=6.4, height=2.6)
    left, right = figure.axes
    model = network(choice.model)
    value, slopes = faded(choice, q)
    nodes = (np.polynomial.legendre.leggauss(NODES)[0] + 1) / 2
    left.plot(*diagonal(choice), color="0.4")
    left.plot(nodes, np.interp(nodes, *diagonal(choice)), "|", color="0.2", label="Owen-CAM's gradients")
    left.plot([q], [value], "o", markersize=8, label=f"q = {q:.2f}: {value:.1%}")
    left.set(xlabel="q, the share that is there", ylabel="probability of the class", ylim=(-0.05, 1.05))
    left.set_title(textwrap.shorten(class_names(model)[choice.target], 40))
    left.legend(fontsize=7)
    seen = view(picture(choice.photo), model)
    drawn = plotting.show_map(right, seen, slopes, f"slopes at q = {q:.2f}", signed=True)
    figure.colorbar(drawn, ax=right, label="slope / largest magnitude")
    return figure
