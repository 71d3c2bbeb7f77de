"""What is done to a signed map before it is shown: rectify, upsample, normalise. No method does any of it unasked."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rectify(maps: Tensor) -> Tensor:
    """ReLU: keep what speaks for the class. maps (N,h,w) -> (N,h,w) >= 0."""
    return maps.relu()


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear to the image's size (pixels; an int means square). maps (N,h,w) -> (N,H,W)."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    if min(size) < 1:
        raise ValueError(f"a map has at least one pixel: the size cannot be {size}")
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def normalize(maps: Tensor) -> Tensor:
    """Min-max, each map by itself, to [0,1]; a map that is constant up to rounding becomes zeros. (N,h,w) -> (N,h,w).

    Raises ValueError for NaN and infinite values.
    """
    if not maps.isfinite().all():
        raise ValueError("a map with NaN or infinite values cannot be shown: look at the network's input and weights")
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varies = high - low > 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    return ((maps - low) / (high - low)).where(varies, 0).clamp(0, 1)


def heatmap(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The usual picture of a CAM: rectified, upsampled, normalised. maps (N,h,w) -> (N,H,W) in [0,1]."""
    return normalize(upsample(rectify(maps.float()), size))
