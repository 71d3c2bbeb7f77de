"""The game that Shap-CAM plays on one image: the players are the positions of a layer's feature maps.

A coalition S keeps its positions; an absent position takes the baseline: A_S = Ā + m ⊙ (A - Ā). Its worth is the payoff of
the rest of the network, the head. A coalition costs one evaluation of the head, or less (`LayerGame.kind`).
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from .checks import (
    check_baseline,
    check_choice,
    check_input,
    check_output,
    logits_of,
    slope,
)
from .layers import GRADIENT_COST, activation_of, count, evaluating, resolve_layer, split
from .payoffs import PAYOFFS, is_saturated, payoff_of, warn_of_saturation
from .pointwise import parts_of

_BATCH_ELEMENTS = 2**23  # of the largest tensor that is mixed, in one batch: about 32 MB in float32
_HALF = (torch.float16, torch.bfloat16)
_POINTWISE: WeakKeyDictionary[fx.GraphModule, bool] = WeakKeyDictionary()  # head: are its pointwise parts so in truth


class LayerGame:
    """The cooperative game of one image at one layer (Zheng et al. 2022, section 3).

    x: (1,3,H,W) preprocessed; target: the class id; payoff: "probability" (softmax), "logit" or "log_odds" of the target;
    baseline: "mean" of each channel over the positions, "zero", or a tensor that broadcasts to (1,C,h,w).
    deferred: how a *fractional* mask fades a position. False: at the layer, as the formula above says. True: behind the
    operations of the head that act on each position alone, which gives the same game on coalitions (masks of 0 and 1)
    and slopes closer to its multilinear extension. Raises ValueError for what no game can be made of.

    n_players = h·w, shape = (h, w), n_evaluations: evaluations so far, a gradient counting 2.5. kind: "head" (a
    coalition costs a pass through the head), "cached" (through what follows its first linear layer or pooling) or
    "additive" (the logits are sums of one cached vector per player: no pass at all). Construction costs one forward pass
    to the layer and, for the two cached kinds, a check against the head itself.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str,
        x: Tensor,
        target: Tensor | int,
        payoff: str = "probability",
        baseline: str | Tensor = "mean",
        *,
        deferred: bool = False,
    ):
        check_choice("payoff", payoff, PAYOFFS)
        self._target = check_input(x, target)
        if len(x) != 1:
            raise ValueError(
                f"a game is played on one image (1,3,H,W), not on {len(x)}: make one for each, x[i : i + 1]"
            )
        self._model, self.payoff, self.target, self.n_evaluations = model, payoff, int(self._target), 0
        self._looked = False  # for saturated probabilities
        features, self._head = split(model, resolve_layer(model, layer))
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            present = activation_of(features, x.clone() if x.is_inference() else x).detach()
            self.shape, self.dtype, self.device = tuple(present.shape[2:]), present.dtype, present.device
            self.n_players = self.shape[0] * self.shape[1]
            absent = _baseline(present, baseline)
            self._at_layer = ([absent], [present - absent], self._head)
            self._mixed, self._cache, self.kind = self._at_layer, None, "head"
            if isinstance(self._head, fx.GraphModule):
                self._prepare(absent, present)
        if deferred and self._mixed is not self._at_layer:
            self._at_layer = self._mixed

    def value(self, masks: Tensor) -> Tensor:
        """The payoff of each coalition. masks (M,n), bool or in [0,1] -> (M,). Cost: M evaluations.

        Warns once, `payoffs.SaturationWarning`, of a probability that is next to 0 or 1 on every coalition.
        """
        masks = self._check(masks)
        coalitions = bool(((masks == 0) | (masks == 1)).all())
        parts = self._mixed if coalitions else self._at_layer  # on coalitions the two are one game
        with evaluating(self._model), torch.inference_mode(False), torch.no_grad():
            values = torch.cat([self._payoff(batch, parts) for batch in masks.split(self._batch(parts))])
            self._warn_if_saturated(values)
        self._count(len(masks))
        return values

    def gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Payoffs (M,) and their derivatives by each player's presence (M,n). Cost: 2.5 M evaluations."""
        masks = self._check(masks)
        values, gradients = [masks.new_zeros(0)], [masks[:0]]
        with evaluating(self._model), torch.inference_mode(False), torch.enable_grad():
            for batch in masks.split(self._batch(self._at_layer)):
                batch = batch.clone().requires_grad_(True)
                value = self._payoff(batch, self._at_layer)
                gradients.append(slope(value.sum(), batch))
                values.append(value.detach())
        self._count(GRADIENT_COST * len(masks))
        return torch.cat(values), torch.cat(gradients)

    @property
    def position_logits(self) -> tuple[Tensor, Tensor]:
        """For kind "additive": the logits of no player (K,) and what each player adds to them (n,K)."""
        if self.kind != "additive":
            raise ValueError("the logits of this game are not sums over its players")
        base, rows, _, _ = self._cache
        return check_output(base, self._target)[0], rows

    def _prepare(self, absent: Tensor, present: Tensor) -> None:
        """Push both through what acts on each position alone; cache what is affine behind it; verify against the head."""
        parts = parts_of(self._head)
        absent, present = (_tuple(parts.pointwise(activation)) for activation in (absent, present))
        mixed = (absent, [p - a for p, a in zip(present, absent, strict=True)], parts.mixed)
        if self._head not in _POINTWISE:  # whether it is behaves the same for every image: looked at once
            _POINTWISE[self._head] = self._verify(lambda masks: parts.mixed(*_mix(mixed, masks, self.shape)))
        if not _POINTWISE[self._head]:
            return
        self._mixed = mixed
        if parts.affine is None or self.dtype in _HALF:  # which has too few digits to tell right from wrong
            return
        base = parts.affine(*absent)
        if not isinstance(base, Tensor) or base.numel() >= sum(t.numel() for t in absent):
            return
        for rows in (self._rows_by_pooling, self._rows_one_by_one):
            try:
                cache = (base, (rows(parts.affine) - base).flatten(1), base.shape[1:], parts.rest)
            except RuntimeError:  # not made for maps of one position
                continue
            if self._verify(partial(_cached_logits, cache)):
                self._cache, self.kind = cache, "additive" if parts.additive else "cached"
                return

    def _rows_by_pooling(self, affine: Callable) -> Tensor:
        """What each player alone gives, if pooling is all that happens to the positions: maps of one position will do."""
        absent, delta = self._mixed[:2]
        means = [a.mean((2, 3), keepdim=True) for a in absent]
        ones = [d[0].flatten(1).T[:, :, None, None] / self.n_players for d in delta]  # (n,C,1,1)
        return affine(*[m + d for m, d in zip(means, ones, strict=True)])

    def _rows_one_by_one(self, affine: Callable) -> Tensor:
        eye = torch.eye(self.n_players, dtype=self.dtype, device=self.device)
        step = max(1, _BATCH_ELEMENTS // sum(t.numel() for t in self._mixed[0]))
        return torch.cat([affine(*_mix(self._mixed, batch, self.shape)) for batch in eye.split(step)])

    def _verify(self, fast: Callable) -> bool:
        """Whether a faster way to the logits agrees with the head itself on random coalitions; never assumed."""
        masks = self._random_coalitions(2)
        true = logits_of(self._head, *_mix(self._at_layer, masks, self.shape), target=self._target)
        found = fast(masks)
        tolerance = 1e3 * torch.finfo(self.dtype).eps * true.abs().max()
        return found.shape == true.shape and bool((true - found).abs().max() <= tolerance)

    def _random_coalitions(self, count: int) -> Tensor:
        masks = torch.rand(count, self.n_players, generator=torch.Generator().manual_seed(0)) < 0.5
        return masks.to(self.device, self.dtype)

    def _payoff(self, masks: Tensor, parts: tuple) -> Tensor:
        if self._cache is not None and parts is self._mixed:
            logits = check_output(_cached_logits(self._cache, masks), self._target)
        else:
            logits = logits_of(parts[2], *_mix(parts, masks, self.shape), target=self._target)
        return payoff_of(logits, self.target, self.payoff)

    def _warn_if_saturated(self, values: Tensor) -> None:
        """Looked at once, where it costs nothing; random coalitions, not counted, settle a suspicion."""
        if self._looked or len(values) < 2:
            return
        self._looked = True
        if self.payoff == "probability" and is_saturated(values):
            if is_saturated(self._payoff(self._random_coalitions(16), self._mixed)):
                warn_of_saturation(values, self.target)

    def _batch(self, parts: tuple) -> int:
        cached = self._cache is not None and parts is self._mixed
        elements = self._cache[1].shape[1] if cached else sum(t.numel() for t in parts[0])
        return max(1, min(4096 if cached else 32, _BATCH_ELEMENTS // elements))  # larger ones are slower: page faults

    def _check(self, masks: Tensor) -> Tensor:
        try:
            masks = torch.as_tensor(masks)
        except (TypeError, ValueError, RuntimeError):  # None, strings, rows of different lengths
            raise ValueError(f"masks must be numbers (M,{self.n_players}), not {type(masks).__name__}") from None
        if masks.ndim != 2 or masks.shape[1] != self.n_players or masks.is_complex():
            raise ValueError(f"masks must be real (M,{self.n_players}), not {masks.dtype} {tuple(masks.shape)}")
        if masks.is_meta or masks.layout != torch.strided:
            raise ValueError(f"masks must be dense and have values, not {masks.layout} on {masks.device}")
        if not bool(((masks >= 0) & (masks <= 1)).all()):
            raise ValueError("masks must lie in [0,1], without NaN: 1 keeps a position, 0 takes it out")
        return masks.to(self.device, self.dtype)

    def _count(self, evaluations: float) -> None:
        self.n_evaluations += evaluations
        count(evaluations)


def _mix(parts: tuple, masks: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    m = masks.view(-1, 1, *shape)
    return [absent + m * delta for absent, delta in zip(parts[0], parts[1], strict=True)]


def _cached_logits(cache: tuple, masks: Tensor) -> Tensor:
    base, rows, shape, rest = cache
    return rest((base.flatten(1) + masks @ rows).view(-1, *shape))


def _tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else output


def _baseline(present: Tensor, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        return check_baseline(baseline, present, "activation")
    if not isinstance(baseline, str) or baseline not in ("mean", "zero"):
        raise ValueError(f'baseline must be "mean", "zero" or a tensor, not {baseline!r}')
    mean = present.mean((2, 3), keepdim=True)
    return (mean if baseline == "mean" else torch.zeros_like(mean)).expand_as(present)
