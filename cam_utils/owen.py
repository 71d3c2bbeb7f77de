"""Owen-CAM's estimator: Shapley values of a layer's game from a few gradients, then corrected until they converge.

Owen (1972): phi_i is the mean slope of the game's multilinear extension along the diagonal (q,...,q), 0 <= q <= 1. The
network faded along that diagonal stands in for the extension, and one backward pass gives the slopes of all players:

1. Slopes of the log-odds at Gauss-Legendre nodes q (and, with more budget, at random coalitions) are averaged to a weight
   for every player that may change with the coalition's size d: b(d) = b0 + d·b1.
2. They make a surrogate game sigma(l + polynomial(d, l)), l = b(d)·x, x = 2m - 1 in {-1,1}: a CNN's head is bent by the
   softmax and by how much of the image is there, and these two bends are what the polynomial is fitted to. The surrogate's
   Shapley values are computed by coalitions of its own, which cost no network.
3. With more budget, coalitions in pairs with their complements are evaluated, and the Shapley values of what the surrogate
   leaves are regressed on them (KernelSHAP's geometry as a Gaussian model) and added: a regression adjustment (Witter et
   al. 2025). The error then falls with the budget, and gets a standard error.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checks import seeded
from .games import LayerGame
from .layers import GRADIENT_COST
from .shapley import MAX_EXACT, BudgetError, Estimate, check_budget, checked_value, exact, paired_design

NODES = 8  # of the Gauss-Legendre rule; chosen by measurement, see notebook 06
DEFAULT_BUDGET = 2 + NODES * GRADIENT_COST  # 22: the gradients along the diagonal, and both ends
_EDGE = 1e-5  # probabilities are kept this far from 0 and 1 where their log-odds are needed
_CORNER = 1e-4  # where all probabilities of a game are this close to 0 or to 1, everything is measured in smaller units


def owen(game: LayerGame, budget: float = DEFAULT_BUDGET, generator: torch.Generator | None = None) -> Estimate:
    """Shapley values of `game` for at most `budget` head evaluations; best on a game with deferred=True.

    Up to DEFAULT_BUDGET nothing is drawn from `generator` (None: seed 0). The standard error is infinite until the
    correction begins, at DEFAULT_BUDGET + max(n, 64). Where the budget pays for all 2^n coalitions the values are exact.
    Raises BudgetError below a budget of 5 and above `shapley.MAX_BUDGET`.
    """
    check_budget(budget)
    if game.n_players <= MAX_EXACT and 2**game.n_players <= budget:
        return exact(game)
    return owen_and_surrogate(game, budget, generator)[0]


def owen_and_surrogate(
    game: LayerGame, budget: float = DEFAULT_BUDGET, generator: torch.Generator | None = None
) -> tuple[Estimate, "Surrogate"]:
    """As `owen`, together with the surrogate game, which costs no network to evaluate."""
    n = game.n_players
    generator = seeded(generator)
    nodes, pairs, paired = _plan(budget, n)
    q = torch.from_numpy(np.polynomial.legendre.leggauss(nodes)[0] + 1)[:, None] / 2
    faded = torch.cat([q.expand(nodes, n), _owen_coalitions(n, pairs, generator)])  # (G,n): where gradients are taken
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, n)
    coalitions = torch.cat([ends, _paired_coalitions(n, paired, generator)])
    v, gradient = (t.double().cpu() for t in game.gradient(faded))
    u = checked_value(game, coalitions)
    total, spent = float(u[1] - u[0]), GRADIENT_COST * len(faded) + len(coalitions)

    link = _link(torch.cat([v, u])) if game.payoff == "probability" else Identity
    weight = link.weight(v)
    slopes = gradient / (2 * link.derivative(v)[:, None])  # of the score, by x = 2m - 1
    b = _mean_slopes(faded[:nodes], slopes[:nodes], weight[:nodes])
    if (
        pairs
    ):  # slopes at coalitions are noisy, those on the diagonal biased: the more of the former, the more they count
        share = 2 * pairs / (2 * pairs + 3 * nodes)
        b = (1 - share) * b + share * _mean_slopes(faded[nodes:], slopes[nodes:], weight[nodes:])
    surrogate = Surrogate(b, link)
    one = torch.ones(2, dtype=torch.float64)
    surrogate.fit_size(
        torch.cat([faded[:nodes], ends]), torch.cat([v[:nodes], u[:2]]), torch.cat([weight[:nodes], one])
    )
    if not paired:
        values, _ = surrogate.shapley(256)
        gap = float(values.sum()) - total
        return Estimate(values - gap / n, torch.full_like(values, torch.inf), spent, gap), surrogate

    surrogate.fit_size_and_score(torch.cat([coalitions, faded[nodes:]]), torch.cat([u, v[nodes:]]))
    left = u - surrogate.value(coalitions)
    values, own_error = surrogate.shapley(max(2048, 2 * paired))
    correction, error = residual_values(coalitions[2:], left[2:], float(left[1] - left[0]), values)
    values = values + correction
    return Estimate(values, (error**2 + own_error**2).sqrt(), spent, float(values.sum()) - total), surrogate


def _plan(budget: float, n: int) -> tuple[int, int, int]:
    """How many nodes on the diagonal, pairs of gradients at coalitions, and pairs of evaluated coalitions to pay for."""
    if not 2 + GRADIENT_COST <= check_budget(budget):
        raise BudgetError(f"Owen-CAM needs a budget of at least 5 head evaluations, not {budget}")
    nodes = min(int((budget - 2) / GRADIENT_COST), NODES)
    spare = budget - 2 - GRADIENT_COST * nodes
    corrected = spare >= max(n, 64)
    gradients = min(0.75 * spare, n * GRADIENT_COST) if corrected else spare
    pairs = int(gradients / (2 * GRADIENT_COST))
    if pairs < 12:  # too few to be better than the diagonal alone
        pairs = 0
    return nodes, pairs, int((spare - 2 * pairs * GRADIENT_COST) / 2) if corrected else 0


@dataclass(frozen=True)
class SigmoidLink:
    """The bend of a probability: payoff = sigmoid(score), between `low` and `high`, in whose distance the floors are."""

    low: float = 0.0
    high: float = 1.0

    @property
    def scale(self) -> float:
        """Of differences between payoffs."""
        return self.high - self.low

    def payoff(self, score: Tensor) -> Tensor:
        """1 / (1 + exp(-score))."""
        return score.sigmoid().clamp(self.low, self.high)

    def score(self, v: Tensor) -> Tensor:
        """log(v / (1 - v))."""
        return self._inside(v).logit()

    def derivative(self, v: Tensor) -> Tensor:
        """Of the payoff by the score."""
        v = self._inside(v)
        return (v * (1 - v)).clamp(min=1e-4 * self.scale)

    def weight(self, v: Tensor) -> Tensor:
        """How much a slope of the score tells about the payoff, relative to the others."""
        derivative = self.derivative(v)
        return (derivative / derivative.mean()).clamp(0.1, 10)

    def _inside(self, v: Tensor) -> Tensor:
        edge = _EDGE * self.scale
        return v.clamp(edge, 1 - max(edge, 1e-16))


LogOdds = SigmoidLink()


def _link(v: Tensor) -> SigmoidLink:
    """For the probabilities v: a class that is next to impossible, or next to certain, has room in a corner only."""
    low, high = float(v.min()), float(v.max())
    if high < _CORNER:
        return SigmoidLink(high=max(8 * high, 1e-100))
    if low > 1 - _CORNER:
        return SigmoidLink(low=1 - max(8 * (1 - low), 1e-15))
    return LogOdds


class Identity:
    """Logits and log-odds are taken as they are."""

    scale = 1.0
    payoff = score = staticmethod(lambda v: v)
    derivative = weight = staticmethod(torch.ones_like)


class Surrogate:
    """The game payoff(l + polynomial(d, l)): l = (b0 + d·b1)·x, x = 2m - 1, d the mean of x, b (2,n)."""

    def __init__(self, b: Tensor, link: SigmoidLink | type[Identity] = LogOdds):
        self.b, self.link = b, link
        self.terms, self.coefficients, self.scale = [(i, 0) for i in range(4)], torch.zeros(4, dtype=torch.float64), 1.0

    def value(self, masks: Tensor) -> Tensor:
        """Payoffs (M,) of masks (M,n) in [0,1]."""
        return self.link.payoff(self._bent(*self._score(masks)))

    def _score(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        x = 2 * masks.double() - 1
        d = x.mean(1)
        return d, x @ self.b[0] + d * (x @ self.b[1])

    def _bent(self, d: Tensor, score: Tensor) -> Tensor:
        t = (score / self.scale).clamp(-2, 2)
        return score + sum(c * d**i * t**j for c, (i, j) in zip(self.coefficients.tolist(), self.terms, strict=True))

    def fit_size(self, masks: Tensor, payoffs: Tensor, weight: Tensor) -> None:
        """A cubic in the coalition's size, by weighted least squares on the scores."""
        d, score = self._score(masks)
        design = d[:, None] ** torch.arange(4)
        self.coefficients = _ridge(design, self.link.score(payoffs) - score, weight, 1e-3 * len(d))

    def fit_size_and_score(self, masks: Tensor, payoffs: Tensor, degree: int = 3, steps: int = 4) -> None:
        """A polynomial in size and score, by damped Gauss-Newton steps on the payoffs."""
        d, score = self._score(masks)
        start = dict(zip(self.terms, self.coefficients.tolist(), strict=True))
        self.scale = max(float(score.abs().max()), 1e-6)
        self.terms = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
        self.coefficients = torch.tensor([start.get(term, 0.0) for term in self.terms], dtype=torch.float64)
        t = (score / self.scale).clamp(-2, 2)
        design = torch.stack([d**i * t**j for i, j in self.terms], 1)
        for _ in range(steps):
            now = self.link.payoff(self._bent(d, score))
            bend = self.link.derivative(now).clamp(min=1e-3 * self.link.scale)
            step = _ridge(design * bend[:, None], payoffs - now, torch.ones_like(d), 1e-3 * float(bend.square().sum()))
            self.coefficients = self.coefficients + step

    def shapley(self, pairs: int) -> tuple[Tensor, Tensor]:
        """Shapley values (n,) by Owen's integral over 2·pairs coalitions, each read out at every player; standard errors (n,).

        Deterministic. The errors are those of plain sampling, on the careful side: the coalitions are stratified.
        """
        n = self.b.shape[1]
        values, squares = torch.zeros(2, n, dtype=torch.float64)
        for masks in _owen_masks(n, pairs, torch.Generator().manual_seed(0)).split(256):
            x = 2 * torch.cat([masks, ~masks]).double() - 1
            d = x.mean(1, keepdim=True)
            changed = d - 2 * x / n  # the size after player i has changed sides
            y0, y1 = (x @ self.b[0])[:, None], (x @ self.b[1])[:, None]
            here = self._bent(d, y0 + d * y1)
            there = self._bent(changed, y0 - 2 * x * self.b[0] + changed * (y1 - 2 * x * self.b[1]))
            change = ((self.link.payoff(here) - self.link.payoff(there)) * x).view(2, -1, n).mean(0)
            values += change.sum(0)
            squares += change.square().sum(0)
        values = values / pairs
        return values, ((squares / pairs - values**2).clamp(min=0) / pairs).sqrt()


