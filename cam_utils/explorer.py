"""The explorer of notebook 08: choose a photo, a network, a layer, a class and methods, and see their maps side by side.

`Explorer` is the widgets; what they show comes from `chosen`, which remembers what it has computed. The pictures are HTML, so
that they have alternative texts and find their own place on a page.
"""

import base64
import html
import io
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import matplotlib
from PIL import Image

from . import plotting
from .chosen import (
    BUDGETS,
    SLOW,
    Choice,
    Upload,
    explained,
    faded,
    layers,
    network,
    picture,
    plot_error,
    plot_fade,
    probabilities,
    stated_error,
)
from .data import load_photo, load_photos
from .explanation import METHODS, Explanation, check_options
from .models import DEFAULT_MODEL, REGISTRY, class_names, find_weights, resolve_target, spec_of, view

_LOOK = {"style": {"description_width": "70px"}, "layout": {"width": "400px"}}
_FREE = _LOOK | {"continuous_update": False}
_SIDE_BY_SIDE = "display: flex; flex-wrap: wrap; gap: 12px"
_ALERT = "padding: 6px 10px; border-left: 4px solid #b3261e; background: #fbe9e7; color: #601410; line-height: 1.4"
_SPINNER = (
    "<style>@keyframes cam-busy {to {transform: rotate(1turn)}}</style><span style='display: inline-block; width: 10px; "
    "height: 10px; border: 2px solid #1f77b4; border-top-color: transparent; border-radius: 50%; "
    "animation: cam-busy 1s linear infinite'></span>"
)


class Explorer(widgets.VBox):
    """The app; its parts are named after what they choose or show.

    `message` says what went wrong, `status` what is going on. Raises ValueError for a photo, model, layer or method that
    does not exist.
    """

    def __init__(
        self,
        photo: str = "dog",
        model: str = DEFAULT_MODEL,
        layer: str | None = None,
        methods: Sequence[str] = ("owen_cam", "grad_cam"),
    ):
        for method in methods:
            check_options(method)
        layer = layer or spec_of(network(model)).layer
        if layer not in layers(model):
            raise ValueError(f"no layer {layer!r} to explore in {model}. Choose one of: {', '.join(layers(model))}")
        self.photo = _dropdown("Photo", [(p.name, p) for p in load_photos()], load_photo(photo))
        self.upload = widgets.FileUpload(accept="image/*", description="Upload a photo", layout={"width": "290px"})
        self.model = _dropdown("Model", [name for name in REGISTRY if find_weights(name)], model)
        self.layer = _dropdown("Layer", [layer], layer)
        self.target = _dropdown("Class")
        self.search = widgets.Combobox(description="or search", placeholder="class name or number, Enter", **_FREE)
        self.methods = {m: _checkbox(f"{m} (slow)" if m in SLOW else m, m in methods) for m in METHODS}
        self.signed = _checkbox("signed: what speaks against the class too")
        self.opacity = widgets.FloatSlider(0.65, min=0, max=1, step=0.05, description="Opacity", **_LOOK)
        self.budget = widgets.SelectionSlider(options=BUDGETS, description="Budget", **_FREE)
        self.q = widgets.FloatSlider(1, min=0, max=1, step=0.05, description="q", **_LOOK)
        self.status, self.message, self.maps, self.error, self.fade = (widgets.HTML() for _ in range(5))
        self._tried: dict[Choice, dict[int, Explanation]] = defaultdict(dict)
        self._working = False
        super().__init__(self._arranged())
        maps, error, fade = self._draw_maps, self._draw_error, self._draw_fade
        for choosers, steps in {
            (self.photo, self.model): (self._settle, maps, error, fade),
            (self.upload,): (self._take_upload, self._settle, maps, error, fade),
            (self.search,): (self._find_class, maps, error, fade),
            (self.layer, self.target): (maps, error, fade),
            (self.budget, *self.methods.values()): (maps, error),
            (self.signed, self.opacity): (maps,),
            (self.q,): (fade,),
        }.items():
            for chooser in choosers:
                chooser.observe(lambda change, steps=steps: self._do(*steps), "value")
        self._do(self._settle, maps, error, fade)

    def __repr__(self) -> str:
        return "Explorer: widgets, alive where a kernel runs"

    @property
    def choice(self) -> Choice:
        """What is chosen now."""
        return Choice(self.photo.value, self.model.value, self.layer.value, self.target.value)

    def _arranged(self) -> list[widgets.Widget]:
        row = {"flex_flow": "row wrap", "align_items": "center", "overflow": "visible"}
        half = {"flex": "1 1 600px", "min_width": "420px"}
        owen = [widgets.HTML("<b>Owen-CAM's budget and its error</b>"), self.budget, self.error]
        fade = [widgets.HTML("<b>Fading along Owen's diagonal</b>"), self.q, self.fade]
        return [
            widgets.Box([self.photo, self.upload, self.model, self.layer, self.target, self.search], layout=row),
            widgets.Box([widgets.HTML("<b>Methods</b>"), *self.methods.values()], layout=row),
            widgets.Box([self.opacity, self.signed], layout=row),
            self.status,
            self.message,
            self.maps,
            widgets.Box([widgets.VBox(owen, layout=half), widgets.VBox(fade, layout=half)], layout=row),
        ]

    def _do(self, *steps: Callable[[], None]) -> None:
        """The steps that follow a change by the user, up to the first that fails; what they set themselves is no such change."""
        if self._working:
            return
        self._working, start, self.message.value = True, time.perf_counter(), ""
        try:
            for step in steps:
                self._busy("Computing")
                step()
        except Exception as error:  # an exception in a callback would be seen by nobody
            self._say(error)
        self._working = False
        self.status.value = f'<div role="status">Ready, after {time.perf_counter() - start:.1f} s</div>'

    def _busy(self, what: str) -> None:
        self.status.value = f'<div role="status">{_SPINNER} {html.escape(what)} …</div>'

    def _say(self, error: Exception) -> None:
        known = isinstance(error, (ValueError, OSError))
        text = html.escape(str(error) if known else f"{type(error).__name__}: {error}")
        self.message.value += f'<div role="alert" style="{_ALERT}">{text}</div>'

    def _settle(self) -> None:
        """For another photo or network: its layers, its classes."""
        names = class_names(network(self.model.value))
        likeliest = probabilities(self.model.value, self.photo.value).topk(min(5, len(names))).indices.tolist()
        self._offer(self.target, [self._class(c) for c in likeliest], likeliest[0])
        self.search.options = sorted(set(names))
        known = layers(self.model.value)
        default = spec_of(network(self.model.value)).layer
        self._offer(self.layer, known, self.layer.value if self.layer.value in known else default)

    def _class(self, c: int) -> tuple[str, int]:
        p = probabilities(self.model.value, self.photo.value)[c]
        return f"{class_names(network(self.model.value))[c]}, {p:.1%}", c

    @staticmethod
    def _offer(dropdown: widgets.Dropdown, options: Sequence, value) -> None:
        dropdown.options = options
        dropdown.value = value

    def _find_class(self) -> None:
        if text := self.search.value.strip():
            c = resolve_target(network(self.model.value), text)
            others = [option for option in self.target.options if option[1] != c]
            self._offer(self.target, [*others, self._class(c)], c)
            self.search.value = ""

    def _take_upload(self) -> None:
        files, self.upload.value = self.upload.value, ()
        for file in files:
            upload = Upload(file["name"], bytes(file["content"]))
            picture(upload)  # raises where it is no image
            others = [option for option in self.photo.options if option[1] != upload]
            self._offer(self.photo, [(f"uploaded: {upload.name}", upload), *others], upload)

    def _draw_maps(self) -> None:
        chosen = [name for name, box in self.methods.items() if box.value]
        if not chosen:
            raise ValueError("no method is chosen: tick at least one")
        seen, signed = view(picture(self.photo.value), network(self.model.value)), self.signed.value
        top = "<br>".join(html.escape(label) for label, _ in self.target.options[:3])
        figures = [_figure(seen, f"The photo {self.photo.label} as the network sees it", top)]
        for k, method in enumerate(chosen, start=1):
            self._busy(f"Computing {method}, {k} of {len(chosen)}")
            try:
                e = explained(self.choice, method, self.budget.value if method == "owen_cam" else None)
            except ValueError as error:  # this method cannot; others can
                self._say(ValueError(f"{method}: {error}"))
                continue
            heat = plotting.scaled(e.map, seen.size[::-1], signed=signed)
            shown = plotting.overlay(seen.convert("L"), heat, alpha=self.opacity.value, signed=signed)
            caption = f"<b>{method}</b> at {e.layer}<br>{html.escape(e.label)}, {e.score:.1%}<br>{_cost(e)}"
            figures.append(_figure(shown, f"Map of {method} for {e.label}", caption))
        self.maps.value = f'<div style="{_SIDE_BY_SIDE}">{"".join(figures)}</div>{_colour_bar(signed)}'

    def _draw_error(self) -> None:
        budget, tried = self.budget.value, self._tried[self.choice]
        if not self.methods["owen_cam"].value:
            self.error.value = "Tick owen_cam to see what its budget buys."
            return
        e = tried[budget] = explained(self.choice, "owen_cam", budget)
        self.error.value = _figure(plot_error(tried, budget), f"Owen-CAM at budget {budget}: {stated_error(e)}")

    def _draw_fade(self) -> None:
        value = faded(self.choice, self.q.value)[0]
        text = (
            f"Probability along Owen's diagonal: {value:.1%} at q = {self.q.value:.2f}; slopes of the positions there"
        )
        self.fade.value = _figure(plot_fade(self.choice, self.q.value), text)


