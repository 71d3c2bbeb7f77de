"""Faithfulness metrics, the metrics of numbers, and what holds for every entry of METRICS."""

import inspect
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import gaussian_filter
from torch import nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric
from torchvision.transforms import InterpolationMode

from cam_utils import METHODS, preprocess
from cam_utils import metrics as m
from cam_utils.data import load_photo
from cam_utils.layers import counting
from cam_utils.metrics import METRICS
from cam_utils.models import ModelSpec
from cam_utils.perturb import replacement
from cam_utils.postprocess import heatmap
from conftest import same_state, state_of, toy_cnn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
TARGET = torch.tensor([0, 2, 1])
FAITHFULNESS = {name: metric.function for name, metric in METRICS.items() if metric.needs == "faithfulness"}


def spec(mean=MEAN, std=STD, size=12):
    return ModelSpec("toy", "features", size, size, InterpolationMode.BILINEAR, mean, std, ("a", "b", "c"), "toy")


def with_spec(model, **options):
    model.spec = spec(**options)
    return model


def normalised(pixels):
    """Grey pixel values (N,H,W) -> the network's input (N,3,H,W)."""
    mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (MEAN, STD))
    return (pixels[:, None] - mean) / std


class Pixels(nn.Module):
    """Log-odds of class 0 against class 1: the pixel values (before the normalisation) times `weight` (H,W), summed."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.spec = nn.Parameter(weight), spec()

    def forward(self, x):
        mean, std = (torch.tensor(values, dtype=x.dtype)[:, None, None] for values in (MEAN, STD))
        z = ((x * std + mean).mean(1) * self.weight).sum((1, 2))
        return torch.stack([z, torch.zeros_like(z)], 1)


LOG9, LOG3 = math.log(9), math.log(3)


@pytest.fixture
def pixels():
    """White 2×2 images: the log-odds of class 0 are log 9 + 0 - log 3 + 0 = log 3, so Y = 3/4."""
    model = Pixels(torch.tensor([[LOG9, 0.0], [-LOG3, 0.0]], dtype=torch.float64))
    heat = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]], [[0.5, 1.0], [0.0, 0.25]]])
    return model, normalised(torch.ones(3, 2, 2, dtype=torch.float64)), 0, heat.double()


@pytest.fixture
def heat():
    return torch.rand(3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_masking_by_hand(pixels):
    """O: the log-odds are the sum of heat · weight: log 9, -log 3, log 3. The complements: -log 3, log 9, 0."""
    model, x, target, heat = pixels
    whole, masked = m.masked_scores(model, x, target, heat)
    torch.testing.assert_close(whole, float64(0.75, 0.75, 0.75))
    torch.testing.assert_close(masked, float64(0.9, 0.25, 0.75))
    torch.testing.assert_close(m.average_drop(model, x, target, heat), float64(0, (0.75 - 0.25) / 0.75, 0))
    torch.testing.assert_close(m.increase(model, x, target, heat), float64(1, 0, 0))
    torch.testing.assert_close(m.average_gain(model, x, target, heat), float64((0.9 - 0.75) / 0.25, 0, 0))
    expected = float64((0.75 - 0.25) / 0.75, 0, (0.75 - 0.5) / 0.75)
    torch.testing.assert_close(m.average_drop_in_deletion(model, x, target, heat), expected)


def test_masking_is_exact_at_the_ends(pixels):
    model, x, _, heat = pixels
    assert torch.equal(m.mask_image(model, x, torch.ones_like(heat)), x)
    black = m.mask_image(model, x, torch.zeros_like(heat))
    torch.testing.assert_close(black, normalised(torch.zeros(3, 2, 2, dtype=torch.float64)))


@pytest.mark.parametrize("method, expected", [("average_drop", 0), ("increase", 0), ("average_gain", 0)])
def test_a_map_of_ones_is_perfect_for_average_drop(toy, x, method, expected):
    """Fake-CAM, in single precision too: rounding is no increase."""
    for dtype in (torch.float64, torch.float32):
        model, images = with_spec(toy).to(dtype), x.to(dtype)
        assert (METRICS[method].function(model, images, TARGET, torch.ones(3, 12, 12)) == expected).all()
        drop = m.average_drop(model, images, TARGET, torch.zeros(3, 12, 12))
        torch.testing.assert_close(m.average_drop_in_deletion(model, images, TARGET, torch.ones(3, 12, 12)), drop)


@pytest.mark.parametrize("logit", [40.0, -40.0, 800.0, -800.0])
def test_probabilities_that_round_to_one_or_zero(logit):
    """A white pixel at 1: Y = σ(logit), O = σ(logit/2) for a heat of 1/2. All in logarithms: no 0/0, no digit lost."""
    model = Pixels(torch.full((1, 1), logit))
    x, half = normalised(torch.ones(1, 1, 1)), torch.full((1, 1, 1), 0.5)
    drop, gain = m.average_drop(model, x, 0, half), m.average_gain(model, x, 0, half)
    if logit > 0:  # 1 - O is larger than 1 - Y by exp(logit/2): all of it lost, none gained
        y, o = (1 / (1 + math.exp(-value)) for value in (logit, logit / 2))
        torch.testing.assert_close(drop, float64((y - o) / y), rtol=1e-5, atol=1e-12)
        assert gain == 0 and m.increase(model, x, 0, half) == 0
    else:  # O rises from exp(-|logit|) to exp(-|logit|/2), both tiny
        torch.testing.assert_close(gain, float64(math.exp(logit / 2)), rtol=1e-5, atol=1e-12)
        assert drop == 0 and m.increase(model, x, 0, half) == 1
    whole = m.average_gain(Pixels(torch.full((1, 1), -abs(logit))), normalised(torch.ones(1, 1, 1)), 1, half)
    assert whole == 0  # class 1 is certain: nothing to gain


def test_a_gain_near_certainty_is_not_lost():
    """1 - Y = σ(-60), 1 - O = σ(-61): in probabilities both are 1 - 1."""
    model = Pixels(torch.tensor([[61.0, -1.0]], dtype=torch.float64))
    x, heat = normalised(torch.ones(1, 1, 2, dtype=torch.float64)), torch.tensor([[[1.0, 0.0]]])
    torch.testing.assert_close(m.average_gain(model, x, 0, heat), float64(1 - math.exp(-1)))


@pytest.mark.parametrize(
    "steps, expected", [(4, [0.75, 0.25, 0.25, 0.5, 0.5]), (2, [0.75, 0.25, 0.5]), (1, [0.75, 0.5])]
)
def test_deletion_by_hand(pixels, steps, expected):
    """Pixels fall in reading order; to black the log-odds are log 3, then -log 3 without the first, 0 without the third."""
    model, x, target, _ = pixels
    heat = torch.tensor([[[1.0, 0.6], [0.3, 0.0]]], dtype=torch.float64)
    area = sum((a + b) / 2 for a, b in zip(expected, expected[1:], strict=False)) / steps
    torch.testing.assert_close(m.deletion(model, x[:1], target, heat, steps=steps, baseline="black"), float64(area))
    black = replacement(model, x[:1], "black")
    scores, shares = m.perturbation_curve(model, x[:1], target, heat, x[:1], black, steps)
    torch.testing.assert_close(scores, float64(*expected)[None])
    torch.testing.assert_close(shares, torch.linspace(0, 1, steps + 1, dtype=torch.float64))


def test_insertion_by_hand(pixels):
    """From black: log-odds 0, log 9, log 9, log 3, log 3."""
    model, x, target, _ = pixels
    heat = torch.tensor([[[1.0, 0.6], [0.3, 0.0]]], dtype=torch.float64)
    found = m.insertion(model, x[:1], target, heat, steps=4, baseline="black")
    torch.testing.assert_close(found, float64((0.25 + 0.9 + 0.9 + 0.75 + 0.375) / 4))


def test_equal_pixels_go_in_reading_order(pixels):
    model, x, target, _ = pixels
    order = torch.tensor([[[1.0, 0.6], [0.3, 0.0]]], dtype=torch.float64)
    for constant in (0.0, 0.5, 1.0):
        found = m.deletion(model, x[:1], target, torch.full_like(order, constant), steps=4)
        assert found == m.deletion(model, x[:1], target, order, steps=4)


def test_steps_that_do_not_divide_the_pixels(pixels):
    """3 steps of 4 pixels end at 1, 3 and 4 pixels: the area is taken over the true shares."""
    model, x, target, heat = pixels
    scores, shares = m.perturbation_curve(model, x, target, heat, x, replacement(model, x, "zero"), 3)
    torch.testing.assert_close(shares, float64(0, 0.25, 0.75, 1))
    area = ((scores[:, 1:] + scores[:, :-1]) / 2 * shares.diff()).sum(1)
    torch.testing.assert_close(m.deletion(model, x, target, heat, steps=3), area)


def test_baselines_of_deletion_and_insertion(x):
    model = with_spec(toy_cnn())
    blurred = replacement(model, x, "blur")
    expected = gaussian_filter(x.numpy(), 5, axes=(2, 3), mode="mirror", radius=5)
    torch.testing.assert_close(blurred, torch.from_numpy(expected))
    assert (replacement(model, x, "zero") == 0).all()
    torch.testing.assert_close(replacement(model, x, "black")[0, :, 3, 4], -float64(*MEAN) / float64(*STD))
    assert torch.equal(replacement(model, x, torch.full((3, 1, 1), 0.5)), torch.full_like(x, 0.5))
    for bad in ("grey", torch.zeros(2, 5), None):
        with pytest.raises(ValueError, match="baseline"):
            replacement(model, x, bad)
    with pytest.raises(ValueError, match="more than 5 pixels"):
        replacement(model, x[..., :5, :], "blur")


def test_a_perfect_map_beats_a_random_one():
    """The class is what is in a square: the square itself has the best deletion and insertion of all maps."""
    weight = torch.zeros(12, 12, dtype=torch.float64)
    weight[3:7, 5:9] = 0.3
    model, x = Pixels(weight), normalised(torch.ones(20, 12, 12, dtype=torch.float64))
    perfect = (weight > 0).double().expand(20, 12, 12)
    random = torch.rand(20, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for baseline in ("black", "zero"):
        options = {"baseline": baseline, "steps": 36}
        assert (m.deletion(model, x, 0, perfect, **options) < m.deletion(model, x, 0, random, **options)).all()
        assert (m.insertion(model, x, 0, perfect, **options) > m.insertion(model, x, 0, random, **options)).all()


class Extractor:
    """torchcam's interface, for maps that are there already."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, normalized=True, **_):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


