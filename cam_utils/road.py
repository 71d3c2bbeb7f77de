"""ROAD: remove pixels and debias (Rong et al. 2022): removed pixels are imputed, so that a mask leaves no visible edge.

Metrics `f(model, x, target, heat) -> (N,) float64`, see `faithfulness` for the arguments. Traps: the imputation is a blur over
large holes, and where the network knows the class from blurred colours every map looks alike (blur bias); only the order
of the pixels counts, and equal ones, such as the many zeros of a rectified map, go in reading order.
"""

from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np
import torch
from scipy.sparse import csc_array
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from .checks import check_input, seeded
from .models import spec_of
from .perturb import BATCH_SIZE, channels, check_heat, log_probabilities, ranks

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the pixels removed
NEIGHBOURS = {  # (down, right): weight; the eight of them sum to 1
    (down, right): 1 / 12 if down and right else 1 / 6
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
}


def road_morf(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Tensor:
    """ROAD, most relevant first: the mean score over `fractions` of hottest pixels removed and imputed. (N,) in [0,1].

    Rong et al. 2022. Lower is better. fractions: in (0,1), of all pixels. noise: standard deviation added to imputed
    pixels, in pixel values of [0,1] (the paper's code: 0.01); generator: of the noise (None: seed 0 for every image).
    Deviation: grad-cam's ROAD adds the noise after the normalisation and returns the difference to the image's score.
    Cost: one forward pass per image and fraction, and a sparse linear system for each, which takes longer.
    """
    return _road(model, x, target, heat, False, fractions, noise, generator, batch_size, progress)


def road_lerf(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    heat: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Tensor:
    """ROAD, least relevant first: as `road_morf` with the coldest pixels removed. (N,) in [0,1]; higher is better."""
    return _road(model, x, target, heat, True, fractions, noise, generator, batch_size, progress)


def road_combined(road_morf: Tensor, road_lerf: Tensor) -> Tensor:
    """(LeRF - MoRF) / 2 from the two scores (N,), as grad-cam's ROADCombined. (N,) in [-1/2, 1/2]; higher is better."""
    return (road_lerf - road_morf) / 2


def impute(x: Tensor, removed: Tensor) -> Tensor:
    """Linear imputation (Rong et al. 2022): each removed pixel is the weighted mean of its eight neighbours, all at once.

    x (N,3,H,W), removed (N,H,W) bool -> (N,3,H,W). Weights 1/6 (edge) and 1/12 (corner), renormalised at the border. One
    sparse positive definite system per image, solved exactly in float64. Raises ValueError where nothing is left to impute from.
    """
    if not isinstance(removed, Tensor) or removed.shape != (len(x), *x.shape[2:]) or removed.dtype != torch.bool:
        found = f"{removed.dtype} {tuple(removed.shape)}" if isinstance(removed, Tensor) else type(removed).__name__
        raise ValueError(f"removed must be bool {(len(x), *x.shape[2:])}, not {found}")
    if removed.flatten(1).all(1).any():
        raise ValueError("all pixels of an image are removed: nothing is left to impute from")
    pixels = x.detach().double().cpu().numpy()
    filled = [_fill(image, mask) for image, mask in zip(pixels, removed.cpu().numpy(), strict=True)]
    return torch.where(removed[:, None], torch.from_numpy(np.stack(filled)).to(x), x)


def _fill(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """`image` (3,H,W) with the `removed` (H,W) pixels solved for: Σ_j w_ij u_i - Σ_(j removed) w_ij u_j = Σ_(j kept) w_ij x_j."""
    if not removed.any():
        return image
    height, width = removed.shape
    number = np.full((height + 2, width + 2), -2)  # -2 outside of the image, -1 kept, else the number of the unknown
    number[1:-1, 1:-1] = -1
    number[1:-1, 1:-1][removed] = np.arange(removed.sum())
    values = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    row, column = np.nonzero(removed)
    own, n = np.arange(len(row)), len(row)
    diagonal, right_side, entries = np.zeros(n), np.zeros((n, len(image))), []
    for (down, right), weight in NEIGHBOURS.items():
        i, j = row + 1 + down, column + 1 + right
        neighbour = number[i, j]
        diagonal += weight * (neighbour > -2)
        kept, unknown = neighbour == -1, neighbour >= 0
        right_side[kept] += weight * values[:, i[kept], j[kept]].T
        entries.append((np.full(unknown.sum(), -weight), own[unknown], neighbour[unknown]))
    entries.append((diagonal, own, own))
    data, rows, columns = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = csc_array((data, (rows, columns)), shape=(n, n))
    # symmetric and diagonally dominant: no pivoting is needed, and an ordering for symmetric matrices fills in less
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    filled = image.copy()
    filled[:, removed] = factors.solve(right_side).T
    return filled


def _inside(fraction: float, pixels: int) -> bool:
    return isinstance(fraction, Real) and 0 < fraction < 1 and round(fraction * pixels) < pixels


def _road(model, x, target, heat, coldest_first, fractions, noise, generator, batch_size, progress) -> Tensor:
    target, rank, pixels = check_input(x, target), ranks(check_heat(heat, x)), x[0, 0].numel()
    levels = tuple(fractions) if isinstance(fractions, Iterable) and not isinstance(fractions, str) else ()
    if not levels or not all(_inside(level, pixels) for level in levels):
        raise ValueError(f"fractions must lie in (0,1) and leave some of the {pixels} pixels, not {fractions!r}")
    if not isinstance(noise, Real) or not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be a standard deviation, 0 or more, not {noise!r}")
    counts = torch.tensor([round(fraction * pixels) for fraction in levels], device=x.device)
    if coldest_first:
        rank = pixels - 1 - rank
    scale = noise / channels(spec_of(model).std, x)
    drawn = []
    for image in x:
        draws = seeded(generator)
        drawn.append(torch.randn(image.shape, generator=draws, device=draws.device, dtype=torch.float64))
    drawn = torch.stack(drawn).to(x) * scale

    def perturb(image: Tensor, step: Tensor) -> Tensor:
        removed = (rank[image] < counts[step, None]).view(-1, *x.shape[2:])
        return impute(x[image], removed) + removed[:, None] * drawn[image]

    options = {"batch_size": batch_size, "name": "ROAD", "progress": progress}
    log_p, _ = log_probabilities(model, target, perturb, len(counts), **options)
    return log_p.exp().mean(1)
