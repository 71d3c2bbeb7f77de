"""What holds for every network, image, game and text, not only for chosen ones; the examples are the same on every run."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cam_utils import METHODS, LayerGame, explain
from cam_utils.data import load_image, mosaic_masks
from cam_utils.metrics import METRICS, spearman
from cam_utils.models import IMAGENET_CLASSES, resolve_target
from cam_utils.networks import open_model
from cam_utils.owen import owen
from cam_utils.postprocess import heatmap, normalize, upsample
from cam_utils.shapley import BudgetError, exact, kernel_shap, per_position, permutation
from conftest import same_state, state_of, toy_cnn
from kinds import noise, run, with_spec

settings.register_profile(
    "same examples on every run",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("same examples on every run")

SEEDS = st.integers(0, 2**31 - 1)
SMOOTH = [name for name in METHODS if name != "cam"]  # defined for every network


@st.composite
def networks(draw):
    """A small random network in float64, the name of a layer, and its number of classes."""
    width, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    activation = draw(st.sampled_from([nn.ReLU, nn.SiLU, nn.Tanh, lambda: nn.ReLU(inplace=True)]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(SEEDS))
        parts = []
        for inputs in (3, width)[: draw(st.integers(1, 2))]:
            parts += [nn.Conv2d(inputs, width, 3, padding=1, stride=draw(st.integers(1, 2)))]
            parts += [nn.BatchNorm2d(width)] * draw(st.booleans()) + [activation()]
        pooling = draw(st.sampled_from([nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)]))
        model = nn.Sequential(nn.Sequential(*parts), nn.Sequential(pooling, nn.Flatten(), nn.Linear(width, classes)))
    layer = draw(st.sampled_from(["0", f"0.{len(parts) - 1}", "0.0"]))
    return model.double().train(draw(st.booleans())), layer, classes


@st.composite
def questions(draw):
    """A network, a layer, images and their targets."""
    model, layer, classes = draw(networks())
    n, h, w = (draw(st.integers(*bounds)) for bounds in ((1, 3), (4, 9), (4, 9)))
    x = draw(st.sampled_from([1e-3, 1.0, 30.0])) * noise(n, 3, h, w, seed=draw(SEEDS))
    return model, layer, x, torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))


@pytest.mark.parametrize("method", SMOOTH)
@given(questions())
@settings(max_examples=15)
def test_maps_are_finite_of_the_layers_size_and_leave_the_network_alone(method, question):
    model, layer, x, target = question
    before, kept = state_of(model), x.clone()
    maps = run(method, model, layer, x, target)
    assert same_state(before, state_of(model)) and torch.equal(x, kept)
    with torch.no_grad():
        part = model.eval().get_submodule("0")[: 1 if layer == "0.0" else None]
        size = x.shape[2:] if method == "lime" else part(x).shape[2:]
    assert maps.shape == (len(x), *size) and maps.isfinite().all() and maps.dtype == x.dtype
    assert not maps.requires_grad


@pytest.mark.parametrize("method", SMOOTH)
@given(question=questions(), seed=SEEDS)
@settings(max_examples=8)
def test_an_images_map_depends_neither_on_its_place_in_the_batch_nor_on_the_others(method, question, seed):
    model, layer, x, target = question
    maps = run(method, model, layer, x, target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run(method, model, layer, x[order], target[order]), maps[order])
    alone = [run(method, model, layer, x[i : i + 1], target[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(torch.cat(alone), maps)


class Random:
    """A game of random payoffs that counts what is asked of it."""

    def __init__(self, n: int, seed: int):
        self.n_players, self.asked = n, 0
        self.payoffs = noise(2**n, seed=seed)

    def value(self, masks):
        self.asked += len(masks)
        return self.payoffs[(masks.long() << torch.arange(self.n_players)).sum(1)]


@given(n=st.integers(2, 7), seed=SEEDS, budget=st.integers(0, 300), draws=SEEDS)
@pytest.mark.parametrize("estimator", [permutation, per_position, kernel_shap])
def test_estimators_keep_to_the_budget_report_it_and_their_gap(estimator, n, seed, budget, draws):
    game = Random(n, seed)
    try:
        estimate = estimator(game, budget, torch.Generator().manual_seed(draws))
    except BudgetError:
        assert budget < 2 * n + 2 and game.asked == 0
        return
    assert game.asked == estimate.n_evaluations <= budget
    total = float(game.payoffs[-1] - game.payoffs[0])
    assert math.isclose(float(estimate.values.sum()) - total, estimate.efficiency_gap, abs_tol=1e-9)
    assert estimate.values.isfinite().all() and (estimate.standard_error >= 0).all()
    if estimator is not per_position:  # which draws for every player anew
        assert abs(estimate.efficiency_gap) < 1e-9


@given(n=st.integers(1, 7), seed=SEEDS, scale=st.floats(-100, 100))
def test_exact_values_are_efficient_linear_and_blind_to_names(n, seed, scale):
    game, other = Random(n, seed), Random(n, seed + 1)
    values = exact(game).values
    assert torch.isclose(values.sum(), game.payoffs[-1] - game.payoffs[0])
    both = Random(n, seed)
    both.payoffs = game.payoffs + scale * other.payoffs
    torch.testing.assert_close(exact(both).values, values + scale * exact(other).values)
    turned = Random(n, seed)
    turned.value = lambda masks: game.value(masks.flip(1))
    torch.testing.assert_close(exact(turned).values, values.flip(0))


@given(question=questions(), budget=st.floats(5, 300), payoff=st.sampled_from(["probability", "logit", "log_odds"]))
@settings(max_examples=15)
def test_owen_keeps_to_the_budget_and_its_values_to_the_gap(question, budget, payoff):
    model, layer, x, target = question
    game = LayerGame(model, layer, x[:1], target[:1], payoff=payoff, deferred=True)
    start = game.n_evaluations
    estimate = owen(game, budget)
    assert game.n_evaluations - start == estimate.n_evaluations <= budget
    ends = game.value(torch.tensor([[0.0], [1.0]]).expand(2, game.n_players))
    assert estimate.values.isfinite().all()
    assert abs(float(estimate.values.sum() - ends[1] + ends[0])) <= abs(estimate.efficiency_gap) + 1e-8


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=SEEDS,
    scale=st.floats(1e-30, 1e30),
    shift=st.floats(-1e30, 1e30),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=100)
def test_what_is_shown_lies_between_0_and_1(shape, size, seed, scale, shift, dtype):
    maps = (scale * noise(*shape, seed=seed) + shift).to(dtype)
    for shown in (heatmap(maps, size), normalize(maps), normalize(upsample(maps, size))):
        assert shown.isfinite().all() and shown.min() >= 0 and shown.max() <= 1
    assert heatmap(maps, size).shape == (shape[0], *size)
    peaks = normalize(maps).amax((1, 2))
    assert ((peaks == 0) | (peaks == 1)).all()


@given(seed=SEEDS, scale=st.floats(0.01, 100), shift=st.floats(-3, 3))
def test_scores_that_only_rank_ignore_the_scale_and_metrics_keep_their_range(seed, scale, shift):
    maps = noise(2, 5, 5, seed=seed)
    heat, region = normalize(maps), noise(2, 5, 5, seed=seed + 1) > 0.3
    torch.testing.assert_close(normalize(scale * maps + shift), heat)
    assert (spearman(maps, scale * maps + shift) > 1 - 1e-9).all()
    for name, metric in METRICS.items():
        if metric.needs in ("map", "region"):
            score = metric.function(heat, region) if metric.needs == "region" else metric.function(heat)
            low, high = metric.range
            assert score.shape == (2,) and (score >= low).all() and (score <= high).all(), name


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000"])
@given(data=st.data())
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it can repair
def test_a_corrupted_file_is_an_image_or_one_clear_error(kind, data, tmp_path):
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "a.img"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    before = file.read_bytes()
    try:
        image = load_image(file)
        assert image.mode == "RGB" and min(image.size) > 0
    except (ValueError, OSError) as error:
        assert "a.img" in str(error)
    assert file.read_bytes() == before


@given(data=st.data())
@settings(max_examples=40)
def test_a_corrupted_file_of_weights_is_read_or_refused(data, tmp_path):
    buffer = io.BytesIO()
    torch.save(toy_cnn().state_dict(), buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "a.pt"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        assert isinstance(open_model("conftest:toy_cnn", file), nn.Module)
    except ValueError as error:
        assert "a.pt" in str(error) or "NaN" in str(error)


NAMED = with_spec(toy_cnn(), class_names=IMAGENET_CLASSES)
ANYTHING = st.one_of(
    st.text(max_size=12),
    st.sampled_from(IMAGENET_CLASSES).map(str.upper),
    st.sampled_from(IMAGENET_CLASSES).map(lambda name: name[1:]),
    st.integers(-2000, 2000),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
    st.complex_numbers(),
    st.integers(-2000, 2000).map(np.int64),
    st.integers(-2000, 2000).map(torch.tensor),
)


@given(ANYTHING)
@settings(max_examples=80)
def test_any_target_is_resolved_to_the_class_it_names_or_refused(target):
    try:
        index = resolve_target(NAMED, target)
    except ValueError as error:
        assert "class" in str(error)
        return
    assert type(index) is int and 0 <= index < 1000
    by_name = isinstance(target, str) and target.lower() == IMAGENET_CLASSES[index].lower()
    assert by_name or index == int(target) and not isinstance(target, bool | float)


@given(ANYTHING)
@settings(max_examples=80)
def test_any_target_of_a_method_is_a_class_id_or_refused(target):
    x, model = noise(2, 3, 6, 6), toy_cnn()
    try:
        maps = METHODS["grad_cam"](model, "features", x, target)
    except ValueError as error:
        assert "target" in str(error)
        return
    ids = torch.as_tensor(target).long().expand(2)
    torch.testing.assert_close(maps, METHODS["grad_cam"](model, "features", x, ids), rtol=0, atol=0)


@given(name=st.text(max_size=20))
@settings(max_examples=80)
def test_any_text_for_a_layer_or_a_method_is_one_or_refused(name):
    model = with_spec(toy_cnn())
    with pytest.raises(ValueError, match="has no layer"):
        METHODS["grad_cam"](model, name + "?", noise(1, 3, 6, 6), 0)
    with pytest.raises(ValueError, match="unknown method"):
        explain(model, Image.new("L", (9, 9)), method=name + "?")


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), h=st.integers(1, 30), w=st.integers(1, 30))
def test_the_cells_of_a_mosaic_are_a_partition(rows, columns, h, w):
    if h < rows or w < columns:
        with pytest.raises(ValueError, match="at least one pixel each"):
            mosaic_masks(rows, columns, h, w)
        return
    masks = mosaic_masks(rows, columns, h, w)
    assert masks.shape == (rows * columns, h, w) and (masks.sum(0) == 1).all() and masks.any((1, 2)).all()