def residual_values(masks: Tensor, residual: Tensor, total: float, surrogate: Tensor) -> tuple[Tensor, Tensor]:
    """Shapley values (n,) of a residual game from paired coalitions, and their standard errors (n,).

    KernelSHAP's regression as a Gaussian model: values_i ~ N(0, t·w_i²·s²), noise s², t on a grid, weighed by its marginal
    likelihood; w_i² is even for one half, and for the other like the square of the surrogate's own value of player i,
    which is further off where it is large. The mean takes a prior on t that favours a small correction, t^-1/2;
    the error one that favours, a little, a large spread, t^0.1: chosen by coverage on the development photos.
    """
    design, target = paired_design(masks, residual, total)
    width = (0.5 + 0.5 * surrogate.square() / surrogate.square().mean().clamp(min=1e-300)).sqrt()
    design = design * width
    pairs, n = design.shape
    u, e, vt = torch.linalg.svd(design, full_matrices=False)
    c = u.T @ target
    t = torch.logspace(-5, 3, 65, dtype=torch.float64)[:, None]
    k = 1 + t * e**2  # (65,n)
    noise = ((c**2 / k).sum(1) + target @ target - c @ c) / pairs
    likelihood = -0.5 * (pairs * noise.clamp(min=1e-300).log() + k.log().sum(1))
    each = (t * e / k * c) @ vt  # (65,n): the posterior mean for every t
    mean = (likelihood - 0.5 * t[:, 0].log()).softmax(0) @ each
    careful = (likelihood + 0.1 * t[:, 0].log()).softmax(0)
    variance = careful @ (noise[:, None] * t * (1 - (1 - 1 / k) @ vt.square()) + (each - mean) ** 2)
    mean = width * mean
    return mean - mean.mean() + total / n, width * variance.clamp(min=0).sqrt()


