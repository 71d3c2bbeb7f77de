"""Estimators of the Shapley value of any game.

A game has `n_players` and `value(masks (M,n) of 0 and 1) -> (M,)`. An estimator knows nothing else of it, spends at most
`budget` evaluations, draws only from `generator`, and reports what it spent. Sources: Shapley 1953; Castro et al. 2009
(permutations); Lundberg & Lee 2017, Covert & Lee 2021 (KernelSHAP, paired); Musco & Witter 2024 (leverage sampling).
"""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from tqdm import tqdm

from .checks import check_count, seeded

MAX_EXACT = 20  # players: 2^20 coalitions
MAX_BUDGET = 10**7  # coalitions are drawn at once: this many of 49 players take gigabytes


class BudgetError(ValueError):
    """A budget that does not pay for what an estimator needs at least."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Shapley values (n,) with their standard errors (n,), in float64 and in the payoff's unit.

    standard_error is 0 where the values are exact, and infinite where the budget is too small to tell.
    efficiency_gap: sum of the values minus (v(all) - v(none)), before any correction.
    """

    values: Tensor
    standard_error: Tensor
    n_evaluations: float
    efficiency_gap: float


def exact(game) -> Estimate:
    """The definition (Shapley 1953): all 2^n coalitions. Raises ValueError for more than 20 players."""
    n = _players(game)
    if n > MAX_EXACT:
        raise ValueError(
            f"exact values need 2^n evaluations: at most {MAX_EXACT} players, not {n}. Take an estimator instead"
        )
    coalitions = torch.arange(2**n)
    masks = (coalitions[:, None] >> torch.arange(n)) & 1
    v = _value(game, masks)
    size = masks.sum(1)
    # |S|! (n-|S|-1)! / n! for a coalition S without the player
    weight = torch.tensor([1 / (n * math.comb(n - 1, k)) for k in range(n)], dtype=torch.float64)
    values = torch.empty(n, dtype=torch.float64)
    for i in range(n):
        without = masks[:, i] == 0
        values[i] = (weight[size[without]] * (v[coalitions[without] + 2**i] - v[without])).sum()
    return Estimate(values, torch.zeros(n, dtype=torch.float64), 2**n, float(values.sum() - v[-1] + v[0]))


def permutation(game, budget: float, generator: torch.Generator) -> Estimate:
    """Marginal contributions along random orders of the players, each with its reverse. Unbiased and efficient.

    Cost: 2(n-1) evaluations a pair of orders, and 2; ValueError if the budget does not pay for one pair.
    """
    n, generator = _players(game), seeded(generator)
    pairs = _whole(budget) // max(2 * (n - 1), 1)
    if pairs < 1:
        raise BudgetError(
            f"{n} players need a budget of at least {2 * n} evaluations for one pair of orders, not {budget}"
        )
    ranks = torch.stack([torch.randperm(n, generator=generator).argsort() for _ in range(pairs)])
    ranks = torch.stack([ranks, n - 1 - ranks], 1)  # (pairs,2,n): when each player joins
    steps = torch.arange(n - 1)
    ends, inside = (
        _ends(game),
        _value(game, (ranks[:, :, None] <= steps[:, None]).reshape(-1, n)).view(pairs, 2, n - 1),
    )
    v = torch.cat([ends[0].expand(pairs, 2, 1), inside, ends[1].expand(pairs, 2, 1)], 2)
    contributions = v.diff(dim=2).gather(2, ranks).mean(1)  # (pairs,n)
    return _mean(contributions, 2 + pairs * 2 * (n - 1), ends)


def per_position(game, budget: float, generator: torch.Generator, *, progress: bool | None = False) -> Estimate:
    """Shap-CAM's sampling (Zheng et al. 2022): m = (budget - 2) / 2n coalitions of its own for every player. Unbiased.

    A coalition is the set of those before the player in a random order. Cost: 2mn evaluations, and 2 for the gap.
    progress: show a bar over the players; None: on a terminal.
    """
    n, generator = _players(game), seeded(generator)
    m = _whole(budget) // (2 * n)
    if m < 1:
        raise BudgetError(
            f"{n} players need a budget of at least {2 * n + 2} evaluations for one coalition each, not {budget}"
        )
    ends, contributions = _ends(game), torch.empty(m, n, dtype=torch.float64)
    disable = None if progress is None else not progress
    for i in tqdm(range(n), desc="Shap-CAM", leave=False, disable=disable):
        order = torch.rand(m, n, generator=generator)
        without = order < order[:, i : i + 1]
        together = without.clone()
        together[:, i] = True
        contributions[:, i] = _value(game, together) - _value(game, without)
    return _mean(contributions, 2 + 2 * m * n, ends)


