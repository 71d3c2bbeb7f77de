import math

import pytest
import torch

from cam_utils.shapley import exact, kernel_shap, paired_coalitions, paired_design, per_position, permutation

SAMPLERS = [permutation, per_position, kernel_shap]


class Game:
    def __init__(self, n, value):
        self.n_players, self._value, self.n_evaluations, self.asked = n, value, 0, []

    def value(self, masks):
        self.n_evaluations += len(masks)
        self.asked.append(masks.double())
        return self._value(masks.double())


def quadratic(n=8, seed=0):
    """v(S) = b·m + m'Cm with zero diagonal: the Shapley value is b_i + half of i's share in every pair."""
    g = torch.Generator().manual_seed(seed)
    b, c = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((n,), (n, n)))
    c.fill_diagonal_(0)
    return Game(n, lambda m: m @ b + ((m @ c) * m).sum(1)), b + (c.sum(0) + c.sum(1)) / 2


def airport(costs=(1.0, 2.0, 2.0, 5.0)):
    """Littlechild & Owen 1973: v(S) is the longest runway that S needs; each piece is shared by those who need it."""
    c, n = torch.tensor(costs, dtype=torch.float64), len(costs)
    pieces = c.diff(prepend=torch.zeros(1, dtype=torch.float64)) / torch.arange(n, 0, -1)
    return Game(n, lambda m: (m * c).amax(1)), pieces.cumsum(0)


KNOWN = {
    "additive": (Game(5, lambda m: m @ torch.arange(5.0).double()), torch.arange(5.0).double()),
    "majority": (Game(5, lambda m: (m.sum(1) > 2.5).double()), torch.full((5,), 0.2).double()),
    "airport": airport(),
    "glove": (
        Game(3, lambda m: m[:, 0] * m[:, 1:].amax(1)),
        torch.tensor([4, 1, 1]).double() / 6,
    ),  # one left, two right
    "quadratic": quadratic(),
    "unanimity beside 3": (Game(4, lambda m: 3 + m.prod(1)), torch.full((4,), 0.25).double()),
}


@pytest.mark.parametrize("name", KNOWN)
def test_exact_on_known_games(name):
    game, expected = KNOWN[name]
    estimate = exact(game)
    torch.testing.assert_close(estimate.values, expected)
    assert estimate.n_evaluations == 2**game.n_players and abs(estimate.efficiency_gap) < 1e-12
    assert torch.equal(estimate.standard_error, torch.zeros_like(expected))


@pytest.mark.parametrize("estimator", SAMPLERS)
@pytest.mark.parametrize("name", KNOWN)
def test_samplers_converge_on_known_games(estimator, name):
    game, expected = KNOWN[name]
    estimate = estimator(game, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate.values, expected, atol=0.1, rtol=0)


