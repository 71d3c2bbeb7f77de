"""Does the score follow the map? Metrics `f(model, x, target, heat) -> (N,) float64` by masking the image.

x (N,3,H,W) preprocessed, target (N,) class ids (or one for all), heat (N,H,W) in [0,1] (`postprocess.heatmap`). Scores are
softmax probabilities of the target: Y of the image, O of the image masked in pixel space (`perturb.mask_image`).
`batch_size` perturbed images are in memory at a time. ValueError for a heat that does not fit, a target out of range, a
model without `spec`. The model is left as it was found.

Shared trap: masked images are unlike any training image, so that a fall of the score is partly the network's surprise at
black areas and mask borders, not the loss of evidence (ROAD exists for this reason).
"""

import torch
from torch import Tensor, nn

from .checks import check_count, check_input
from .perturb import BATCH_SIZE, check_heat, log_probabilities, mask_image, ranks, replacement


def masked_scores(
    model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, batch_size: int = BATCH_SIZE
) -> tuple[Tensor, Tensor]:
    """Y and O, the target's probabilities (N,) for the image and for the masked image. Cost: 2 forward passes per image."""
    log_p, _ = _masked(model, x, target, heat, batch_size)
    return log_p[:, 0].exp(), log_p[:, 1].exp()


def average_drop(model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """AD = max(0, Y - O) / Y of each image (Chattopadhay et al. 2018, Grad-CAM++); tables show the mean. (N,) in [0,1].

    Lower is better. Computed as 1 - exp(min(0, log O - log Y)) from the logits, so that it is defined for every Y > 0,
    however small, without a division. Trap: a map of ones has AD 0 ("Fake-CAM", Poppi et al. 2021): AD rewards large
    maps. For an image whose Y is tiny AD compares two noises. grad-cam's DropInConfidence is Y - O, not divided by Y.
    Cost: 2 forward passes per image.
    """
    log_p, _ = _masked(model, x, target, heat, batch_size)
    return _relative_loss(log_p)


def increase(model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """AI = 1 if O > Y, else 0 (Chattopadhay et al. 2018, "increase in confidence"); the mean is the share. (N,) 0 or 1.

    Higher is better. O counts as larger only if the log-odds rise by more than rounding, 1000 machine epsilons: a map of
    ones has AI 0. Trap: counts a gain of 10⁻⁶ and one of 0.6 alike, and is nearly impossible where Y is near 1.
    Cost: 2 forward passes per image.
    """
    log_p, log_q = _masked(model, x, target, heat, batch_size)
    log_odds = log_p - log_q
    rounding = 1e3 * min(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
    return (log_odds[:, 1] - log_odds[:, 0] > rounding).double()


def average_gain(model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """AG = max(0, O - Y) / (1 - Y) of each image (Zhang et al. 2024, Opti-CAM); tables show the mean. (N,) in [0,1].

    Higher is better. Computed as 1 - exp(min(0, log(1-O) - log(1-Y))) from the logits: defined for every Y < 1, even where
    1 - Y rounds to 0, and 0 for Y = 1 with O = 1. Trap: where Y is near 1 it compares two tiny numbers: from 0.9999 to
    0.99999 is a gain of 0.9. Read it beside AD; each is 0 where the other is not. Cost: 2 forward passes per image.
    """
    _, log_q = _masked(model, x, target, heat, batch_size)
    return _relative_loss(log_q)


def average_drop_in_deletion(
    model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """ADD = AD with 1 - heat: the relative drop when what the map shows is removed (Jung & Oh 2021, LIFT-CAM). (N,) in [0,1].

    Higher is better. Trap: a map of ones removes everything and is perfect here too. Cost: 2 forward passes per image.
    """
    target = check_input(x, target)
    return average_drop(model, x, target, 1 - check_heat(heat, x), batch_size=batch_size)


def deletion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    *,
    steps: int = 32,
    baseline: str | Tensor = "zero",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Tensor:
    """Area under the score while the hottest pixels are replaced by the baseline (Petsiuk et al. 2018, RISE). (N,) in [0,1].

    Lower is better. `steps` equal numbers of pixels (RISE: 224), trapezoid rule over the share of pixels replaced.
    baseline: see `perturb.replacement`; "zero", the mean colour, is what RISE's code takes. Traps: the curve starts at Y,
    so compare methods on the same images; only the order of the pixels counts, and the many zeros of a rectified map
    are deleted in reading order; scattered absent pixels act as an adversarial pattern, which favours ragged maps.
    Cost: steps + 1 forward passes per image.
    """
    target, end = check_input(x, target), replacement(model, x, baseline)
    scores, shares = perturbation_curve(model, x, target, heat, x, end, steps, batch_size=batch_size, progress=progress)
    return torch.trapezoid(scores, shares)


def insertion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    *,
    steps: int = 32,
    baseline: str | Tensor = "blur",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Tensor:
    """Area under the score while the blurred image gets its hottest pixels back (Petsiuk et al. 2018, RISE). (N,) in [0,1].

    Higher is better. The blur is RISE's Gaussian, 11×11 pixels, standard deviation 5. Traps: those of `deletion`; and where
    the network knows the class from the blurred image already, every map scores high (blur bias: what is large and coarse
    is never absent).
    Cost: steps + 1 forward passes per image.
    """
    target, start = check_input(x, target), replacement(model, x, baseline)
    scores, shares = perturbation_curve(
        model, x, target, heat, start, x, steps, batch_size=batch_size, progress=progress
    )
    return torch.trapezoid(scores, shares)


def perturbation_curve(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int = 32,
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The target's probability (N,steps+1) while `start` turns into `end`, hottest pixels first, and the share turned (steps+1,).

    start, end: like x (N,3,H,W). Pixels of equal heat go in reading order. Cost: steps + 1 forward passes per image.
    """
    target, rank, pixels = check_input(x, target), ranks(check_heat(heat, x)), x[0, 0].numel()
    check_count("steps", steps, 1, pixels)
    counts = torch.linspace(0, pixels, steps + 1, dtype=torch.float64, device=x.device).round()

    def perturb(image: Tensor, step: Tensor) -> Tensor:
        turned = (rank[image] < counts[step, None]).view(-1, 1, *x.shape[2:])
        return torch.where(turned, end[image], start[image])

    options = {"batch_size": batch_size, "name": "deletion/insertion", "progress": progress}
    log_p, _ = log_probabilities(model, target, perturb, steps + 1, **options)
    return log_p.exp(), counts / pixels


def _masked(model, x, target, heat, batch_size) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p), each (N,2): of the image and of the masked image."""
    target, heat = check_input(x, target), check_heat(heat, x)

    def perturb(image: Tensor, step: Tensor) -> Tensor:
        return mask_image(model, x[image], torch.where(step[:, None, None] == 0, 1, heat[image]))

    return log_probabilities(model, target, perturb, 2, batch_size=batch_size)


def _relative_loss(logs: Tensor) -> Tensor:
    """max(0, a - b) / a for logs (N,2) of a and b."""
    return torch.expm1((logs[:, 1] - logs[:, 0]).clamp(max=0)).abs()