def _dropdown(description: str, options: Sequence = (), value=None) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=description, **_LOOK)


def _checkbox(description: str, value: bool = False) -> widgets.Checkbox:
    return widgets.Checkbox(
        value, description=description, indent=False, layout={"width": "auto", "margin": "2px 12px"}
    )


def _cost(e: Explanation) -> str:
    error = f", {stated_error(e)}" if e.method == "owen_cam" else ""
    return f"{e.n_evaluations:g} evaluations{error}"


def _figure(shown: Image.Image | plotting.Figure, alt: str, caption: str = "") -> str:
    """HTML of a picture with its alternative text."""
    if isinstance(shown, plotting.Figure):
        png, width = shown._repr_png_()[0], "100%"
    else:
        buffer = io.BytesIO()
        shown.save(buffer, format="png")
        png, width = buffer.getvalue(), "195px"  # four fit beside JupyterLab's list of files in 1280 pixels
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img alt="{html.escape(alt)}" src="{source}" style="width: 100%">'
    style = f"margin: 0; width: {width}; max-width: 704px; line-height: 1.4"
    return f'<figure style="{style}">{image}<figcaption>{caption}</figcaption></figure>'


def _colour_bar(signed: bool) -> str:
    name = plotting.DIVERGING if signed else plotting.SEQUENTIAL
    ends = {
        True: ("against the class", "for it; each map over its largest magnitude"),
        False: ("0", "1, each map rectified"),
    }
    low, high = ends[signed]
    colours = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps[name](k / 10)) for k in range(11))
    bar = f'<span style="width: 160px; height: 12px; background: linear-gradient(to right, {colours})"></span>'
    return f'<div style="display: flex; gap: 8px; align-items: center; margin: 6px 0">{low} {bar} {high}</div>'