class TestTorchcamAgrees:
    """It masks the normalised image, which is the same with mean 0; it takes means over images and adds 1e-7 to Y."""

    @pytest.fixture(autouse=True)
    def model(self, toy):
        self.model = with_spec(toy, mean=(0.0,) * 3, std=(1.0,) * 3)

    def test_average_drop_and_increase(self, x, heat):
        metric = ClassificationMetric(Extractor(self.model, heat), lambda logits: logits.softmax(1))
        metric.update(x, TARGET.tolist())
        found = metric.summary()
        ours = m.average_drop(self.model, x, TARGET, heat).mean().item()
        assert 0 < found["avg_drop"] == pytest.approx(ours, rel=1e-5)
        assert found["conf_increase"] == pytest.approx(m.increase(self.model, x, TARGET, heat).mean().item())

    @pytest.mark.parametrize("steps", [12, 36, 144])
    def test_deletion_and_insertion(self, x, heat, steps):
        for i in range(3):
            extractor = Extractor(self.model, heat[i : i + 1])
            metric = DeletionInsertionMetric(extractor, lambda logits: logits.softmax(1), steps=steps)
            metric.update(x[i : i + 1], TARGET[i : i + 1].tolist())
            found, arguments = metric.summary(), (self.model, x[i : i + 1], TARGET[i : i + 1], heat[i : i + 1])
            assert m.deletion(*arguments, steps=steps).item() == pytest.approx(found["deletion_auc"], rel=1e-6)
            ours = m.insertion(*arguments, steps=steps, baseline="zero").item()
            assert ours == pytest.approx(found["insertion_auc"], rel=1e-6)


