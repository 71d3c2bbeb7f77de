"""Every method by its name, and `explain`: from a photo to a labelled heat map in one call."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor, nn

from . import cams, plotting, postprocess, shap_cam
from .layers import counting, evaluating, resolve_layer
from .models import class_names, preprocess, resolve_target, spec_of, view

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
}


@dataclass(frozen=True)
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

    def heatmap(self, size: int | tuple[int, int] | None = None) -> Tensor:
        """The map rectified, upsampled to `size` (pixels; default: the image's) and min-max scaled: (H,W) in [0,1]."""
        return postprocess.heatmap(self.map[None].cpu(), size or self.image.size[::-1])[0]

    def overlay(self, *, alpha: float = 0.5) -> Image.Image:
        """The heat map in colour over what the network saw."""
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
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}. Choose one of: {', '.join(METHODS)}")
    layer = spec_of(model).layer if layer is None else layer
    module = resolve_layer(model, layer)
    seen = view(image, model)
    parameter = next(model.parameters())
    x = preprocess(image, model).to(parameter.device, parameter.dtype)
    with evaluating(model), torch.no_grad():
        probabilities = model(x).softmax(1)[0]
    target = int(probabilities.argmax()) if target is None else resolve_target(model, target)
    start = time.perf_counter()
    with counting() as counter:
        map = METHODS[method](model, module, x, torch.tensor([target], device=x.device), **options)[0]
    return Explanation(
        map=map,
        target=target,
        label=class_names(model)[target],
        score=probabilities[target].item(),
        layer=next(name for name, m in model.named_modules() if m is module),
        method=method,
        n_evaluations=counter.total,
        seconds=time.perf_counter() - start,
        image=seen,
    )
