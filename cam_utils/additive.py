"""Shapley values of v(S) = softmax(z0 + sum of delta over S)[target], or of its log-odds, from z0 and delta alone."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .games import LayerGame
from .payoffs import PAYOFFS, payoff_of
from .shapley import Estimate

_TAPS = {3: 3, 4: 3, 5: 5, 6: 3, 7: 3, 8: 29, 9: 17, 10: 9, 11: 5, 12: 83}  # primitive polynomials x^m + bits
MAX_PLAYERS = (2 ** max(_TAPS) - 1) // 3  # 1365: more than that have no design of coalitions here
_NODES = 12  # of the Gauss-Legendre rule in q


def additive_values(game: LayerGame) -> Estimate:
    """Shapley values of a game whose logits are sums over the players (kind "additive"), without the network.

    The logit's are in closed form; those of the probability and the log-odds are integrated, with a relative error below
    1e-3 at the layer before the pooling with the mean as baseline, and of a few 1e-3 elsewhere. Raises ValueError where
    floating point numbers do not reach that far, see `within_reach`.
    """
    z0, delta = game.position_logits
    if game.n_players <= MAX_PLAYERS and not within_reach(game):
        raise ValueError("logits this large, or a probability this close to 0 or 1, are beyond this method: take owen")
    if game.payoff == "logit":
        values = delta[:, game.target].double()
    else:
        values = softmax_additive_shapley(z0, delta, game.target, game.payoff)
    values = values.cpu()
    ends = payoff_of(_ends(z0, delta), game.target, game.payoff).double()
    return Estimate(values, torch.zeros_like(values), 0, float(values.sum() - ends[1] + ends[0]))


def within_reach(game: LayerGame) -> bool:
    """Whether `additive_values` serves a game: no player moves log-odds by 8, p and 1 - p are above 1e-12, if not the logit's."""
    if game.kind != "additive" or game.payoff == "logit":
        return game.kind == "additive"
    if game.n_players > MAX_PLAYERS:
        return False
    z0, delta = game.position_logits
    ends = PAYOFFS["log_odds"](_ends(z0, delta).double(), game.target)
    steps = (delta - delta[:, game.target, None]).abs().max()
    return bool(steps < 8 and ends.abs().max() < 27)


def _ends(z0: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([z0, z0 + delta.sum(0)])


def softmax_additive_shapley(z0: Tensor, delta: Tensor, target: int, payoff: str = "probability") -> Tensor:
    """(n,) float64, for z0 (K,) and delta (n,K). Deterministic; costs no evaluation of the network.

    Owen: phi_i = integral over q of g_i(q) = E[v(S + i) - v(S - i)], S keeping each player with probability q. Every S
    gives this difference for all players at once: v(S + i) = p / (1 + sum over k of p_k (exp(e_ik) - 1)), where p is the
    softmax at S and e = delta - delta[target]. The mean over S is one over an orthogonal array of strength 2 and its
    complements, exact for interactions of up to four players; the integral is Boole's rule. For "probability", both are
    taken of the difference to sigmoid(l(q) + slope(q) . (x - q)), l the log-odds, whose own integral is `_logistic`.
    """
    if len(delta) > MAX_PLAYERS:
        raise ValueError(f"the integral is made for at most {MAX_PLAYERS} players, not {len(delta)}: take owen instead")
    x, weight, node, q, gauss = _design(len(delta))
    e = delta - delta[:, target : target + 1]
    x, weight, q = x.to(e), weight.to(e), q.to(e)
    y0, total = z0 - z0[target], e.sum(0)
    present = x > 0
    p, others = _softmax(torch.addmm(y0, x, e), target)
    gain = torch.where(present, others @ torch.expm1(-e).T, others @ torch.expm1(e).T)
    if payoff == "log_odds":
        gain = (gain / others.sum(1, keepdim=True)).log1p()
        return (weight @ torch.where(present, gain, -gain)).double()
    change = p * gain / (1 + gain)
    change = torch.where(present, change, -change)

    p, others = _softmax(y0 + q[:, None] * total, target)
    rest = others.sum(1, keepdim=True)
    slope = -(others @ e.T) / rest
    spread = (others @ e.square().sum(0)) / rest[:, 0] - slope.square().sum(1)
    centre = (p / rest).log()[:, 0] - q * (1 - q) * spread / 2 - q * slope.sum(1)
    absent = (centre[node] + (x * slope[node]).sum(1))[:, None] - x * slope[node]
    # minus the difference of two sigmoids, written without cancellation
    change += (absent + slope[node]).sigmoid() * (-absent).sigmoid() * torch.expm1(-slope[node])
    return (weight @ change).double() + _logistic(centre[5:], slope[5:], q[5:], gauss)


def _softmax(z: Tensor, target: int) -> tuple[Tensor, Tensor]:
    p = z.softmax(1)
    own = p[:, target : target + 1].clone()
    p[:, target] = 0
    return own, p


def _logistic(centre: Tensor, slope: Tensor, q: Tensor, weight: np.ndarray) -> Tensor:
    """Owen's integral of sigmoid(centre(q) + slope(q) . x): sigmoid(t) = 1/2 + integral of sin(wt) / sinh(pi w) dw."""
    centre, slope, q = centre.double().numpy(), slope.double().numpy(), q.double().numpy()
    reach = np.abs(centre + q * slope.sum(1)).max() + 3 * np.sqrt((slope**2).sum(1)).max()
    step = math.pi / (reach + 8)
    w = (np.arange(math.ceil((reach + 14) / math.pi / step)) + 0.5) * step
    turn = np.exp(1j * w[:, None, None] * slope)
    factor = 1 + q[:, None] * (turn - 1)
    whole = np.exp(1j * w[:, None] * centre) * factor.prod(2)
    g = ((turn - 1) * whole[:, :, None] / factor).imag * (step / np.sinh(math.pi * w))[:, None, None]
    return torch.from_numpy(np.einsum("wqn,q->n", g, weight))


@lru_cache(maxsize=16)
def _design(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]:
    """Coalitions x (M,n), their weights and nodes, the q of the 5 nodes and then of the Gauss-Legendre rule, its weights."""
    m1, m2 = (next(m for m in _TAPS if m % k == 0 and (2**m - 1) // (2**k - 1) >= n) for k in (1, 2))
    third = (2**m2 - 1) // 3
    columns = torch.arange(n)
    quarters = _windows(m2, columns) * _windows(m2, columns + third)  # an array over GF(4)
    halves = _windows(m1, columns)
    sets = [torch.zeros(1, n), quarters, torch.cat([halves, 1 - halves]), 1 - quarters, torch.ones(1, n)]
    size = torch.tensor([len(s) for s in sets])
    node = torch.arange(5).repeat_interleave(size)
    weight = torch.tensor([7, 32, 12, 32, 7]) / 90 / size
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    q = torch.cat([torch.arange(5) / 4, torch.from_numpy((points + 1) / 2)])
    return torch.cat(sets), weight[node], node, q, weights / 2


def _windows(m: int, columns: Tensor) -> Tensor:
    """The bits at `columns` of every shift of a maximal shift-register sequence of period 2^m - 1, and zeros: (2^m,n)."""
    period, bits = 2**m - 1, [1] + [0] * (m - 1)
    while len(bits) < period:
        bits.append(sum(bits[len(bits) - m + k] for k in range(m) if _TAPS[m] >> k & 1) % 2)
    windows = torch.tensor(bits)[(torch.arange(period)[:, None] + columns) % period]
    return torch.cat([windows, torch.zeros(1, len(columns))])
