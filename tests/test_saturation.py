"""Classes that are next to certain or next to impossible: who is right there, and who says that it is not."""

import copy
import math
import warnings

import pytest
import torch

from cam_utils import METHODS, explain
from cam_utils.additive import additive_values, within_reach
from cam_utils.data import load_photo, load_photos
from cam_utils.games import LayerGame
from cam_utils.models import preprocess
from cam_utils.owen import owen
from cam_utils.payoffs import PAYOFFS, SaturationWarning, payoff_of
from cam_utils.shapley import exact
from conftest import toy_cnn

HEADS = [
    ("gap", "features.3"),
    ("gap", "features"),
    ("fc", "features"),
]  # a coalition costs a pass, or nothing, or a pass


def confident(head: str, factor: float, dtype: torch.dtype = torch.float32):
    """A toy with all logits times `factor`; an image of 12 positions for "gap", of 36 for "fc"; its two extreme classes."""
    model = toy_cnn(head)
    model.classifier[-1].weight.data.mul_(factor)
    model.classifier[-1].bias.data.mul_(factor)
    shape = (8, 6) if head == "gap" else (12, 12)
    x = torch.randn(1, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = model(x)[0]
    return model.to(dtype), x.to(dtype), int(logits.argmax()), int(logits.argmin())


def relative_error(found, truth):
    return float((found.double().flatten() - truth).norm() / truth.norm())


@pytest.mark.parametrize("likely", [True, False])
@pytest.mark.parametrize("factor", [100, 1000, 10_000])
@pytest.mark.parametrize("layer", ["features.3", "features"])
def test_log_odds_give_the_right_map_where_the_probability_has_none(layer, factor, likely):
    """Logits up to ±7000 in float32, against all coalitions in float64; the cached, the sampled and the faded maps."""
    model, x, top, last = confident("gap", factor, torch.float64)
    target = top if likely else last
    truth = exact(LayerGame(model, layer, x, target, payoff="log_odds")).values
    model, x = model.float(), x.float()
    assert relative_error(exact(LayerGame(model, layer, x, target, payoff="log_odds")).values, truth) < 1e-5
    options = {"payoff": "log_odds"}
    assert relative_error(METHODS["owen_cam"](model, layer, x, target, **options, budget=2000), truth) < 0.01
    sampled = METHODS["shap_cam"](model, layer, x, target, **options, samples_per_position=400, progress=False)
    assert relative_error(sampled, truth) < 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_log_odds_are_accurate_for_logits_up_to_ten_thousand(dtype):
    """Against log p - log(1 - p) in Python's own numbers, of the same rounded logits."""
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 9990.0], [3.0, 2.5, -1e4], [0.5, 0.25, 0.125]], dtype=dtype)
    rows = logits.double()
    others = torch.maximum(rows[:, 1], rows[:, 2]) + torch.log1p(torch.exp(-(rows[:, 1] - rows[:, 2]).abs()))
    found = payoff_of(logits, 0, "log_odds")
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), rows[:, 0] - others, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("payoff", ["probability", "log_odds"])
def test_a_single_output_has_nothing_to_be_compared_with(x, payoff):
    model = toy_cnn("gap", classes=1)
    with pytest.raises(ValueError, match=r'single output.*payoff="logit"'):
        LayerGame(model, "features", x[:1], 0, payoff=payoff).value(torch.ones(1, 36))
    for method in ("shap_cam", "owen_cam", "lime"):
        options = {"segments": torch.arange(4).repeat_interleave(36).view(12, 12)} if method == "lime" else {}
        with pytest.raises(ValueError, match="single output"):
            METHODS[method](model, "features", x[:1], 0, payoff=payoff, **options)
        assert METHODS[method](model, "features", x[:1], 0, payoff="logit", **options).isfinite().all()


@pytest.mark.parametrize("likely, says", [(True, "class {} is within 2e-06 of 1"), (False, "class {} is below 1e-12")])
@pytest.mark.parametrize("method", ["shap_cam", "owen_cam", "lime"])
@pytest.mark.parametrize("head, layer", HEADS)
def test_a_saturated_probability_is_named_once_and_the_way_out_is_too(head, layer, method, likely, says):
    model, x, *targets = confident(head, 300)
    target = targets[0 if likely else 1]
    few = {"shap_cam": {"samples_per_position": 2}, "lime": {"n_samples": 8, "n_segments": 4}}.get(method, {})
    with pytest.warns(SaturationWarning, match=says.format(target)) as caught:
        found = METHODS[method](model, layer, x, target, **few)
    assert len(caught) == 1 and 'payoff="log_odds"' in str(caught[0].message)
    assert found.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for payoff in ("log_odds", "logit"):
            assert METHODS[method](model, layer, x, target, payoff=payoff, **few).isfinite().all()


