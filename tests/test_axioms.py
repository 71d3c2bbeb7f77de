"""Shapley's axioms on games that random networks play, for exact enumeration and for what every estimator promises of them."""

import pytest
import torch
from torch import nn

from cam_utils.games import LayerGame
from cam_utils.owen import owen
from cam_utils.shapley import exact, kernel_shap, per_position, permutation

ESTIMATORS = {"permutation": permutation, "per_position": per_position, "kernel_shap": kernel_shap, "owen": owen}
EFFICIENT = ("permutation", "kernel_shap")
PAYOFFS = ("probability", "log_odds", "logit")
BUDGET = 400  # of 512 coalitions of 9 positions: less than what makes Owen-CAM exact


def random_network(seed, head="conv"):
    """Untrained, in evaluation mode, with batch norms of random statistics; a layer "features" of 3×3 positions for 3×3 images.

    head: "conv" mixes neighbours, "fc" gives every position its own weights, "gap" treats all positions alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        behind = {
            "conv": [nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten()],
            "fc": [nn.Flatten(), nn.Linear(45, 54), nn.ReLU(inplace=True)],
            "gap": [nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 54), nn.ReLU()],
        }[head]
        model = nn.Sequential()
        model.add_module("features", features)
        model.add_module("head", nn.Sequential(*behind, nn.Linear(54, 4)))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 1)
        model.head[-1].weight.data.mul_(4)  # probabilities that move
    return model.double().eval()


def image(seed):
    return torch.randn(1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def activation(model, x):
    with torch.no_grad():
        return model.features(x)


def worth(logits, payoff):
    """The payoff of class 1, written out."""
    p = logits.softmax(0)[1]
    return {"probability": p, "logit": logits[1], "log_odds": p.logit()}[payoff]


CASES = [
    (seed, head, payoff) for seed, (head, payoff) in enumerate((h, p) for h in ("conv", "fc", "gap") for p in PAYOFFS)
]


@pytest.mark.parametrize("seed, head, payoff", CASES)
def test_values_add_up_to_what_the_network_itself_says(seed, head, payoff):
    """Efficiency: exactly where it is promised, else within the standard error of the sum, which is stated as the gap."""
    model, x = random_network(seed, head), image(seed)
    game = LayerGame(model, "features", x, 1, payoff=payoff, deferred=True)
    with torch.no_grad():
        mean = activation(model, x).mean((2, 3), keepdim=True).expand(1, 5, 3, 3)
        total = worth(model(x)[0], payoff) - worth(model.head(mean)[0], payoff)
    torch.testing.assert_close(exact(game).values.sum(), total)
    for name, estimator in ESTIMATORS.items():
        found = estimator(game, BUDGET, drawn())
        if name in EFFICIENT:
            torch.testing.assert_close(found.values.sum(), total)
        else:
            assert abs(found.values.sum() - total) < 4 * found.standard_error.norm()
            assert float(found.values.sum() - total) == pytest.approx(found.efficiency_gap, abs=1e-12)


@pytest.mark.parametrize("seed, head, payoff", CASES)
def test_estimators_are_within_their_standard_errors(seed, head, payoff):
    game = LayerGame(random_network(seed, head), "features", image(seed), 1, payoff=payoff, deferred=True)
    truth = exact(game).values
    for name, estimator in ESTIMATORS.items():
        # a position of its own rare events needs more coalitions than 22 before its spread is seen
        found = estimator(game, 25 * BUDGET if name == "per_position" else BUDGET, drawn(seed))
        z = (found.values - truth) / found.standard_error
        assert z.abs().max() < 5 and z.square().mean() < 4, name
        assert found.standard_error.norm() < truth.norm(), name  # an error bar that says something


@pytest.mark.parametrize("seed, head, payoff", CASES)
def test_a_position_that_looks_like_its_baseline_gets_nothing(seed, head, payoff):
    """Null player: present or absent, nothing changes. Where single contributions are averaged, that is exact."""
    model, x = random_network(seed, head), image(seed)
    baseline = activation(model, x) + torch.rand(1, 5, 3, 3, generator=drawn(1)).double()
    baseline[..., 1, 2] = activation(model, x)[..., 1, 2]
    game, null = LayerGame(model, "features", x, 1, payoff=payoff, baseline=baseline, deferred=True), 5
    truth = exact(game).values
    assert abs(truth[null]) < 1e-12 < 1e-5 < truth.abs().sort().values[1]  # it alone
    for name, estimator in ESTIMATORS.items():
        found = estimator(game, BUDGET, drawn())
        exactly = name in ("permutation", "per_position")
        assert abs(found.values[null]) <= (1e-12 if exactly else 5 * found.standard_error[null]), name


@pytest.mark.parametrize("seed, payoff", list(enumerate(PAYOFFS)))
def test_positions_that_look_alike_share_alike_where_the_head_pools(seed, payoff):
    """Symmetry: two positions with one activation. A fully connected head knows them apart: its values must differ."""
    for head in ("gap", "fc"):
        model, x = random_network(seed, head), image(seed)
        model.features[0] = nn.Conv2d(3, 5, 1).double()  # sees one pixel: two equal ones are two equal positions
        x[..., 2, 1] = x[..., 0, 0] = x.new_tensor([1.0, -0.5, 0.3])
        game = LayerGame(model, "features", x, 1, payoff=payoff, baseline="zero", deferred=True)
        truth = exact(game).values
        if head == "fc":
            assert abs(truth[0] - truth[7]) > 1e-3
            continue
        torch.testing.assert_close(truth[0], truth[7], rtol=1e-10, atol=1e-13)
        assert abs(truth[0] - truth[1]) > 1e-5
        for name, estimator in ESTIMATORS.items():
            found = estimator(game, BUDGET, drawn())
            error = (found.standard_error[0] ** 2 + found.standard_error[7] ** 2).sqrt()
            assert abs(found.values[0] - found.values[7]) <= 4 * error, name


@pytest.mark.parametrize("seed, head", list(enumerate(["conv", "fc", "gap"])))
def test_the_values_of_a_sum_of_two_heads_are_the_sums_of_their_values(seed, head):
    """Linearity, for the logit: with the same draws, samplers and regression are linear, too; Owen-CAM within its errors."""
    models = [random_network(seed, head) for _ in range(3)]
    for model, weight in zip(models[1:], torch.randn(2, 4, 54, generator=drawn(9)).double(), strict=True):
        model.head[-1].weight.data = weight
    models[0].head[-1].weight.data = models[1].head[-1].weight.data + 2 * models[2].head[-1].weight.data
    games = [LayerGame(model, "features", image(seed), 1, payoff="logit", deferred=True) for model in models]
    for name, estimator in {"exact": lambda game, *_: exact(game)}.items() | ESTIMATORS.items():
        both, first, second = (estimator(game, BUDGET, drawn()) for game in games)
        difference = both.values - first.values - 2 * second.values
        assert first.values.norm() > 0.1 and second.values.norm() > 0.1
        if name == "owen":
            variance = both.standard_error**2 + first.standard_error**2 + 4 * second.standard_error**2
            assert (difference.abs() < 4 * variance.sqrt()).all()
        else:
            assert difference.abs().max() < 1e-10, name