def _mean_slopes(masks: Tensor, slopes: Tensor, weight: Tensor, ridge: float = 0.1) -> Tensor:
    """b (2,n) of slopes (G,n) = b0 + d·b1 for every player, weighted least squares with a small ridge on b1."""
    d = (2 * masks - 1).mean(1)
    penalty = torch.tensor([0.0, ridge], dtype=torch.float64) * weight.sum()
    return _ridge(torch.stack([torch.ones_like(d), d], 1), slopes, weight, penalty)


def _ridge(design: Tensor, target: Tensor, weight: Tensor, penalty: Tensor | float) -> Tensor:
    weighted = design.T * weight
    diagonal = torch.as_tensor(penalty, dtype=torch.float64).expand(design.shape[1]).diag()
    return torch.linalg.solve(weighted @ design + diagonal, weighted @ target)


def _owen_coalitions(n: int, pairs: int, generator: torch.Generator) -> Tensor:
    """`_owen_masks`, then their complements: (2·pairs,n)."""
    masks = _owen_masks(n, pairs, generator)
    return torch.cat([masks, ~masks]).double()


def _owen_masks(n: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Bernoulli(q) coalitions, q and every player's draw stratified over them: (pairs,n) bool."""
    q, draws = (_strata(pairs, k, generator) for k in (1, n))
    return draws < q


def _paired_coalitions(n: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Coalitions of uniform size 1 … n-1, stratified over the pairs, then their complements: (2·pairs,n)."""
    share = (torch.arange(pairs) + torch.rand(pairs, generator=generator)) / max(pairs, 1)
    size = 1 + (share * (n - 1)).long().clamp(max=n - 2)
    masks = torch.rand(pairs, n, generator=generator).argsort(1).argsort(1) < size[:, None]
    return torch.cat([masks, ~masks]).double()


def _strata(count: int, columns: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(count, columns, generator=generator, dtype=torch.float64).argsort(0)
    return (order + torch.rand(count, columns, generator=generator, dtype=torch.float64)) / max(count, 1)
