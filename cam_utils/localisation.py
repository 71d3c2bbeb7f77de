"""Is the map where the object is? Metrics of a map and a known region, without the network: `f(heat, region) -> (N,) float64`.

heat (N,H,W) in [0,1] at the image's resolution (`postprocess.heatmap`), region (N,H,W) bool. They judge the network together
with the method: a network that looks at the background has right explanations that lie outside the object.
A map that is zero everywhere points nowhere and gets 0; so does an empty region.
"""

from numbers import Real

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from .perturb import check_heat


def energy_pointing_game(heat: Tensor, region: Tensor) -> Tensor:
    """Share of the heat inside the region, Σ_region heat / Σ heat (Wang et al. 2020, Score-CAM). (N,) in [0,1].

    Higher is better. Traps: chance is the region's share of the image (a map of ones gets that), so compare regions of the
    same size only; a single hot pixel inside is perfect, however much of the object is missed.
    """
    heat, region = check_heat(heat).double(), _check_region(region, heat)
    return _share((heat * region).sum((1, 2)), heat.sum((1, 2)))


def pointing_game(heat: Tensor, region: Tensor, *, tolerance: float = 0) -> Tensor:
    """Is the hottest pixel in the region, or at most `tolerance` pixels from it (Zhang et al. 2018)? (N,) in [0,1].

    Higher is better; the mean over images is the accuracy; the paper's tolerance is 15. 0 or 1, except where several
    pixels share the maximum, up to rounding (1e-5 of it): then the share of them that hit, which is the expectation of a
    random choice; the four pixels in the middle of an upsampled cell do so. Traps: blind
    to all but one pixel; the centre of the image is a strong guess for photographs (`baselines.centre_gaussian`).
    """
    heat, region = check_heat(heat), _check_region(region, heat)
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of pixels, 0 or more, not {tolerance!r}")
    if tolerance:
        near = [torch.from_numpy(distance_transform_edt(~r.cpu().numpy()) <= tolerance) & r.any().cpu() for r in region]
        region = torch.stack(near).to(region.device)
    hottest = (heat >= (1 - 1e-5) * heat.amax((1, 2), keepdim=True)) & (heat > 0)
    return _share((hottest & region).sum((1, 2)).double(), hottest.sum((1, 2)).double())


def grid_pointing_game(maps: Tensor, cells: Tensor, index: Tensor) -> Tensor:
    """Share of the positive attribution in the right cell of a mosaic (Böhle et al. 2021; Rao et al. 2022). (N,) in [0,1].

    maps (N,H,W): signed, upsampled, not normalised (min-max would turn a negative minimum into the zero point); cells (G,H,W)
    bool, one mask a cell (`data.mosaic_masks`); index (N,): the cell that shows the target. Higher is better; chance is
    1/G. Traps: the network never saw mosaics; the evaluated layer's receptive field crosses the cells, and upsampling
    7×7 to 2×2 cells smears the middle row and column over both sides, so that 1 cannot be reached; only comparable at one layer.
    """
    if not isinstance(maps, Tensor) or maps.ndim != 3 or not maps.is_floating_point() or not maps.isfinite().all():
        raise ValueError(
            "maps must be a finite floating point tensor (N,H,W), signed and upsampled to the image's size"
        )
    if not isinstance(cells, Tensor) or cells.dtype != torch.bool or cells.shape[1:] != maps.shape[1:]:
        found = f"{cells.dtype} {tuple(cells.shape)}" if isinstance(cells, Tensor) else type(cells).__name__
        raise ValueError(f"cells must be a bool tensor (G,{maps.shape[1]},{maps.shape[2]}), not {found}")
    index = torch.as_tensor([] if index is None else index, device=maps.device)
    if index.shape != (len(maps),) or index.is_floating_point() or index.min() < 0 or index.max() >= len(cells):
        raise ValueError(f"index must name one of the cells 0 … {len(cells) - 1} for each of the {len(maps)} maps")
    positive = maps.double().relu()
    inside = torch.einsum("nhw,ghw->ng", positive, cells.to(positive))
    return _share(inside.gather(1, index.long()[:, None])[:, 0], positive.sum((1, 2)))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return (part / whole).where(whole > 0, 0)


def _check_region(region: Tensor, heat: Tensor) -> Tensor:
    if not isinstance(region, Tensor) or region.dtype != torch.bool or region.shape != heat.shape:
        found = f"{region.dtype} {tuple(region.shape)}" if isinstance(region, Tensor) else type(region).__name__
        raise ValueError(f"region must be a bool tensor {tuple(heat.shape)} like heat, not {found}")
    return region.to(heat.device)