@pytest.mark.parametrize("gap, warned", [(1e-12, True), (3e-13, True), (1e-11, False)])
@pytest.mark.parametrize("method", ["shap_cam", "owen_cam", "lime"])
@pytest.mark.parametrize("head, layer", HEADS)
def test_one_minus_1e_12_is_warned_of_in_float64_too(head, layer, method, gap, warned):
    """An adversary's network: whatever is hidden, the probability is 1 - gap, up to hundredths of the gap."""
    model, x, target, _ = confident(head, 1e-3, torch.float64)
    logits = model(x)[0]
    others = torch.cat([logits[:target], logits[target + 1 :]]).logsumexp(0)
    model.classifier[-1].bias.data[target] += others - logits[target] - math.log(gap) + 0.05
    assert 0.9 * gap < 1 - model(x).softmax(1)[0, target] < gap
    few = {"shap_cam": {"samples_per_position": 2}, "lime": {"n_samples": 8, "n_segments": 4}}.get(method, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        METHODS[method](model, layer, x, target, **few)
    assert [w.category for w in caught] == [SaturationWarning] * warned
    if warned:
        assert f"class {target} is within 1e-12 of 1" in str(caught[0].message)
        assert 'payoff="log_odds"' in str(caught[0].message)


def test_a_game_warns_once_and_only_where_several_coalitions_are_saturated():
    model, x, target, _ = confident("gap", 300)
    game = LayerGame(model, "features.3", x, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game.value(torch.ones(1, 12))  # of one coalition there is no difference
    with pytest.warns(SaturationWarning):
        game.value(torch.eye(12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game.value(torch.eye(12))


def test_a_game_that_is_certain_at_both_ends_only_does_not_warn(x, monkeypatch):
    """All and none may be certain alike, as with the mean as baseline before a pooling, and half of them not."""
    game = LayerGame(toy_cnn("gap"), "features", x[:1], 0)

    def payoff(masks, _parts):
        logit = 40 * (2 * masks.mean(1, keepdim=True) - 1).abs()
        return PAYOFFS["probability"](torch.cat([logit, 0 * logit], 1), 0)

    monkeypatch.setattr(game, "_payoff", payoff)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = game.value(torch.tensor([[0.0], [1.0]]).expand(2, 36))
    assert (ends == 1).all() and game.value(torch.arange(36)[None] < 18) == 0.5


@pytest.mark.parametrize("layer", ["blocks.5", "bn2"])
def test_explain_passes_the_warning_on(lite0, layer):
    image, certain = load_photo("dog"), copy.deepcopy(lite0)
    certain.classifier.bias.data[image.target] += 100
    with pytest.warns(SaturationWarning, match=f"class {image.target} is within 2e-06 of 1"):
        result = explain(certain, image.path, layer=layer)
    assert result.score == 1 and result.map.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = explain(certain, image.path, layer=layer, payoff="log_odds").map
    # by a constant more log-odds: the same map, at bn2 up to the error of fading, as the closed form does not reach there
    expected = explain(lite0, image.path, layer=layer, payoff="log_odds").map
    assert relative_error(right, expected.double().flatten()) < 0.01


def test_no_photo_comes_near(lite0):
    """The network was trained with smoothed labels: no warning on any of the photos, nor a probability close to one."""
    with torch.no_grad():
        highest = torch.cat([lite0(preprocess(photo.image, lite0)).softmax(1).amax(1) for photo in load_photos()])
    assert len(highest) == 76 and highest.max() < 0.999
    with warnings.catch_warnings():
        warnings.simplefilter("error", SaturationWarning)
        for name in ("dog", "bee"):
            explain(lite0, load_photo(name).image, layer="blocks.5")


@pytest.mark.parametrize("factor", [30, 40])
@pytest.mark.parametrize("layer", ["features.3", "features"])
def test_unlikely_and_nearly_certain_classes_are_explained_as_well_as_others(layer, factor):
    """Probabilities of 3e-5 and 1e-6, and 1e-3 and 1e-4 from 1: by fading, and corrected. In float64, which holds 1 - p."""
    model, x, *targets = confident("gap", factor, torch.float64)
    for target in targets:
        game = LayerGame(model, layer, x, target, deferred=True)
        truth = exact(game).values
        assert relative_error(owen(game, 22).values, truth) < 0.5
        assert relative_error(owen(game, 300).values, truth) < 0.2


def test_sums_over_positions_know_how_far_their_digits_reach():
    """Where logits differ by hundreds, Owen-CAM leaves the closed form and spends its budget instead."""
    for factor, payoff, reach in [(1, "probability", True), (300, "probability", False), (1000, "log_odds", False)]:
        model, x, target, _ = confident("gap", factor)
        game = LayerGame(model, "features", x, target, payoff=payoff, deferred=True)
        assert game.kind == "additive" and within_reach(game) == reach
        if reach:
            assert relative_error(additive_values(game).values, exact(game).values) < 1e-3
        else:
            with pytest.raises(ValueError, match="take owen"):
                additive_values(game)
