import pytest
import torch

from cam_utils.cams import cam
from cam_utils.games import LayerGame
from cam_utils.shap_cam import shap_cam
from cam_utils.shapley import exact
from conftest import toy_cnn


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_shap_cam_converges_to_exact_enumeration(x):
    model, image = toy_cnn("gap"), x[:1, :, :8, :6]  # 4×3 positions
    game = LayerGame(model, "features.3", image, 1)
    expected = exact(game).values.view(1, 4, 3)
    errors = [
        relative_error(shap_cam(model, "features.3", image, 1, samples_per_position=m), expected) for m in (10, 2000)
    ]
    assert errors[1] < 0.01 < errors[0]


def test_shap_cam_is_the_centred_cam_at_a_gap_head(x):
    model = toy_cnn("gap")
    maps, estimates = shap_cam(model, "features", x, 2, payoff="logit", samples_per_position=2, return_estimate=True)
    M = cam(model, "features", x, 2)
    torch.testing.assert_close(maps, (M - M.mean((1, 2), keepdim=True)) / 36)
    assert all(e.standard_error.max() < 1e-12 and e.n_evaluations == 2 * 2 * 36 + 2 for e in estimates)


def test_bad_options(x):
    with pytest.raises(ValueError, match="samples_per_position"):
        shap_cam(toy_cnn("gap"), "features", x, 0, samples_per_position=0)
