"""Vision transformers: the tokens of the patches as feature maps, so that every method and game works on them unchanged."""

import copy
import math

import torch
from torch import Tensor, nn

from .checks import check_count
from .layers import layer_name


def in_grid(model: nn.Module, layer: str, *, prefix: int | None = None) -> nn.Module:
    """A copy of a transformer in which `layer`.grid puts out the layer's tokens as maps (N,C,h,w); it computes the same.

    layer: dotted name of a module that puts out tokens, (N,prefix+h·w,C) as in a ViT or (N,h,w,C) as in a Swin. prefix: how
    many tokens before those of the patches (class token, registers; None: what timm says, else 0) go past the grid
    untouched. The grid is timm's `patch_embed.grid_size`, else square. The copy shares the parameters; load weights
    before, since the names of the layer's own change. A head that reads the class token alone does not see the patches
    of the last block: take the block before it.
    """
    layer = layer_name(model, layer)  # says which there are
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    prefix = getattr(model, "num_prefix_tokens", 0) if prefix is None else check_count("prefix", prefix, 0)
    shape = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    model.set_submodule(layer, TokenGrid(model.get_submodule(layer), prefix, shape))
    return model


class TokenGrid(nn.Module):
    """A block of a transformer whose tokens pass through `grid` as maps (N,C,h,w) on their way on."""

    def __init__(self, block: nn.Module, prefix: int, shape: tuple[int, int] | None):
        super().__init__()
        self.block, self.grid, self.prefix, self.shape = block, nn.Identity(), prefix, shape

    def forward(self, *args, **options) -> Tensor:
        """The block's tokens, as they are; what replaces `grid`'s output replaces the tokens of the patches."""
        tokens = self.block(*args, **options)
        if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"the layer must put out tokens (N,n,C) or (N,h,w,C), not {found}: choose a block of a transformer"
            )
        if tokens.ndim == 4:
            return self.grid(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        patches = tokens[:, self.prefix :].transpose(1, 2)
        maps = self.grid(patches.unflatten(2, self.shape or _square(patches.shape[2])))
        return torch.cat([tokens[:, : self.prefix], maps.flatten(2).transpose(1, 2)], 1)


def _square(n: int) -> tuple[int, int]:
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(
            f"{n} tokens are no square grid: is the number of tokens before the patches right (prefix=...)?"
        )
    return side, side