def test_grad_cam_package_agrees(toy, x, heat):
    """Its drop is Y - O, not relative; it masks the normalised image, which is the same with mean 0, and only then."""
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in TARGET]
    same, other = with_spec(toy, mean=(0.0,) * 3), with_spec(toy_cnn(seed=1))
    for model, agree in ((same, True), (other, False)):
        drop = torch.from_numpy(DropInConfidence()(x, heat.numpy(), targets, model)).double()
        whole, masked = m.masked_scores(model, x, TARGET, heat)
        assert torch.allclose(drop, (whole - masked).clamp(min=0), atol=1e-6) == agree
        if agree:
            torch.testing.assert_close(drop / whole, m.average_drop(model, x, TARGET, heat), rtol=1e-5, atol=1e-6)
            found = torch.from_numpy(IncreaseInConfidence()(x, heat.numpy(), targets, model)).double()
            torch.testing.assert_close(found, m.increase(model, x, TARGET, heat))


def test_complexity_by_hand():
    heat = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(m.complexity(heat), float64(0.5, 0))


def test_adcc_by_hand_and_as_published():
    found = m.adcc(float64(0.5, 0, 1), float64(0.5, 1, 0.9), float64(0.5, 0, 0.2))
    torch.testing.assert_close(found, float64(0.5, 1, 0))
    with pytest.raises(ValueError, match="lie in"):
        m.adcc(float64(0.5), float64(1.001), float64(0.5))
    drop, coherency, complexity = 0.1384, 0.9707, 0.3842  # Grad-CAM, ResNet-50 (METHOD.md): ADCC 78.64 %
    assert round(100 * m.adcc(float64(drop), float64(coherency), float64(complexity)).item(), 2) == 78.64


