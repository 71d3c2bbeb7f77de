import pytest
import torch

from cam_utils import preprocess
from cam_utils.cams import hires_cam
from cam_utils.data import load_photo
from cam_utils.games import LayerGame
from cam_utils.owen import DEFAULT_BUDGET, Identity, LogOdds, Surrogate, owen, owen_and_surrogate, residual_values
from cam_utils.shap_cam import owen_cam
from cam_utils.shapley import exact, kernel_shap, paired_coalitions
from conftest import same_state, state_of, toy_cnn


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def game(x):
    return LayerGame(toy_cnn("gap"), "features.3", x[:1, :, :8, :6], 1, deferred=True)  # 12 players


def test_more_budget_less_error(game):
    truth = exact(game).values
    errors = [relative_error(owen(game, b, torch.Generator().manual_seed(0)).values, truth) for b in (22, 300, 20_000)]
    assert errors[0] < 0.3 and errors[2] < 0.01 and errors[2] < errors[1] < errors[0]


def test_it_beats_kernel_shap_by_half_at_equal_cost(lite0):
    """One photo, blocks.5, 256 evaluations each, against a correction with ten times as many."""
    photo = load_photo("pan")
    game = LayerGame(lite0, "blocks.5", preprocess(photo.image, lite0), photo.target, deferred=True)
    truth = owen(game, 3000, torch.Generator().manual_seed(1)).values
    ours, theirs = (e(game, 256, torch.Generator().manual_seed(0)).values for e in (owen, kernel_shap))
    assert relative_error(ours, truth) < 0.5 * relative_error(theirs, truth)


def test_standard_errors_cover(game):
    truth, inside = exact(game).values, []
    for seed in range(60):
        estimate = owen(game, 256, torch.Generator().manual_seed(seed))
        inside.append((estimate.values - truth).abs() <= 1.96 * estimate.standard_error)
    assert 0.85 <= torch.stack(inside).double().mean() <= 1


@pytest.mark.parametrize("budget", [5, 8, 22, 23, 64, 90, 200, 777])
def test_budget_is_kept_and_reported_and_values_are_efficient(game, budget):
    before = game.n_evaluations
    estimate = owen(game, budget, torch.Generator().manual_seed(0))
    assert game.n_evaluations - before == estimate.n_evaluations <= budget
    ends = game.value(torch.tensor([[0.0], [1.0]]).expand(2, 12))
    torch.testing.assert_close(estimate.values.sum(), ends[1] - ends[0], atol=2e-3, rtol=0)
    assert estimate.standard_error.isfinite().all() == (budget >= 90)


def test_the_default_is_deterministic_and_the_rest_depends_on_the_seed_alone(game):
    a, b = (owen(game, DEFAULT_BUDGET, torch.Generator().manual_seed(s)).values for s in (0, 1))
    assert torch.equal(a, b)
    a, b, c = (owen(game, 200, torch.Generator().manual_seed(s)).values for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_gradient_at_the_end_of_the_diagonal_is_hires_cam(x):
    """The slope at q = 1 is G·(A - mean): HiResCAM of the centred activation, for the logit."""
    model = toy_cnn("fc")
    game = LayerGame(model, "features", x[:1], 1, payoff="logit", baseline="zero")
    _, slope = game.gradient(torch.ones(1, 36))
    torch.testing.assert_close(slope.view(1, 6, 6), hires_cam(model, "features", x[:1], 1))


@pytest.mark.parametrize("link", [LogOdds, Identity])
def test_a_game_that_is_a_surrogate_is_reproduced(link):
    """b and the polynomial are found again from slopes and payoffs of a game of their form; its values by enumeration."""
    g = torch.Generator().manual_seed(0)
    b = torch.randn(2, 9, dtype=torch.float64, generator=g) * 0.3
    target = Surrogate(b, link)
    target.n_players = 9
    torch.testing.assert_close(target.shapley(20_000)[0], exact(target).values, atol=3e-3, rtol=0)


def test_residual_values_of_a_linear_game():
    """Paired coalitions of an additive game without noise: the values are found to the last digits."""
    w = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = paired_coalitions(10, 40, torch.Generator().manual_seed(1)).double()
    values, error = residual_values(masks, masks @ w, float(w.sum()), torch.ones(10))
    torch.testing.assert_close(values, w, atol=0.02, rtol=0)
    assert error.max() < 0.3


@pytest.mark.parametrize("payoff", ["probability", "logit", "log_odds"])
@pytest.mark.parametrize("budget", [22, 400])
def test_every_payoff(x, payoff, budget):
    model, image = toy_cnn("fc"), x[:1]
    game = LayerGame(model, "features", image, 1, payoff=payoff)
    truth = owen(game, 20_000, torch.Generator().manual_seed(1)).values
    maps, (estimate,) = owen_cam(model, "features", image, 1, payoff=payoff, budget=budget, return_estimate=True)
    assert relative_error(maps.flatten(), truth) < (0.5 if budget == 22 else 0.3) and estimate.n_evaluations <= budget


def test_bad_budgets(game):
    with pytest.raises(ValueError, match="budget of at least 5"):
        owen(game, 4)


def test_a_saturated_probability_stays_finite(x):
    model = toy_cnn("fc")
    model.classifier[-1].weight.data.mul_(1000)
    target = model(x[:1]).argmax(1)
    estimate, _ = owen_and_surrogate(LayerGame(model, "features", x[:1], target, deferred=True), 200)
    assert estimate.values.isfinite().all() and estimate.standard_error.isfinite().all()


def test_the_model_is_left_alone(x):
    model = toy_cnn("fc").train()
    before = state_of(model)
    owen_cam(model, "features", x, 0, budget=120)
    assert same_state(before, state_of(model))
