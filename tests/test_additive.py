import pytest
import torch

from cam_utils.additive import additive_values, softmax_additive_shapley
from cam_utils.cams import cam
from cam_utils.data import load_photo
from cam_utils.games import LayerGame
from cam_utils.models import preprocess
from cam_utils.payoffs import PAYOFFS
from cam_utils.shapley import exact, permutation
from conftest import toy_cnn


class Additive:
    def __init__(self, z0, delta, target, payoff):
        self.n_players, self.z0, self.delta, self.target, self.payoff = len(delta), z0, delta, target, payoff

    def value(self, masks):
        return PAYOFFS[self.payoff](self.z0 + masks.to(self.delta) @ self.delta, self.target)


@pytest.mark.parametrize("payoff", ["probability", "log_odds"])
@pytest.mark.parametrize("n", [2, 9, 12])
def test_against_exact_enumeration(payoff, n):
    g = torch.Generator().manual_seed(n)
    z0, delta = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((20,), (n, 20)))
    delta = 0.1 * (delta - delta.mean(0))
    expected = exact(Additive(z0, delta, 3, payoff)).values
    found = softmax_additive_shapley(z0, delta, 3, payoff)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["dog", "gibbon"])
def test_on_photos_within_the_references_error(lite0, name):
    """Against 2,000 pairs of orders of the players of the cached game; the bound allows for twice their own error."""
    x = preprocess(load_photo(name).image, lite0)
    game = LayerGame(lite0, "bn2", x, lite0(x).argmax(1))
    reference = permutation(game, 2_000 * 96 + 2, torch.Generator().manual_seed(0))
    own = float(reference.standard_error.norm() / reference.values.norm())
    error = float((additive_values(game).values - reference.values).norm() / reference.values.norm())
    assert own < 1e-2 and error < 1e-3 + 2 * own


def test_the_logit_is_in_closed_form(x):
    model = toy_cnn("gap")
    estimate = additive_values(LayerGame(model, "features", x[:1], 2, payoff="logit"))
    M = cam(model, "features", x[:1], 2)[0].flatten()
    torch.testing.assert_close(estimate.values, (M - M.mean()) / 36)
    assert abs(estimate.efficiency_gap) < 1e-12 and estimate.n_evaluations == 0
    with pytest.raises(ValueError, match="not sums"):
        additive_values(LayerGame(toy_cnn("fc"), "features", x[:1], 2))