def test_shapley_error_and_efficiency_gap_by_hand():
    truth = float64(3, 0, 4).view(1, 1, 3).repeat(4, 1, 1)
    values = torch.stack([truth[0], -truth[0], 0 * truth[0], truth[0] + float64(0, 5, 0)])
    torch.testing.assert_close(m.shapley_error(values, truth), float64(0, 2, 1, 1))
    torch.testing.assert_close(m.efficiency_gap(values, truth), float64(0, 14, 7, 5))
    assert m.shapley_error(truth, 0 * truth).isinf().all() and (m.shapley_error(0 * truth, 0 * truth) == 0).all()
    flat = float64(3, 4)[None]  # (N,n) will do as well as (N,h,w)
    torch.testing.assert_close(m.shapley_error(flat + float64(0, 0.5), flat), float64(0.1))
    for bad in (truth[:, :, :2], truth * math.nan):
        with pytest.raises(ValueError, match="alike"):
            m.shapley_error(bad, truth)


def test_registry():
    arguments = {
        "faithfulness": ["model", "x", "target", "heat"],
        "map": ["heat"],
        "method": ["model", "layer", "x", "target", "method"],
        "region": ["heat", "region"],
        "cells": ["maps", "cells", "index"],
        "shapley": ["values", "truth"],
    }
    for name, metric in METRICS.items():
        assert getattr(m, name) is metric.function and name in m.__all__
        parameters = inspect.signature(metric.function).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        assert required == (list(metric.of) if metric.needs == "metrics" else arguments[metric.needs]), name
        assert set(metric.of) <= set(METRICS) and metric.better in ("higher", "lower")
        assert metric.range[0] < metric.range[1]
        doc = " ".join(inspect.getdoc(metric.function).split())
        assert f"{metric.better} is better" in doc.lower() or "as `road_morf`" in doc, name


