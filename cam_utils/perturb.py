"""What the metrics do to an image and how they ask the network about it: masks, baselines, scores in bounded memory.

x (N,3,H,W) is the preprocessed input; heat (N,H,W) in [0,1] at the same resolution comes from `postprocess.heatmap`, the one
rectification of signed maps; target (N,) holds class ids. Pixel values are those before the normalisation, in [0,1].
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from .checks import check_baseline, check_choice, chunks, logits_of
from .layers import count, evaluating
from .models import spec_of

BATCH_SIZE = 4  # images; larger batches of photos cost more on a CPU: glibc maps and clears their activations anew
BLUR = (11, 5.0)  # side of the kernel and standard deviation in pixels, RISE's


def check_heat(heat: Tensor, x: Tensor | None = None) -> Tensor:
    """`heat` itself, in x's precision. Raises ValueError if it is no finite (N,H,W) in [0,1], or does not fit x (N,3,H,W)."""
    hint = "postprocess.heatmap(maps, x.shape[2:]) makes one from signed maps"
    if not isinstance(heat, Tensor) or heat.ndim != 3 or not heat.is_floating_point() or heat.numel() == 0:
        found = f"{heat.dtype} {tuple(heat.shape)}" if isinstance(heat, Tensor) else type(heat).__name__
        raise ValueError(f"heat must be a floating point tensor (N,H,W), not {found}; {hint}")
    if x is not None and heat.shape != (len(x), *x.shape[2:]):
        raise ValueError(f"heat {tuple(heat.shape)} does not fit the images {tuple(x.shape)}; {hint}")
    if not bool(((heat >= 0) & (heat <= 1)).all()):
        raise ValueError(f"heat must lie in [0,1], without NaN; {hint}")
    return heat if x is None else heat.to(x)


def channels(values: tuple[float, float, float], x: Tensor) -> Tensor:
    """`values` of `model.spec`, one a channel, as (3,1,1) that broadcasts against x."""
    return torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None]


def black(model: nn.Module, x: Tensor) -> Tensor:
    """A black pixel as the network sees it, (0 - mean) / std: (3,1,1). Needs `model.spec`."""
    spec = spec_of(model)
    return -channels(spec.mean, x) / channels(spec.std, x)


def mask_image(model: nn.Module, x: Tensor, heat: Tensor) -> Tensor:
    """The image seen through the map, black + heat · (x - black): (N,3,H,W). Exactly x where heat is 1, black where it is 0.

    This is heat · pixel value, then the normalisation. Packages that multiply the normalised tensor by the map (grad-cam,
    torchcam) fade to the mean colour instead, which gives other numbers.
    """
    return torch.lerp(black(model, x).expand_as(x), x, heat.to(x)[:, None].expand_as(x))


def replacement(model: nn.Module, x: Tensor, baseline: str | Tensor) -> Tensor:
    """What stands where pixels are absent, like x (N,3,H,W).

    baseline: "black"; "zero", 0 after the normalisation, which is the mean colour `model.spec.mean`; "blur", the image under
    a Gaussian of 11×11 pixels and standard deviation 5 with mirrored borders; or a tensor that broadcasts to x.
    """
    if isinstance(baseline, Tensor):
        return check_baseline(baseline, x, "images")
    check_choice("baseline that is no tensor", baseline, ("black", "zero", "blur"))
    if baseline == "black":
        return black(model, x).expand_as(x)
    if baseline == "zero":
        return torch.zeros_like(x)
    if min(x.shape[2:]) <= BLUR[0] // 2:
        raise ValueError(f"the blur needs images of more than {BLUR[0] // 2} pixels a side, not {tuple(x.shape[2:])}")
    return gaussian_blur(x, BLUR[0], BLUR[1])


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    target: Tensor,
    perturb: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    *,
    batch_size: int,
    name: str = "metric",
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p), each (N,steps) float64, of the target's softmax probability p for every image and step.

    perturb(image (B,), step (B,)) -> (B,3,H,W) makes the inputs, `batch_size` of them in memory at a time. Both logarithms
    come from the logits, so that neither a p that rounds to 1 nor one that rounds to 0 loses its digits.
    Cost: N · steps forward passes.
    """
    logs = []
    with evaluating(model):
        for chunk in chunks(torch.arange(len(target) * steps, device=target.device), batch_size, name, progress):
            image, step = chunk // steps, chunk % steps
            own = target[image]
            logits = logits_of(model, perturb(image, step), target=own).double()
            count(len(chunk))
            everything, others = logits.logsumexp(1), logits.scatter(1, own[:, None], -torch.inf).logsumexp(1)
            logs.append(torch.stack([logits.gather(1, own[:, None])[:, 0] - everything, others - everything]))
    log_p, log_q = torch.cat(logs, 1).view(2, len(target), steps)
    return log_p, log_q


def ranks(heat: Tensor) -> Tensor:
    """(N,HW) int64: 0 for the hottest pixel. Ties go in reading order, from the top left."""
    return heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
