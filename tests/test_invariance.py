"""What may be done to a network or an image without changing the map, and what may not."""

import pytest
import torch
from torch import nn

from cam_utils import METHODS
from cam_utils.games import LayerGame
from cam_utils.owen import owen_and_surrogate
from conftest import toy_cnn

SEGMENTS = torch.arange(16).view(4, 4).repeat_interleave(3, 0).repeat_interleave(3, 1)  # of 12×12 pixels, 3×3 each
SHIFT = {  # the same constant is added to every logit: does the map stay, and why
    "cam": (True, "the classifier's weights, not its bias"),
    "grad_cam": (True, "a gradient of the logit"),
    "grad_cam_pp": (True, "a gradient of the logit: the factor exp(y) of the paper is left out"),
    "hires_cam": (True, "a gradient of the logit"),
    "layer_cam": (True, "a gradient of the logit"),
    "xgrad_cam": (True, "a gradient of the logit"),
    "score_cam": (True, "differences of logits to that of the zero image"),
    "ablation_cam": (False, "the fall of the logit is divided by its own size"),
    "shap_cam": (True, "differences of payoffs, whichever they are"),
    "owen_cam": (True, "differences of payoffs, whichever they are"),
    "lime": (True, "the intercept, which is not penalised, takes it"),
}
COMMON = {  # the same function of the image is added to every logit, which leaves all probabilities as they were
    "shap_cam": ("probability", "log_odds"),
    "owen_cam": ("probability", "log_odds"),
    "lime": ("probability", "log_odds"),
}
CASES = [
    (method, payoff)
    for method in METHODS
    for payoff in (["probability", "log_odds", "logit"] if method in COMMON else [None])
]


def explained(method, model, x, payoff=None, layer="features"):
    """The map of class 1, with few samples, seeded alike."""
    options = {"shap_cam": {"samples_per_position": 3}, "lime": {"n_samples": 40, "segments": SEGMENTS}}.get(method, {})
    options |= {"payoff": payoff} if payoff else {}
    return METHODS[method](model, layer, x, 1, **options)


def test_every_method_is_in_the_table():
    assert SHIFT.keys() == METHODS.keys() > COMMON.keys()


@pytest.mark.parametrize("method, payoff", CASES)
def test_a_constant_added_to_all_logits(method, payoff, x):
    for head in ["gap"] if method == "cam" else ["gap", "fc"]:
        model = toy_cnn(head)
        before, logit = explained(method, model, x, payoff), model(x)[:, 1]
        model.classifier[-1].bias.data += 3.0
        after = explained(method, model, x, payoff)
        if SHIFT[method][0]:
            torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9 * float(before.abs().max()))
        else:  # the map is another one, by the factor that the division explains
            assert (after - before).norm() > 0.5 * before.norm()
            torch.testing.assert_close(after, before * (logit / (logit + 3)).abs()[:, None, None])


@pytest.mark.parametrize("method, payoff", CASES)
def test_evidence_that_is_common_to_all_classes(method, payoff, x):
    """Added to all rows of the last weights: payoffs of the softmax do not see it, the logit's gradients and changes do."""
    for head in ["gap"] if method == "cam" else ["gap", "fc"]:
        model = toy_cnn(head)
        before, last = explained(method, model, x, payoff), model.classifier[-1]
        generator = torch.Generator().manual_seed(5)
        last.weight.data += torch.rand(last.in_features, dtype=torch.float64, generator=generator)
        after = explained(method, model, x, payoff)
        if payoff in COMMON.get(method, ()):
            torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9 * float(before.abs().max()))
        else:
            assert (after - before).norm() > 0.01 * before.norm()


def mirrored_toy(head):
    """A toy that cannot tell left from right: every kernel, and the rows of a fully connected layer, made symmetric."""
    model = toy_cnn(head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight + module.weight.flip(3)).data / 2
    if head == "fc":
        weight = model.classifier[1].weight
        maps = weight.data.view(8, -1, 6, 6)
        weight.data = ((maps + maps.flip(3)) / 2).view_as(weight)
    return model


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("shap_cam", "owen_cam")])
@pytest.mark.parametrize("head", ["gap", "fc"])
def test_the_map_of_the_mirrored_image_is_the_mirrored_map(method, head, x):
    """LIME draws by the numbers of the segments, which are mirrored with the image: here it is no exception."""
    model = mirrored_toy(head)
    torch.testing.assert_close(model(x.flip(3)), model(x))
    for layer in ["features"] if method == "cam" else ["features.3", "features"]:
        if method == "cam" and head == "fc":
            continue
        options = {"segments": SEGMENTS, "n_samples": 60} if method == "lime" else {}
        mirrored = options | ({"segments": SEGMENTS.flip(1)} if options else {})
        found = METHODS[method](model, layer, x.flip(3), 1, **mirrored)
        expected = METHODS[method](model, layer, x, 1, **options).flip(2)
        torch.testing.assert_close(found, expected)
        assert (found - expected.flip(2)).norm() > 0.01 * found.norm()  # no map that is its own mirror image


@pytest.mark.parametrize("head, layer", [("gap", "features.3"), ("fc", "features.3"), ("fc", "features")])
def test_sampled_values_are_mirrored_within_their_standard_errors(head, layer, x):
    model, x = mirrored_toy(head), x[:1]
    for method, options in [("shap_cam", {"samples_per_position": 60}), ("owen_cam", {"budget": 400})]:
        options |= {"return_estimate": True}
        _, (one,) = METHODS[method](model, layer, x, 1, **options)
        _, (other,) = METHODS[method](model, layer, x.flip(3), 1, **options)
        values, error = (t.view(6, 6).flip(1).flatten() for t in (one.values, one.standard_error))
        z = (other.values - values) / (error**2 + other.standard_error**2).sqrt()
        assert z.abs().max() < 4.5 and 0.02 < z.square().mean() < 2


@pytest.mark.parametrize("head, layer", [("gap", "features.3"), ("fc", "features.3"), ("fc", "features")])
def test_fading_is_mirrored_but_for_the_error_of_its_surrogates_own_coalitions(head, layer, x):
    """Owen-CAM's default: the gradients are mirrored to the last digits, the fixed coalitions of its surrogate are not."""
    model, image = mirrored_toy(head), x[:1]
    (a, one), (b, other) = (
        owen_and_surrogate(LayerGame(model, layer, i, 1, deferred=True)) for i in (image, image.flip(3))
    )
    torch.testing.assert_close(other.b, one.b.view(2, 6, 6).flip(2).flatten(1), rtol=1e-6, atol=1e-10)
    difference = b.values - a.values.view(6, 6).flip(1).flatten()
    assert difference.norm() <= 2 * one.shapley(256)[1].norm() and difference.norm() < 0.05 * b.values.norm()


def test_sums_over_positions_are_mirrored_up_to_their_stated_error(x):
    model = mirrored_toy("gap")
    found, expected = METHODS["owen_cam"](model, "features", x.flip(3), 1), METHODS["owen_cam"](model, "features", x, 1)
    assert (found - expected.flip(2)).norm() < 1e-3 * found.norm()
