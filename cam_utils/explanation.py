"""Every method by its name, and `explain`: from a photo to a labelled heat map in one call."""

import difflib
import inspect
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from . import cams, lime, postprocess, shap_cam
from .checks import logits_of
from .layers import counting, evaluating, resolve_layer
from .models import class_names, resolve_target, spec_of, tensor_of, view

METHODS: dict[str, Callable[..., Tensor]] = {
    "cam": cams.cam,
    "grad_cam": cams.grad_cam,
    "grad_cam_pp": cams.grad_cam_pp,
    "hires_cam": cams.hires_cam,
    "layer_cam": cams.layer_cam,
    "xgrad_cam": cams.xgrad_cam,
    "score_cam": cams.score_cam,
    "ablation_cam": cams.ablation_cam,
    "shap_cam": shap_cam.shap_cam,
    "owen_cam": shap_cam.owen_cam,
    "lime": lime.lime,
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """A signed map (h,w) at the layer's resolution and what it explains; `score` is the softmax probability of `target`."""

    map: Tensor
    target: int
    label: str
    score: float
    layer: str
    method: str
    n_evaluations: float  # passes of the network or its head behind the layer; a forward+backward counts 2.5
    seconds: float
    image: Image.Image = field(repr=False)  # what the network saw
    top: tuple[tuple[str, float], ...] = field(repr=False)  # the five likeliest classes and their probabilities
    standard_error: Tensor | None = field(default=None, repr=False)  # (h,w), of methods that state one

    @property
    def relative_error(self) -> float | None:
        """The standard errors together over the map, ‖error‖ / ‖map‖; None where the method states none."""
        if self.standard_error is None or not self.standard_error.isfinite().all():
            return None
        return float(self.standard_error.norm() / self.map.norm()) if self.map.any() else None

    def heatmap(self, size: int | tuple[int, int] | None = None) -> Tensor:
        """The map rectified, upsampled to `size` (pixels; default: the image's) and min-max scaled: (H,W) in [0,1]."""
        return postprocess.heatmap(self.map[None].cpu(), self.image.size[::-1] if size is None else size)[0]

    def overlay(self, *, alpha: float = 0.5) -> Image.Image:
        """The heat map in colour over what the network saw."""
        from . import plotting  # importing it takes a second

        return plotting.overlay(self.image, self.heatmap(), alpha=alpha)


def explain(
    model: nn.Module,
    image,
    target: int | str | None = None,
    method: str = "owen_cam",
    layer: nn.Module | str | None = None,
    **options,
) -> Explanation:
    """Explain why `model` sees `target` (a class id or name; None: its top class) in `image` (file, PIL image or array).

    method: a key of METHODS; layer: a module or dotted name (None: the model's default); options go to the method.
    Cost: the method's, and one forward pass for the probabilities. Raises ValueError for an unknown method, layer or class.
    """
    check_options(method, options)
    layer = spec_of(model).layer if layer is None else layer
    module = resolve_layer(model, layer)
    seen = view(image, model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))  # there may be none
    x = tensor_of(seen, model).to(like.device, like.dtype)
    probabilities = _probabilities(model, x)
    target = int(probabilities.argmax()) if target is None else resolve_target(model, target)
    start = time.perf_counter()
    with counting() as counter:
        stating = "return_estimate" in inspect.signature(METHODS[method]).parameters
        states_error = {"return_estimate": True} if stating else {}
        found = METHODS[method](model, module, x, torch.tensor([target], device=x.device), **options | states_error)
    maps, estimates = found if states_error else (found, None)
    likeliest = probabilities.topk(min(5, len(probabilities)))
    return Explanation(
        map=maps[0],
        target=target,
        label=class_names(model)[target],
        score=probabilities[target].item(),
        layer=next(name for name, m in model.named_modules() if m is module),
        method=method,
        n_evaluations=counter.total,
        seconds=time.perf_counter() - start,
        image=seen,
        top=tuple((class_names(model)[i], p) for p, i in zip(*(t.tolist() for t in likeliest), strict=True)),
        standard_error=estimates[0].standard_error.view(maps[0].shape) if estimates else None,
    )


def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """The softmax (K,) of the model's logits. Raises ValueError for a model that does not fit its spec, or has no logits."""
    with evaluating(model), torch.no_grad():
        logits = logits_of(model, x)
    names = class_names(model)
    if logits.shape[1] == 1:
        raise ValueError("the model has a single output: let it return the two logits (0, output) of no and yes")
    if logits.shape[1] != len(names):
        raise ValueError(f"the model has {logits.shape[1]} classes, its spec names {len(names)}")
    if (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3:
        raise ValueError(
            "the model puts out probabilities, since they sum to 1: leave out its softmax, logits are needed"
        )
    return logits.softmax(1)[0]


def check_options(method: str, options: Iterable[str] = ()) -> list[str]:
    """The names of a method's options. Raises ValueError for an unknown method or option, naming those that there are."""
    if not isinstance(method, str) or method not in METHODS:
        near = difflib.get_close_matches(str(method).lower().replace("-", "_"), METHODS, n=3) or METHODS
        raise ValueError(f"unknown method {method!r}. Choose one of: {', '.join(near)}")
    known = [*inspect.signature(METHODS[method]).parameters][4:]  # behind model, layer, x, target
    known = [name for name in known if not name.startswith("return_")]  # `explain` returns a map alone
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{method} has no option {', '.join(unknown)}. It has: {', '.join(known) or 'none'}")
    return known
