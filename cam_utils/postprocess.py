"""What is done to a signed map before it is shown: rectify, upsample, normalise. No method does any of it unasked."""

from collections.abc import Iterable
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor


def rectify(maps: Tensor) -> Tensor:
    """ReLU: keep what speaks for the class. maps (N,h,w) -> (N,h,w) >= 0."""
    return torch.relu(maps)


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear to the image's size (pixels; an int means square). maps (N,h,w) -> (N,H,W)."""
    both = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Iterable) else ()
    if len(both) != 2 or not all(isinstance(s, Integral) and s >= 1 for s in both):
        raise ValueError(
            f"a map has at least one pixel each way: the size must be one whole number or two, not {size!r}"
        )
    return F.interpolate(_check(maps)[:, None], size=tuple(map(int, both)), mode="bilinear", align_corners=False)[:, 0]


def normalize(maps: Tensor) -> Tensor:
    """Min-max, each map by itself, to [0,1]; a map that is constant up to rounding becomes zeros. (N,h,w) -> (N,h,w).

    Raises ValueError for NaN and infinite values.
    """
    low, high = _check(maps).amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    if not (high - low).isfinite().all():  # the difference of two huge values
        return normalize(maps / 4)
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return ((maps - low) / (high - low)).where(varies, 0).clamp(0, 1)


def heatmap(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The usual picture of a CAM: rectified, upsampled, normalised. maps (N,h,w) -> (N,H,W) in [0,1]."""
    return normalize(upsample(rectify(_check(maps).float()), size))


def _check(maps: Tensor) -> Tensor:
    if not isinstance(maps, Tensor) or maps.ndim != 3 or not maps.is_floating_point() or maps.numel() == 0:
        found = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"maps must be a floating point tensor (N,h,w), not {found}; a single map is map[None]")
    if not maps.isfinite().all():
        raise ValueError("a map with NaN or infinite values cannot be shown: look at the network's input and weights")
    return maps
