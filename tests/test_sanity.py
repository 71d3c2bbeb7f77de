import copy
import functools
import math

import pytest
import torch
from captum.metrics import sensitivity_max as captum_sensitivity_max
from pytorch_grad_cam.metrics.arcc import Coherency
from scipy import stats
from torch import nn

from cam_utils import METHODS, load_model
from cam_utils.baselines import BASELINES, random_map
from cam_utils.cams import grad_cam, hires_cam
from cam_utils.layers import counting
from cam_utils.metrics import mask_image
from cam_utils.postprocess import heatmap
from cam_utils.sanity import (
    cascading_randomisation,
    coherency,
    pearson,
    randomisation_correlations,
    sensitivity_max,
    spearman,
    stages_of,
)
from conftest import same_state, state_of, toy_cnn
from test_metrics import MEAN, STD, TARGET, with_spec

METRICS = (coherency, sensitivity_max, cascading_randomisation)


def channel(model, layer, x, target):
    """A method as simple as can be: the red channel."""
    return x[:, 0]


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("ours, theirs", [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_scipy_agrees_on_correlations(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 6, 7, generator=generator), torch.randn(5, 6, 7, generator=generator)
    a[1], b[1] = a[1].round(), b[1].round()  # many ties
    b[2], b[3] = 3 * a[2] + 1, -a[3]
    expected = [theirs(u.flatten().numpy(), v.flatten().numpy()).statistic for u, v in zip(a, b, strict=True)]
    torch.testing.assert_close(ours(a, b), float64(*expected), rtol=1e-6, atol=1e-6)
    assert len(set(a[1].flatten().tolist())) < 10
    for value in (0.0, 0.1, 1e9):
        assert (ours(torch.full_like(a, value), b) == 0).all()


def test_coherency_by_hand():
    """Red is (0, 2, 4), so the heat is (0, 1/2, 1) and red seen through it (0, 1, 4), whose heat is (0, 1/4, 1)."""
    model = with_spec(toy_cnn(), mean=(0.0,) * 3, std=(1.0,) * 3)
    x = float64(0, 2, 4).expand(1, 3, 1, 3)
    a, b = float64(-0.5, 0, 0.5), float64(0, 0.25, 1) - 1.25 / 3
    rho = (a @ b / (a.norm() * b.norm())).item()
    torch.testing.assert_close(coherency(model, None, x, 0, channel), float64((rho + 1) / 2))


def test_coherency_masks_in_pixel_space(x):
    model, seen = with_spec(toy_cnn()), []

    def method(model, layer, x, target):
        seen.append(x)
        return channel(model, layer, x, target)

    coherency(model, None, x, TARGET, method)
    expected = mask_image(model, x, heatmap(x[:, 0], (12, 12)).double())
    torch.testing.assert_close(seen[1], expected)
    black = -float64(*MEAN) / float64(*STD)
    coldest = x[0, 0].argmin()
    torch.testing.assert_close(expected[0].flatten(1)[:, coldest], black)


def test_grad_cam_package_agrees_on_coherency(toy, x):
    """It masks the normalised image, which is the same with mean 0, and adds 1e-8 to the denominator."""
    model = with_spec(toy, mean=(0.0,) * 3, std=(1.0,) * 3)

    def heat(input_tensor, targets):
        return heatmap(grad_cam(model, "features", input_tensor, TARGET), (12, 12)).numpy()

    expected = Coherency()(
        x.float(), heat(x, None), None, model, lambda **inputs: heat(inputs["input_tensor"].double(), None)
    )
    found = coherency(model, "features", x, TARGET, grad_cam)
    torch.testing.assert_close(found, torch.from_numpy(expected).double(), rtol=1e-4, atol=1e-4)
    assert found.std() > 0


def test_coherency_of_maps_that_say_nothing(x):
    model = with_spec(toy_cnn())
    assert (coherency(model, None, x, TARGET, BASELINES["centre_gaussian"]) == 1).all()
    assert (coherency(model, None, x, TARGET, lambda *_: torch.ones(3, 4, 4)) == 0.5).all()
    noise = functools.partial(random_map, generator=torch.Generator().manual_seed(0))
    many = coherency(model, None, x[:1].expand(200, 3, 12, 12), 0, noise)
    assert abs(many.mean() - 0.5) < 0.02


def test_sensitivity_by_hand():
    """The red channel is (0, 3, 4), of norm 5; the largest of the two perturbations has norm 2 · 0.1 · √3 if all draws are ±1."""
    model = with_spec(toy_cnn(), mean=(0.0,) * 3, std=(0.5, 1.0, 1.0))
    x = float64(0, 3, 4).expand(1, 3, 1, 3)
    generator = torch.Generator().manual_seed(0)
    draws = 2 * torch.rand(4, 3, 1, 3, generator=generator, dtype=torch.float64) - 1
    expected = (0.1 / 0.5 * draws[:, 0].flatten(1)).norm(dim=1).max() / 5
    options = {"radius": 0.1, "n_perturbations": 4}
    torch.testing.assert_close(sensitivity_max(model, None, x, 0, channel, **options), expected[None])


@pytest.mark.parametrize("method", [grad_cam, hires_cam])
def test_captum_agrees_on_sensitivity(toy, x, method):
    model = with_spec(toy, mean=(0.0,) * 3, std=(1.0,) * 3)
    generator = torch.Generator().manual_seed(0)
    draws = 2 * torch.rand(6, 3, 12, 12, generator=generator, dtype=torch.float64) - 1

    def perturb(inputs, radius):
        return inputs + radius * draws.repeat(3, 1, 1, 1)

    expected = captum_sensitivity_max(
        lambda inputs, target: (method(model, "features", inputs[0] if isinstance(inputs, tuple) else inputs, target),),
        *(x, perturb),
        perturb_radius=0.05,
        n_perturb_samples=6,
        target=TARGET,
    )
    found = sensitivity_max(model, "features", x, TARGET, method, radius=0.05, n_perturbations=6)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()


def test_sensitivity_of_a_zero_map(x):
    model = with_spec(toy_cnn())
    assert (sensitivity_max(model, None, x, TARGET, lambda m, la, x, t: 0 * x[:, 0]) == 0).all()
    assert sensitivity_max(model, None, x[:1], 0, lambda m, la, y, t: y[:, 0] - x[:1, 0]).isinf().all()


def test_chunk_size_does_not_matter(toy, x):
    model, seen = with_spec(toy), []

    def method(model, layer, x, target):
        seen.append(len(x))
        return grad_cam(model, layer, x, target)

    small = sensitivity_max(model, "features", x, TARGET, method, batch_size=3)
    assert max(seen) == 3 and sum(seen) == 3 * 11
    torch.testing.assert_close(small, sensitivity_max(model, "features", x, TARGET, method, batch_size=64))
    for bad in ({"batch_size": 0}, {"radius": 0}, {"n_perturbations": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            sensitivity_max(model, "features", x, TARGET, method, **bad)


def test_stages():
    assert stages_of(toy_cnn()) == ["classifier.3", "features.4", "features.1", "features.0"]
    names = stages_of(load_model("tf_efficientnet_lite0", "random"))
    assert names == ["classifier", "bn2", "conv_head", *(f"blocks.{i}" for i in range(6, -1, -1)), "bn1", "conv_stem"]
    assert stages_of(load_model("resnet18", "random"))[:3] == ["fc", "layer4.1", "layer4.0"]


def test_nothing_to_randomise(x):
    for model, stages in ((toy_cnn(), []), (nn.Sequential(nn.Identity()), None)):
        with pytest.raises(ValueError, match="nothing to randomise"):
            randomisation_correlations(model, None, x, TARGET, channel, stages=stages)
    with pytest.raises(ValueError, match="no layer"):
        randomisation_correlations(toy_cnn(), None, x, TARGET, channel, stages=["head"])


class Spy:
    """Grad-CAM that remembers the networks it was asked about."""

    def __init__(self):
        self.models = []

    def __call__(self, model, layer, x, target):
        self.models.append(copy.deepcopy(model))
        return grad_cam(model, layer, x, target)


def changed(before, after):
    """Names of the modules whose own parameters or statistics differ."""
    b = before.state_dict()
    return {name.rpartition(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, b[name])}


def test_each_stage_has_one_more_module_random(toy, x):
    model, spy = with_spec(toy), Spy()
    nn.init.uniform_(model.features[1].running_mean)  # statistics of a trained batch norm
    before, stages = state_of(model), stages_of(toy)
    found = randomisation_correlations(model, model.features, x, TARGET, spy)
    assert found.shape == (3, len(stages)) and len(spy.models) == len(stages) + 1
    assert not changed(model, spy.models[0])
    for k, random in enumerate(spy.models[1:], start=1):
        assert changed(model, random) == set(stages[:k])
        assert not random.training and random is not model
    for k in range(2, len(spy.models)):  # drawn once, then kept
        assert changed(spy.models[k - 1], spy.models[k]) == {stages[k - 1]}
    assert (spy.models[-1].features[1].running_mean == 0).all()
    maps = [grad_cam(random, "features", x, TARGET) for random in spy.models]
    expected = [
        [stats.spearmanr(maps[0][i].flatten(), after[i].flatten()).statistic for after in maps[1:]] for i in range(3)
    ]
    torch.testing.assert_close(found, float64(*expected).nan_to_num(0), rtol=1e-6, atol=1e-6)
    whole = cascading_randomisation(model, "features", x, TARGET, grad_cam)
    torch.testing.assert_close(whole, found.abs().mean(1))
    assert same_state(before, state_of(model))


def test_randomisation_is_drawn_from_the_generator(toy, x):
    model, state = with_spec(toy), torch.get_rng_state()
    a, b, c = (
        randomisation_correlations(
            model, "features", x, TARGET, grad_cam, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(a, randomisation_correlations(model, "features", x, TARGET, grad_cam))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        randomisation_correlations(model, "features", x[order], TARGET[order], grad_cam), a[order]
    )


def test_parameters_without_a_rule_are_shuffled(x):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(48.0, dtype=torch.float64).view(3, 4, 4))

        def forward(self, x):
            return x.mean((2, 3)) * self.scale.sum((1, 2))

    model, spy = nn.Sequential(Scale()), []

    def method(model, layer, x, target):
        spy.append(model[0].scale.detach().clone())
        return spy[-1][:1].expand(len(x), 4, 4)

    found = randomisation_correlations(model, None, x, TARGET, method)
    assert not torch.equal(spy[0], spy[1]) and torch.equal(spy[1].flatten().sort().values, spy[0].flatten())
    assert found.shape == (3, 1) and (found.abs() < 1).all()


def test_a_method_that_ignores_the_network_fails_the_check(x):
    """Edges survive every randomisation; Grad-CAM on a layer below the random ones does not."""
    model = with_spec(toy_cnn("fc"))
    edges = cascading_randomisation(model, None, x, TARGET, BASELINES["sobel_edges"])
    torch.testing.assert_close(edges, torch.ones(3, dtype=torch.float64))
    assert (cascading_randomisation(model, "features", x, TARGET, METHODS["grad_cam"]) < 0.9).all()


@pytest.mark.parametrize("metric", METRICS)
class TestEvery:
    def test_batch_is_loop_and_a_permutation_permutes(self, metric, toy, x):
        model, order = with_spec(toy), torch.tensor([2, 0, 1])
        batch = metric(model, "features", x, TARGET, grad_cam)
        assert batch.shape == (3,) and batch.dtype == torch.float64 and not batch.requires_grad
        loop = torch.cat([metric(model, "features", x[i : i + 1], TARGET[i], grad_cam) for i in range(3)])
        torch.testing.assert_close(batch, loop, rtol=1e-5, atol=1e-6)
        permuted = metric(model, "features", x[order], TARGET[order], grad_cam)
        torch.testing.assert_close(permuted, batch[order], rtol=1e-5, atol=1e-6)

    def test_frozen_training_and_any_caller(self, metric, x):
        expected = metric(with_spec(toy_cnn()), "features", x, TARGET, grad_cam)
        model = with_spec(toy_cnn().train().requires_grad_(False))
        before = state_of(model)
        torch.testing.assert_close(metric(model, "features", x, TARGET, grad_cam), expected)
        with torch.no_grad():
            torch.testing.assert_close(metric(model, model.features, x, TARGET, grad_cam), expected)
        with torch.inference_mode():
            torch.testing.assert_close(metric(model, "features", x, TARGET, grad_cam), expected)
        assert same_state(before, state_of(model)) and torch.is_grad_enabled()

    def test_an_exception_leaves_nothing(self, metric, x):
        model, calls = with_spec(toy_cnn().train()), []

        def method(model, layer, x, target):
            calls.append(1)
            return grad_cam(model, layer, x, target) if len(calls) < 2 else 1 / 0

        before = state_of(model)
        with pytest.raises(ZeroDivisionError):
            metric(model, "features", x, TARGET, method)
        assert same_state(before, state_of(model)) and torch.is_grad_enabled()

    def test_passes_are_counted(self, metric, x):
        model = with_spec(toy_cnn())
        with counting() as one:
            grad_cam(model, "features", x, TARGET)
        with counting() as counter:
            metric(model, "features", x, TARGET, grad_cam)
        runs = {coherency: 2, sensitivity_max: 11, cascading_randomisation: 1 + len(stages_of(model))}
        assert counter.total == runs[metric] * one.total

    def test_bad_input(self, metric, x):
        model = with_spec(toy_cnn())
        for bad, message in [
            ((x * math.nan, TARGET), "NaN"),
            ((x, torch.tensor([0, 1, 3])), "0 to 2"),
            ((x[0], TARGET), r"\(N,3,H,W\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                metric(model, "features", *bad, grad_cam)
        with pytest.raises(ValueError, match="map contains NaN"):
            metric(model, "features", x, TARGET, lambda model, layer, x, target: x[:, 0] * math.nan)
        with pytest.raises(ValueError, match="no layer"):
            metric(model, "nowhere", x, TARGET, grad_cam)


def test_progress_bar(toy, x, capsys):
    for metric in (sensitivity_max, cascading_randomisation):
        metric(with_spec(toy), "features", x, TARGET, grad_cam, progress=True)
        assert "%" in capsys.readouterr().err
        metric(with_spec(toy), "features", x, TARGET, grad_cam, progress=False)
        assert not capsys.readouterr().err