@pytest.mark.parametrize("metric", FAITHFULNESS.values(), ids=FAITHFULNESS)
class TestEveryFaithfulnessMetric:
    def test_range_and_type(self, metric, toy, x, heat):
        found = metric(with_spec(toy), x, TARGET, heat)
        assert found.shape == (3,) and found.dtype == torch.float64 and not found.requires_grad
        assert ((found >= 0) & (found <= 1)).all()

    def test_batch_is_loop_and_a_permutation_permutes(self, metric, toy, x, heat):
        model = with_spec(toy)
        batch, order = metric(model, x, TARGET, heat), torch.tensor([2, 0, 1])
        loop = torch.cat([metric(model, x[i : i + 1], TARGET[i], heat[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(batch, loop)
        torch.testing.assert_close(metric(model, x[order], TARGET[order], heat[order]), batch[order])

    def test_chunk_size_does_not_matter(self, metric, toy, x, heat):
        model = with_spec(toy)
        small, large = (metric(model, x, TARGET, heat, batch_size=size) for size in (3, 64))
        torch.testing.assert_close(small, large)
        with pytest.raises(ValueError, match="batch_size"):
            metric(model, x, TARGET, heat, batch_size=0)

    def test_memory_is_bounded_and_passes_are_counted(self, metric, x, heat):
        model, seen = with_spec(toy_cnn()), []
        model.classifier[3].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        with counting() as counter:
            metric(model, x, TARGET, heat, batch_size=5)
        assert max(seen) == 5 and sum(seen) == counter.total and counter.total % 3 == 0

    def test_not_square_and_single_precision(self, metric, x, heat):
        model = with_spec(toy_cnn())
        expected = metric(model, x[..., :8], TARGET, heat[..., :8])
        found = metric(model.float(), x[..., :8].float(), TARGET, heat[..., :8])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_model_in_training_and_any_caller(self, metric, x, heat):
        expected = metric(with_spec(toy_cnn()), x, TARGET, heat)
        model = with_spec(toy_cnn().train())
        before = state_of(model)
        torch.testing.assert_close(metric(model, x, TARGET, heat), expected)
        with torch.inference_mode():
            torch.testing.assert_close(metric(model, x.clone(), TARGET, heat.clone()), expected)
        assert same_state(before, state_of(model)) and torch.is_grad_enabled()

    def test_an_exception_leaves_nothing(self, metric, x, heat):
        model = with_spec(toy_cnn().train())
        model.classifier[3].register_forward_pre_hook(lambda *_: 1 / 0)
        before = state_of(model)
        with pytest.raises(ZeroDivisionError):
            metric(model, x, TARGET, heat)
        assert same_state(before, state_of(model)) and torch.is_grad_enabled()

    def test_bad_input(self, metric, x, heat):
        model = with_spec(toy_cnn())
        for bad, message in [
            ((model, x, TARGET, heat[:, :6]), "does not fit"),
            ((model, x, TARGET, heat[:2]), "does not fit"),
            ((model, x, TARGET, 2 * heat), r"in \[0,1\]"),
            ((model, x, TARGET, -heat), "postprocess.heatmap"),
            ((model, x, TARGET, heat * math.nan), "NaN"),
            ((model, x, TARGET, heat > 0.5), "floating point"),
            ((model, x, TARGET, heat[0]), r"\(N,H,W\)"),
            ((model, x * math.inf, TARGET, heat), "infinite"),
            ((model, x[0], TARGET, heat), r"\(N,3,H,W\)"),
            ((model, "x", TARGET, heat), r"\(N,3,H,W\)"),
            ((model, x, torch.tensor([0, 1, 3]), heat), "0 to 2"),
            ((model, x, torch.tensor([0, 1]), heat), "for each of the 3"),
        ]:
            with pytest.raises(ValueError, match=message):
                metric(*bad)


def test_a_model_without_spec_is_named():
    x, heat = torch.zeros(1, 3, 12, 12, dtype=torch.float64), torch.zeros(1, 12, 12)
    with pytest.raises(ValueError, match="model.spec"):
        m.average_drop(toy_cnn(), x, 0, heat)


def test_steps_out_of_range(pixels):
    for steps in (0, 5):
        with pytest.raises(ValueError, match="from 1 to 4"):
            m.deletion(*pixels, steps=steps)


def test_progress_bar(toy, x, heat, capsys):
    for metric in (m.deletion, m.insertion, m.road_morf):
        metric(with_spec(toy), x, TARGET, heat, progress=True)
        assert "%" in capsys.readouterr().err
        metric(with_spec(toy), x, TARGET, heat, progress=False)
        assert not capsys.readouterr().err


def test_on_a_photo(lite0):
    """The map of a photo against its reverse, and the map of ones. (By AD the reverse is the better one: it keeps more.)"""
    photo = load_photo("dog")
    x, target = preprocess(photo.image, lite0), photo.target
    heat = heatmap(METHODS["grad_cam"](lite0, "bn2", x, target), x.shape[2:])
    good, bad = (heat, 1 - heat)
    options = {"steps": 8}
    assert m.deletion(lite0, x, target, good, **options) < m.deletion(lite0, x, target, bad, **options)
    assert m.insertion(lite0, x, target, good, **options) > m.insertion(lite0, x, target, bad, **options)
    assert m.road_morf(lite0, x, target, good, fractions=[0.3]) < m.road_lerf(lite0, x, target, good, fractions=[0.3])
    ones = torch.ones_like(heat)
    assert m.average_drop(lite0, x, target, ones) == 0 == m.increase(lite0, x, target, ones)
    assert m.average_drop_in_deletion(lite0, x, target, ones) > 0.9
    assert np.isclose(m.complexity(good).item(), heat.mean().item())
