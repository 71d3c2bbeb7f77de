"""Maps that explain nothing: what a metric must tell from an explanation. `method(model, layer, x, target) -> (N,h,w) >= 0`.

They have the interface of `METHODS`, ignore the target, and belong in every table.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cams import Layer
from .checks import check_input, check_positive, logits_of, seeded
from .layers import capture, count, evaluating, resolve_layer
from .models import spec_of
from .perturb import channels


@torch.no_grad()
def random_map(
    model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform noise in [0,1) at the layer's resolution, so that it is as coarse as a CAM (layer None: the image's). (N,h,w).

    generator: of the noise. None is seed 0 for every image: one fixed map, which is therefore perfectly coherent and insensitive;
    pass a generator, seeded by the image, where `coherency` or `sensitivity_max` are measured. Cost: 1 forward pass
    of one image, for the resolution.
    """
    check_input(x, target)
    size = x.shape[2:]
    if layer is not None:
        with evaluating(model), capture(resolve_layer(model, layer)) as captured:
            logits_of(model, x[:1])
            count(1)
        size = captured.activation.shape[2:]
    noise = []
    for _ in x:
        draws = seeded(generator)
        noise.append(torch.rand(*size, generator=draws, device=draws.device, dtype=torch.float64))
    return torch.stack(noise).to(x)


def centre_gaussian(model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor, *, sigma: float = 0.25) -> Tensor:
    """exp(-r²/2σ²) around the image's centre, r in units of each side: photographers put the object there. (N,H,W)."""
    check_input(x, target)
    check_positive(sigma=sigma)
    rows, columns = (
        torch.exp(-(((torch.arange(side, dtype=x.dtype, device=x.device) + 0.5) / side - 0.5) ** 2) / (2 * sigma**2))
        for side in x.shape[2:]
    )
    return (rows[:, None] * columns).repeat(len(x), 1, 1)


def all_ones(model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor) -> Tensor:
    """Fake-CAM (Poppi et al. 2021): one everywhere, but zero at the top left pixel. (N,H,W).

    The one zero keeps the map what it is under min-max normalisation, which turns a constant map into zeros. AD is then
    nearly 0 and ADD nearly perfect; a heat of ones itself has AD 0.
    """
    check_input(x, target)
    ones = torch.ones_like(x[:, 0])
    ones[:, 0, 0] = 0
    return ones


def sobel_edges(model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of the image's grey values in [0,1] (ITU-R 601 luma), borders repeated. (N,H,W).

    What an edge detector draws without any network (Adebayo et al. 2018). Scaled like skimage.filters.sobel.
    """
    check_input(x, target)
    spec = spec_of(model)
    pixels = x * channels(spec.std, x) + channels(spec.mean, x)
    grey = (pixels * channels((0.299, 0.587, 0.114), x)).sum(1, keepdim=True)
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=x.dtype, device=x.device) / 4
    kernels = torch.stack([across, across.T])[:, None]
    edges = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return edges.square().mean(1).sqrt()


BASELINES: dict[str, Callable[..., Tensor]] = {
    "random_map": random_map,
    "centre_gaussian": centre_gaussian,
    "all_ones": all_ones,
    "sobel_edges": sobel_edges,
}
