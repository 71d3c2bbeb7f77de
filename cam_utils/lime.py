"""LIME: a weighted linear model of the class's probability on copies of the image with superpixels removed."""

from dataclasses import dataclass

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor, nn

from .cams import Layer
from .checks import (
    check_baseline,
    check_choice,
    check_count,
    check_input,
    check_positive,
    chunks,
    logits_of,
    seeded,
)
from .layers import count, evaluating
from .models import find_spec, spec_of
from .payoffs import PAYOFFS, is_saturated, payoff_of, warn_of_saturation


@dataclass(frozen=True, eq=False)
class LimeFit:
    """What LIME fitted to one image with n segments from M samples; `coefficients` is what the map shows."""

    segments: Tensor  # (H,W) int64: the segment of each pixel, 0 … n-1
    coefficients: Tensor  # (n,) float64: what the presence of a segment adds to the payoff
    intercept: float  # the surrogate's payoff of the image with all segments removed
    r2: float  # weighted R² on the samples of the fit, the local fidelity: at most 1, flattered where M is not >> n
    masks: Tensor  # (M,n) bool: which segments each sample keeps; the first keeps all
    payoffs: Tensor  # (M,) float64
    weights: Tensor  # (M,) float64, in (0,1]
    n_evaluations: int

    def predict(self, masks: Tensor) -> Tensor:
        """The surrogate's payoff of masks (M,n), bool or in [0,1] -> (M,) float64."""
        return self.intercept + masks.to(self.coefficients) @ self.coefficients


@torch.no_grad()
def lime(
    model: nn.Module,
    layer: Layer | None,
    x: Tensor,
    target: Tensor,
    *,
    n_samples: int = 1000,
    n_segments: int = 50,
    segments: Tensor | None = None,
    baseline: str | Tensor = "mean",
    payoff: str = "probability",
    kernel_width: float = 0.25,
    alpha: float = 1.0,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    return_fit: bool = False,
) -> Tensor | tuple[Tensor, list[LimeFit]]:
    """LIME (Ribeiro et al. 2016, eq. 1-2) with the defaults of its package for images: signed maps (N,H,W), input resolution.

    Segments are kept with probability 1/2; the payoffs of n_samples such copies (the first is the image itself) are fitted
    by `weighted_ridge` with `kernel_weights`; each pixel shows its segment's coefficient, in units of the payoff.
    layer: ignored, LIME has none. x (N,3,H,W), target (N,). segments: (N,H,W) or (H,W) int (None: `superpixels`, about
    n_segments). baseline: what replaces a removed segment, its "mean" colour, "grey" (pixel value 1/2, needs `model.spec`) or
    a tensor that broadcasts to (3,H,W), normalised like x. payoff: as in LayerGame. generator: of the masks (None: seed 0 for
    every image). progress: as in `score_cam`. return_fit: also the `LimeFit` of each image.
    Cost: n_samples forward passes per image, `batch_size` copies in memory at a time. Raises ValueError for bad arguments.
    Deviations: the paper selects K segments by lasso and takes the L2 distance of images; its package fits all segments by
    ridge and takes the cosine distance of masks, as here, but segments by quickshift (see `superpixels`).
    """
    target = check_input(x, target)
    _check_options(n_samples, payoff, kernel_width, alpha)
    segments = superpixels(model, x, n_segments) if segments is None else _consecutive(segments, x)
    maps, fits = [], []
    with evaluating(model):
        for image, labels, c in zip(x, segments, target, strict=True):
            draws = seeded(generator)  # a batch is a loop
            size = (n_samples, int(labels.max()) + 1)
            masks = (torch.rand(size, generator=draws, device=draws.device) < 0.5).to(x.device)
            masks[0] = True
            absent, values = _absent(model, image, labels, baseline), []
            for chunk in chunks(masks, batch_size, "LIME", progress):
                copies = torch.where(chunk[:, labels][:, None], image, absent)  # (B,3,H,W)
                # channels last: CPUs convolve it faster
                logits = logits_of(model, copies.contiguous(memory_format=torch.channels_last), target=c)
                values.append(payoff_of(logits, int(c), payoff))
                count(len(chunk))
            values = torch.cat(values)
            if payoff == "probability" and is_saturated(values):
                warn_of_saturation(values, int(c))
            values, weights = values.double(), kernel_weights(masks, kernel_width)
            coefficients, intercept = weighted_ridge(masks, values, weights, alpha)
            r2 = weighted_r2(values, intercept + masks.double() @ coefficients, weights)
            maps.append(coefficients.to(x.dtype)[labels])
            fits.append(LimeFit(labels, coefficients, intercept, r2, masks, values, weights, n_samples))
    return (torch.stack(maps), fits) if return_fit else torch.stack(maps)