def test_the_four_axioms():
    """Efficiency, symmetry, null player, additivity, on a random game with a symmetric pair and a null player."""
    table = torch.randn(2**4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def v(m):  # players 0 and 1 count alike, player 4 not at all
        return table[((m[:, 0] + m[:, 1]) + 3 * m[:, 2] + 6 * m[:, 3]).long()]

    a, (b, _) = Game(5, v), quadratic(5)
    phi = exact(a).values
    total = v(torch.ones(1, 5).double()) - v(torch.zeros(1, 5).double())
    torch.testing.assert_close(phi.sum(), total[0])
    torch.testing.assert_close(phi[0], phi[1])
    torch.testing.assert_close(phi[4], torch.tensor(0.0, dtype=torch.float64))
    both = Game(5, lambda m: a._value(m) + b._value(m))
    torch.testing.assert_close(exact(both).values, phi + exact(b).values)


@pytest.mark.parametrize("estimator", [permutation, per_position])
def test_unbiased_over_seeds(estimator):
    game = Game(6, lambda m: (m @ torch.arange(1.0, 7).double() > 10).double())  # a weighted vote
    expected = exact(game).values
    runs = torch.stack([estimator(game, 64, torch.Generator().manual_seed(s)).values for s in range(600)])
    z = (runs.mean(0) - expected) / (runs.std(0) / math.sqrt(len(runs)))
    assert z.abs().max() < 4


@pytest.mark.parametrize("estimator", SAMPLERS)
@pytest.mark.parametrize("budget", [30, 100, 333])
def test_budget_is_kept_and_reported(estimator, budget):
    game, _ = quadratic(8)
    estimate = estimator(game, budget, torch.Generator().manual_seed(0))
    step = {permutation: 2 * (8 - 1), per_position: 2 * 8, kernel_shap: 2}[estimator]
    assert game.n_evaluations == estimate.n_evaluations == 2 + (budget - 2) // step * step


@pytest.mark.parametrize("estimator", SAMPLERS)
def test_standard_errors_cover(estimator):
    """Nominal 95 % intervals hold the exact value in 90 to 99 % of positions and seeds."""
    w = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    game = Game(10, lambda m: torch.sigmoid(3 * m @ w + 2 * m[:, 0] * m[:, 1] - 1))
    expected, inside = exact(game).values, []
    for seed in range(200):
        estimate = estimator(game, 500, torch.Generator().manual_seed(seed))
        inside.append((estimate.values - expected).abs() <= 1.96 * estimate.standard_error)
    assert 0.90 <= torch.stack(inside).double().mean() <= 0.99


def test_kernel_shap_is_the_least_squares_fit_of_its_coalitions():
    """Lundberg & Lee 2017 in its own form: all coalitions, weights 1/s(n-s), the sum of the values held."""
    n = 6
    w = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(m):
        return 3 + torch.sigmoid(2 * m @ w + m[:, 0] * m[:, 1] * m[:, 2])

    for pairs in (n, 20):
        game = Game(n, value)
        estimate = kernel_shap(game, 2 + 2 * pairs, torch.Generator().manual_seed(0))
        masks = next(m for m in game.asked if len(m) == 2 * pairs)
        v, (none, every) = value(masks), value(torch.tensor([[0.0], [1.0]]).double().expand(2, n))
        size = masks.sum(1)
        root = (1 / (size * (n - size))).sqrt()
        design = masks[:, :-1] - masks[:, -1:]  # the last value is what the others leave of the total
        target = v - none - masks[:, -1] * (every - none)
        fit = torch.linalg.lstsq(design * root[:, None], (target * root)[:, None], driver="gelsd").solution[:, 0]
        expected = torch.cat([fit, (every - none - fit.sum())[None]])
        torch.testing.assert_close(estimate.values, expected)
        assert estimate.standard_error.isinf().all() == (pairs == n)


def test_the_standard_error_of_kernel_shap_is_what_each_pair_moves():
    """HC3 is the jackknife: the sum of squares of what the fit changes when one pair is left out."""
    n, pairs = 5, 30
    w = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    game = Game(n, lambda m: torch.sigmoid(3 * m @ w) + m[:, 0] * m[:, 1])
    estimate = kernel_shap(game, 2 + 2 * pairs, torch.Generator().manual_seed(0))
    masks = next(m for m in game.asked if len(m) == 2 * pairs)
    none, every = game.value(torch.tensor([[0.0], [1.0]]).double().expand(2, n))
    design, target = paired_design(masks, game.value(masks), float(every - none))
    whole, moved = torch.linalg.pinv(design) @ target, torch.zeros(n, dtype=torch.float64)
    for i in range(pairs):
        kept = torch.arange(pairs) != i
        moved += (torch.linalg.pinv(design[kept]) @ target[kept] - whole).square()
    torch.testing.assert_close(estimate.standard_error, moved.sqrt())


def test_paired_coalitions_have_every_size_alike():
    masks = paired_coalitions(6, 5_000, torch.Generator().manual_seed(0))
    assert torch.equal(masks[5_000:], ~masks[:5_000])
    share = masks[:5_000].sum(1).bincount(minlength=7) / 5_000
    assert share[[0, 6]].sum() == 0 and (share[1:6] - 0.2).abs().max() < 0.03


def test_efficient_estimators_have_no_gap():
    game, _ = quadratic(8)
    for estimator in (permutation, kernel_shap):
        assert abs(estimator(game, 100, torch.Generator().manual_seed(0)).efficiency_gap) < 1e-9
    assert abs(per_position(game, 100, torch.Generator().manual_seed(0)).efficiency_gap) > 1e-3
    game, _ = KNOWN["unanimity beside 3"]
    estimate = per_position(game, 100, torch.Generator().manual_seed(0))
    assert abs(estimate.efficiency_gap) > 1e-3
    torch.testing.assert_close(float(estimate.values.sum()) - 1, estimate.efficiency_gap)


def test_same_seed_same_bytes():
    game, _ = quadratic(8)
    for estimator in SAMPLERS:
        a, b, c = (estimator(game, 100, torch.Generator().manual_seed(s)).values for s in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_too_small_budgets_and_too_many_players_say_so():
    game, _ = quadratic(8)
    for estimator, least in {permutation: 16, per_position: 18, kernel_shap: 4}.items():
        with pytest.raises(ValueError, match=rf"budget.*\b{least}\b.*\bnot .*3$"):
            estimator(game, 3, torch.Generator())
        assert estimator(game, least, torch.Generator()).n_evaluations == least
    assert kernel_shap(quadratic(2)[0], 4, torch.Generator()).values.isfinite().all()
    with pytest.raises(ValueError, match="20 players"):
        exact(Game(21, lambda m: m.sum(1)))
    assert permutation(game, 16, torch.Generator()).standard_error.isinf().all()


def test_shapiq_agrees():
    """The same games through shapiq's exact computer."""
    import numpy as np
    import shapiq

    game, _ = quadratic(6)
    computer = shapiq.ExactComputer(
        n_players=6, game=lambda masks: game.value(torch.as_tensor(np.asarray(masks))).numpy()
    )
    expected = computer("SV", order=1).get_n_order(1)
    values = [expected[(i,)] for i in range(6)]
    torch.testing.assert_close(exact(game).values, torch.tensor(values, dtype=torch.float64))