def kernel_shap(game, budget: float, generator: torch.Generator) -> Estimate:
    """KernelSHAP in its best known form: coalitions of uniform size ("leverage"), each with its complement.

    A weighted least squares fit with v(none) and v(all) exact. Consistent, not unbiased. Cost: the budget, if even.
    The standard error is that of the regression with residuals corrected for leverage (HC3).
    """
    n, generator = _players(game), seeded(generator)
    pairs = _whole(budget) // 2
    if pairs < 1 or n < 2:
        raise BudgetError(f"KernelSHAP needs at least 2 players and a budget of 4, not {n} and {budget}")
    masks, ends = paired_coalitions(n, pairs, generator), _ends(game)
    total = float(ends[1] - ends[0])
    design, target = paired_design(masks, _value(game, masks), total)
    values = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution[:, 0]
    error = torch.full((n,), torch.inf, dtype=torch.float64)
    if pairs > n:
        solve = torch.linalg.pinv(design)  # (n,pairs)
        leverage = (design * solve.T).sum(1)
        error = (solve * ((target - design @ values) / (1 - leverage).clamp(min=1e-6))).square().sum(1).sqrt()
    values = values - values.mean() + total / n
    return Estimate(values, error, 2 + 2 * pairs, float(values.sum()) - total)


def paired_coalitions(n: int, pairs: int, generator: torch.Generator) -> Tensor:
    """`pairs` coalitions of uniform size 1 … n-1, then their complements: (2·pairs, n) bool."""
    size = torch.randint(1, n, (pairs, 1), generator=generator)
    masks = torch.rand(pairs, n, generator=generator).argsort(1).argsort(1) < size
    return torch.cat([masks, ~masks])


def paired_design(masks: Tensor, v: Tensor, total: float) -> tuple[Tensor, Tensor]:
    """KernelSHAP's regression of paired coalitions (2·pairs,n): weighted design (pairs,n) and target (pairs,).

    The Shapley value depends on the odd part (v(S) - v(complement)) / 2 alone, so a pair is one equation:
    odd(S) = sum over S of values - total / 2. It is centred on |S| / n, so that the solution is shifted by total / n.
    """
    pairs = len(masks) // 2
    m = masks[:pairs].double()
    share = m.mean(1, keepdim=True)
    weight = (share * (1 - share)) ** -0.5
    odd = (v[:pairs] - v[pairs:]) / 2 - (share[:, 0] - 0.5) * total
    return (m - share) * weight, odd * weight[:, 0]


def _whole(budget: float) -> int:
    """What a budget leaves behind the evaluations of no and of all players."""
    return int(check_budget(budget)) - 2


def check_budget(budget: float) -> float:
    """`budget` itself. Raises BudgetError for what is no number of evaluations, or one that no memory holds."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not -MAX_BUDGET <= budget <= MAX_BUDGET:
        raise BudgetError(f"a budget is a finite number of evaluations, at most {MAX_BUDGET:,}, not {budget!r}")
    return budget


def _players(game) -> int:
    return check_count("a game's n_players", getattr(game, "n_players", None))


def checked_value(game, masks: Tensor) -> Tensor:
    """The payoffs (M,) of masks (M,n) as float64 on the CPU. Raises ValueError for a game that gives anything else."""
    payoffs = game.value(masks)
    if not isinstance(payoffs, Tensor) or payoffs.shape != masks.shape[:1] or payoffs.is_complex():
        found = f"{payoffs.dtype} {tuple(payoffs.shape)}" if isinstance(payoffs, Tensor) else type(payoffs).__name__
        raise ValueError(f"a game's value must be a real tensor ({len(masks)},), a payoff for each mask, not {found}")
    if not payoffs.isfinite().all():
        raise ValueError("a game's payoffs contain NaN or infinite values: no Shapley value can be made of them")
    return payoffs.double().cpu()


def _value(game, masks: Tensor) -> Tensor:
    return checked_value(game, masks.bool())


def _ends(game) -> Tensor:
    return _value(game, torch.tensor([[0], [1]]).expand(2, game.n_players))


def _mean(contributions: Tensor, n_evaluations: int, ends: Tensor) -> Estimate:
    values = contributions.mean(0)
    error = (
        contributions.std(0) / len(contributions) ** 0.5
        if len(contributions) > 1
        else torch.full_like(values, torch.inf)
    )
    return Estimate(values, error, n_evaluations, float(values.sum() - ends[1] + ends[0]))