def superpixels(model: nn.Module, x: Tensor, n_segments: int = 50) -> Tensor:
    """About n_segments superpixels of each image: x (N,3,H,W) -> (N,H,W) int64, numbered from 0.

    SLIC (Achanta et al. 2012) of scikit-image: connected segments of similar size whose number can be asked for, with no
    randomness; quickshift, the lime package's choice, has no such number and breaks ties at random. Blurred by one pixel,
    so that noise does not fray the borders; compactness 10, so that these follow edges in Lab colours. The pixels
    are de-normalised by `model.spec`, to 8 bits as in the photo; without a spec x is taken as it is (SLIC rescales it).
    """
    check_count("n_segments", n_segments, 2, x[0, 0].numel())  # at most the pixels
    pixels = x.double().cpu().movedim(1, -1).numpy()
    spec = find_spec(model)
    if spec and len(spec.mean) == x.shape[1]:
        pixels = np.rint((pixels * spec.std + spec.mean).clip(0, 1) * 255).astype(np.uint8)
    labels = [slic(image, n_segments, compactness=10, sigma=1, start_label=0) for image in pixels]
    return _consecutive(torch.from_numpy(np.stack(labels)), x)


def kernel_weights(masks: Tensor, kernel_width: float = 0.25) -> Tensor:
    """exp(-d²/(2·width²)), d the cosine distance of a mask to the full one: (M,n) bool -> (M,) in (0,1], float64.

    With k of n segments kept, d = 1 - √(k/n): 0 for the image itself, 0.29 for half of it, 1 for nothing.
    """
    distance = 1 - masks.double().mean(1).sqrt()
    return torch.exp(-(distance**2) / (2 * kernel_width**2))


def weighted_ridge(masks: Tensor, payoffs: Tensor, weights: Tensor, alpha: float = 1.0) -> tuple[Tensor, float]:
    """argmin over b, b0 of Σ w (y - b0 - zᵀb)² + alpha·‖b‖² (b0 is not penalised), in closed form: b (n,), b0."""
    z, y, w = masks.double(), payoffs.double(), weights.double()
    z_mean, y_mean = (w @ z) / w.sum(), (w @ y) / w.sum()
    centred = z - z_mean
    gram = centred.T @ (w[:, None] * centred) + alpha * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    coefficients = torch.linalg.solve(gram, centred.T @ (w * (y - y_mean)))
    return coefficients, float(y_mean - z_mean @ coefficients)


def weighted_r2(payoffs: Tensor, predictions: Tensor, weights: Tensor) -> float:
    """1 - Σ w (y - ŷ)² / Σ w (y - ȳ)²: 1 perfect, 0 like the weighted mean, below it worse; 0 where y does not vary."""
    if payoffs.max() == payoffs.min():
        return 0.0
    total = (weights * (payoffs - (weights @ payoffs) / weights.sum()) ** 2).sum()
    return float(1 - (weights * (payoffs - predictions) ** 2).sum() / total)


def _absent(model: nn.Module, image: Tensor, labels: Tensor, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        return check_baseline(baseline, image, "image")
    if isinstance(baseline, str) and baseline == "grey":
        spec = spec_of(model)
        return ((0.5 - image.new_tensor(spec.mean)) / image.new_tensor(spec.std))[:, None, None].expand_as(image)
    if not isinstance(baseline, str) or baseline != "mean":
        raise ValueError(f'baseline must be "mean", "grey" or a tensor, not {baseline!r}')
    flat = labels.flatten().cpu()  # on the CPU, where sums have a fixed order
    sums = torch.zeros(len(image), int(flat.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, flat, image.cpu().double().flatten(1))
    return (sums / flat.bincount()).to(image)[:, labels]


def _consecutive(segments: Tensor, x: Tensor) -> Tensor:
    shape = (len(x), *x.shape[2:])
    try:
        segments = torch.as_tensor(segments, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"segments must be integers of shape {shape} or {shape[1:]}, not {type(segments).__name__}"
        ) from None
    if segments.is_floating_point() or segments.dtype == torch.bool or segments.shape not in (shape, shape[1:]):
        found = f"{segments.dtype} {tuple(segments.shape)}"
        raise ValueError(f"segments must be integers of shape {shape} or {shape[1:]}, not {found}")
    return torch.stack([labels.unique(return_inverse=True)[1] for labels in segments.expand(shape)])


def _check_options(n_samples: int, payoff: str, kernel_width: float, alpha: float) -> None:
    check_count("n_samples", n_samples, 2)
    check_choice("payoff", payoff, PAYOFFS)
    check_positive(kernel_width=kernel_width, alpha=alpha)
    check_positive(**{"the square of kernel_width": kernel_width**2})  # which may underflow
