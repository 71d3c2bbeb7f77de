"""The CAMs of the public packages, run through their own code, to stand beside ours: extra `peers`.

Each is a function (model, layer name, x (1,3,H,W), class id) -> map (h,w), like a method here; not always signed.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .explanation import METHODS
from .postprocess import rectify


def grad_cam_package(name: str, model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """A class of the package grad-cam, for instance "GradCAM": its map (h,w) before its ReLU and upsampling."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    method = getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.get_submodule(layer)])
    maps, image = [], method.get_cam_image
    method.get_cam_image = lambda *a, **k: maps.append(image(*a, **k)) or maps[-1]
    if hasattr(method, "batch_size"):
        method.batch_size = 32
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            method(input_tensor=x.clone().requires_grad_(True), targets=[ClassifierOutputTarget(target)])
    finally:
        method.activations_and_grads.gradients = []  # views, which its release cannot detach
        method.activations_and_grads.release()
    return torch.as_tensor(maps[0]).detach()[0]


def torchcam_package(name: str, model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """A class of the package torchcam, for instance "GradCAM": its map (h,w), rectified where the class does so."""
    import torchcam.methods

    with getattr(torchcam.methods, name)(model, target_layer=layer) as extractor, torch.enable_grad():
        scores = model(x.clone().requires_grad_(True))
        return extractor(target, scores, normalized=False)[0][0].detach()


def captum_package(name: str, model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """A layer attribution of Captum, for instance "LayerGradCam", summed over the channels where it is given for each."""
    import captum.attr

    found = getattr(captum.attr, name)(model, model.get_submodule(layer)).attribute(x, target=target)
    return found.sum(1)[0].detach()


COUNTERPARTS: dict[str, dict[str, Callable[..., Tensor]]] = {  # method of METHODS: the same by each package
    "grad_cam": {
        "grad-cam": partial(grad_cam_package, "GradCAM"),
        "torchcam": partial(torchcam_package, "GradCAM"),
        "Captum": partial(captum_package, "LayerGradCam"),
    },
    "grad_cam_pp": {
        "grad-cam": partial(grad_cam_package, "GradCAMPlusPlus"),
        "torchcam": partial(torchcam_package, "GradCAMpp"),
    },
    "hires_cam": {
        "grad-cam": partial(grad_cam_package, "HiResCAM"),
        "Captum": partial(captum_package, "LayerGradientXActivation"),
    },
    "layer_cam": {
        "grad-cam": partial(grad_cam_package, "LayerCAM"),
        "torchcam": partial(torchcam_package, "LayerCAM"),
    },
    "xgrad_cam": {
        "grad-cam": partial(grad_cam_package, "XGradCAM"),
        "torchcam": partial(torchcam_package, "XGradCAM"),
    },
    "score_cam": {
        "grad-cam": partial(grad_cam_package, "ScoreCAM"),
        "torchcam": partial(torchcam_package, "ScoreCAM"),
    },
    "ablation_cam": {"grad-cam": partial(grad_cam_package, "AblationCAM")},
}


def side_by_side(
    model: nn.Module,
    layer: str,
    images: dict[str, Tensor],
    *,
    methods: Iterable[str] = tuple(COUNTERPARTS),
    repeats: int = 5,
    threads: int = 1,
) -> pd.DataFrame:
    """Our methods and their counterparts on the same images {name: x (1,3,H,W)}, top class, layer and run.

    One row per image, method and package ("cam_utils": ours): seconds, the median over `repeats` runs in turns, after one
    to warm up, or that one where it takes longer than a second; agreement: Pearson's correlation of the rectified map with
    ours. model: frozen, or grad-cam fills its gradients. threads: of torch meanwhile; with more than one, other work on the
    machine slows all of them many times.
    """
    rows, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for image, x in images.items():
            for method in methods:
                rows += [{"image": image} | row for row in _compare(model, layer, x, method, repeats)]
    finally:
        torch.set_num_threads(before)
    return pd.DataFrame(rows)


def _compare(model: nn.Module, layer: str, x: Tensor, method: str, repeats: int) -> list[dict]:
    with torch.no_grad():
        target = int(model(x).argmax(1))

    def ours(*arguments) -> Tensor:
        return METHODS[method](*arguments)[0]

    runs = {"cam_utils": ours} | COUNTERPARTS[method]
    maps, seconds = {}, {package: [] for package in runs}
    for _ in range(repeats + 1):
        for package, run in runs.items():
            start = time.perf_counter()
            maps[package] = rectify(run(model, layer, x, target)).double().flatten()
            seconds[package].append(time.perf_counter() - start)
        if max(taken[0] for taken in seconds.values()) > 1:
            break
    return [
        {
            "method": method,
            "package": package,
            "seconds": float(np.median(taken[1:] or taken)),
            "agreement": float(torch.corrcoef(torch.stack([maps["cam_utils"], maps[package]]))[0, 1]),
        }
        for package, taken in seconds.items()
    ]
