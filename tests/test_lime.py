import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import Lime
from skimage.segmentation import slic
from sklearn.linear_model import Ridge
from sklearn.metrics import pairwise_distances
from torch import nn
from torchvision.transforms import InterpolationMode

from cam_utils import METHODS, preprocess
from cam_utils.data import load_photo
from cam_utils.layers import counting
from cam_utils.lime import kernel_weights, lime, superpixels, weighted_r2, weighted_ridge
from cam_utils.models import ModelSpec, view
from conftest import same_state, state_of, toy_cnn

TARGET = torch.tensor([0, 2, 1])
QUARTERS = torch.arange(2).repeat_interleave(6)[:, None] * 2 + torch.arange(2).repeat_interleave(6)  # (12,12) of 0 … 3
SLOPES = torch.tensor([0.05, -0.03, 0.02, 0.01], dtype=torch.float64)
SPEC = ModelSpec("toy", "", 48, 54, InterpolationMode.BICUBIC, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), ("a", "b"), "test")


class Linear(nn.Module):
    """The softmax probability of class 0 is 1/2 + Σ slope · (green of one pixel in each quarter), class 1 the rest."""

    def forward(self, x):
        p = 0.5 + x[:, 1, 1::6, 1::6].flatten(1) @ SLOPES
        return torch.stack([p.log(), (1 - p).log()], 1)


def random_masks(samples, segments, seed=0):
    masks = torch.rand(samples, segments, generator=torch.Generator().manual_seed(seed)) < 0.5
    masks[0], masks[1] = True, False
    return masks


@pytest.mark.parametrize("baseline", ["mean", "grey", "tensor"])
def test_a_linear_model_is_recovered_exactly(x, baseline):
    model, image = Linear(), x[:1].clamp(-2, 2)
    model.spec = SPEC
    value = torch.full((3, 1, 1), 0.7, dtype=torch.float64)
    absent = {
        "mean": torch.stack([image[0, 1][k == QUARTERS].mean() for k in range(4)]),
        "grey": torch.tensor(0.0),  # of the second colour: (0.5 - 0.5) / 0.3
        "tensor": torch.tensor(0.7),
    }[baseline]
    options = {"segments": QUARTERS, "n_samples": 64, "alpha": 1e-9, "return_fit": True}
    maps, fits = lime(model, None, image, 0, baseline=value if baseline == "tensor" else baseline, **options)
    expected = SLOPES * (image[0, 1, 1::6, 1::6].flatten() - absent)
    torch.testing.assert_close(fits[0].coefficients, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(maps[0], expected[QUARTERS], rtol=0, atol=1e-9)
    assert fits[0].intercept == pytest.approx(float(0.5 + (SLOPES * absent).sum()), abs=1e-9)
    assert fits[0].r2 == pytest.approx(1, abs=1e-9) and expected.abs().max() > 0.01
    other = lime(model, None, image, 1, baseline=value if baseline == "tensor" else baseline, **options)[0]
    torch.testing.assert_close(other, -maps)


def test_two_segments_by_hand():
    """z = 11, 10, 01, 00 with weights 2, 1, 1, 1 and y = 4, 1, 2, 0.

    Means: z̄ = (3/5, 3/5), ȳ = 11/5. Gram of the centred z: diagonal 6/5, off 1/5; right side 12/5, 17/5.
    Without ridge: b = (6/5·12/5 - 1/5·17/5, 6/5·17/5 - 1/5·12/5) / (35/25) = (11/7, 18/7); with alpha = 1: gram 11/5.
    """
    masks, w = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool(), torch.tensor([2.0, 1, 1, 1])
    y = torch.tensor([4.0, 1, 2, 0])
    b, b0 = weighted_ridge(masks, y, w, 1e-12)
    torch.testing.assert_close(b, torch.tensor([11 / 7, 18 / 7], dtype=torch.float64))
    assert b0 == pytest.approx(11 / 5 - 3 / 5 * 29 / 7)
    det = (11 / 5) ** 2 - (1 / 5) ** 2
    expected = torch.tensor([11 * 12 - 17, 11 * 17 - 12], dtype=torch.float64) / 25 / det
    torch.testing.assert_close(weighted_ridge(masks, y, w, 1)[0], expected)


def test_scikit_learn_agrees():
    """On the kernel (its cosine distance to the full mask), the ridge with an intercept, and the weighted R²."""
    masks = random_masks(80, 12)
    y = torch.rand(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distance = pairwise_distances(masks.double(), torch.ones(1, 12), metric="cosine").ravel()
    w = kernel_weights(masks, 0.3)
    np.testing.assert_allclose(w, np.sqrt(np.exp(-(distance**2) / 0.3**2)), rtol=1e-12)  # as the lime package writes it
    assert w[0] == 1 and w[1] == pytest.approx(np.exp(-1 / (2 * 0.3**2)))
    for alpha in (1e-3, 1.0):
        peer = Ridge(alpha=alpha).fit(masks.double(), y, sample_weight=w)
        b, b0 = weighted_ridge(masks, y, w, alpha)
        np.testing.assert_allclose(b, peer.coef_, atol=1e-12)
        assert b0 == pytest.approx(peer.intercept_, abs=1e-12)
        score = peer.score(masks.double(), y, sample_weight=w)
        assert weighted_r2(y, b0 + masks.double() @ b, w) == pytest.approx(score, abs=1e-12)
    assert weighted_r2(y, (w @ y / w.sum()).expand(80), w) == pytest.approx(0) and weighted_r2(y, 1 - y, w) < 0


@pytest.mark.parametrize("head, scale", [("gap", 8), ("fc", 2)])
def test_captum_agrees_on_the_same_perturbations(head, scale, x):
    model, image, width = toy_cnn(head), x[:1], 0.4
    for parameter in model.classifier.parameters():
        parameter.data *= scale  # so that the probabilities move
    _, (fit,) = lime(model, None, image, 1, n_samples=120, n_segments=9, kernel_width=width, return_fit=True)
    absent = image.clone()
    for k in range(len(fit.coefficients)):
        absent[:, :, fit.segments == k] = image[:, :, fit.segments == k].mean(2, keepdim=True)

    def perturb(original, **_):
        yield from fit.masks.long()[:, None]

    def similarity(original, perturbed, mask, **_):
        distance = 1 - nn.functional.cosine_similarity(mask.double(), torch.ones_like(mask).double())
        return torch.exp(-(distance**2) / (2 * width**2))

    peer = Lime(lambda copies: model(copies).softmax(1), SkLearnRidge(alpha=1.0), similarity, perturb)
    expected = peer.attribute(
        image,
        absent,
        target=1,
        feature_mask=fit.segments[None, None],
        n_samples=len(fit.masks),
        perturbations_per_eval=40,
        return_input_shape=False,
    )[0]
    torch.testing.assert_close(fit.coefficients, expected.double(), rtol=0, atol=1e-6)
    assert fit.coefficients.abs().max() > 1e-2


def test_what_the_fit_holds(x):
    model = toy_cnn("gap")
    maps, fits = lime(model, None, x, TARGET, n_samples=40, n_segments=9, return_fit=True)
    for image, c, map, fit in zip(x, TARGET, maps, fits, strict=True):
        assert fit.masks.shape == (40, len(fit.coefficients)) and fit.masks[0].all() and fit.n_evaluations == 40
        torch.testing.assert_close(fit.payoffs[0], model(image[None]).softmax(1)[0, c])
        torch.testing.assert_close(fit.weights, kernel_weights(fit.masks))
        torch.testing.assert_close(map, fit.coefficients[fit.segments])
        assert fit.r2 == pytest.approx(weighted_r2(fit.payoffs, fit.predict(fit.masks), fit.weights))
        assert 0 < fit.r2 <= 1
        torch.testing.assert_close(fit.predict(fit.masks[:1] * 0.0).item(), fit.intercept)
    _, (logit,) = lime(model, None, x[:1], 0, n_samples=3, n_segments=9, payoff="logit", return_fit=True)
    torch.testing.assert_close(logit.payoffs[0], model(x[:1])[0, 0])


def test_superpixels_are_of_the_pixels_that_the_network_saw():
    model, image = nn.Identity(), load_photo("dog").image
    model.spec = SPEC
    x, seen = preprocess(image, model), np.asarray(view(image, model))
    segments = superpixels(model, x, 20)
    expected = slic(seen, 20, compactness=10, sigma=1, start_label=0)
    assert torch.equal(segments[0], torch.from_numpy(expected).long())
    assert 10 <= len(segments.unique()) <= 30 and segments.min() == 0
    model.spec = None  # taken as they are, the colours have another weight
    assert not torch.equal(superpixels(model, x, 20), segments)


def test_segments_of_ones_own_and_the_layer_is_ignored(x):
    model, odd = toy_cnn("gap"), QUARTERS * 3 + 7
    expected = lime(model, None, x, TARGET, n_samples=20, segments=QUARTERS)
    for segments in (odd, odd.expand(3, -1, -1), odd.numpy()):
        assert torch.equal(METHODS["lime"](model, "nowhere", x, TARGET, n_samples=20, segments=segments), expected)
    assert all(len(m.unique()) == 4 for m in expected)


def test_same_seed_same_bytes(x):
    model = toy_cnn("gap")

    def run(seed=None, **options):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return lime(model, None, x, TARGET, n_samples=30, n_segments=9, generator=generator, **options)

    assert torch.equal(run(5), run(5)) and not torch.equal(run(5), run(6))
    assert torch.equal(run()[0], run(0)[0]) and torch.equal(run(), run())


def test_batch_is_loop_and_chunk_size_does_not_matter(toy, x):
    options = {"n_samples": 40, "n_segments": 9}
    batch = lime(toy, None, x, TARGET, **options)
    loop = torch.cat([lime(toy, None, x[i : i + 1], TARGET[i : i + 1], **options) for i in range(3)])
    assert batch.shape == (3, 12, 12) and batch.dtype == x.dtype and not batch.requires_grad
    torch.testing.assert_close(batch, loop)
    small, large = (lime(toy, None, x, TARGET, batch_size=size, **options) for size in (3, 64))
    torch.testing.assert_close(small, large)


def test_memory_is_bounded_by_the_batch_size_and_passes_are_counted(x):
    model, seen = toy_cnn("gap"), []
    model.features.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with counting() as counter:
        lime(model, None, x[:2], TARGET[:2], n_samples=40, n_segments=9, batch_size=7)
    assert max(seen) == 7 and sum(seen) == 80 == counter.total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_and_not_square(x, dtype):
    options = {"n_samples": 40, "segments": QUARTERS[:, 2:10]}
    expected = lime(toy_cnn("gap"), None, x[..., :8], TARGET, **options)
    maps = lime(toy_cnn("gap").to(dtype), None, x[..., :8].to(dtype), TARGET, **options)
    assert maps.dtype == dtype and maps.shape == (3, 12, 8)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(maps.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_the_model_is_left_unchanged(x):
    expected = lime(toy_cnn("gap"), None, x, TARGET, n_samples=20, n_segments=9)
    model = toy_cnn("gap").train().requires_grad_(False)
    before = state_of(model)
    with torch.inference_mode():
        torch.testing.assert_close(lime(model, None, x, TARGET, n_samples=20, n_segments=9), expected)
    assert same_state(before, state_of(model))
    model.classifier[3].register_forward_pre_hook(lambda *_: 1 / 0)
    before = state_of(model)
    with pytest.raises(ZeroDivisionError):
        lime(model, None, x, TARGET, n_samples=20, n_segments=9)
    assert same_state(before, state_of(model)) and torch.is_grad_enabled()


def test_a_constant_image_gives_zeros(x):
    maps, fits = lime(toy_cnn("gap"), None, torch.zeros_like(x), TARGET, n_samples=20, n_segments=9, return_fit=True)
    assert (maps.abs() < 1e-12).all() and all(np.isfinite(fit.r2) for fit in fits)
    assert weighted_r2(torch.ones(3), torch.ones(3), torch.ones(3)) == 0


def test_progress_bar(x, capsys):
    lime(toy_cnn("gap"), None, x[:1], 0, n_samples=20, n_segments=9, progress=True)
    assert "LIME" in capsys.readouterr().err
    lime(toy_cnn("gap"), None, x[:1], 0, n_samples=20, n_segments=9, progress=False)
    assert not capsys.readouterr().err


def test_bad_arguments(x):
    model = toy_cnn("gap")
    before = state_of(model)
    for options, message in [
        ({"n_samples": 1}, "n_samples must be a whole number of at least 2"),
        ({"n_segments": 1}, "n_segments must be a whole number from 2 to 144"),
        ({"n_segments": 145}, "n_segments must be a whole number from 2 to 144"),
        ({"kernel_width": 0}, "kernel_width must be positive"),
        ({"alpha": -1}, "alpha must be positive"),
        ({"payoff": "score"}, "payoff must be one of probability, logit"),
        ({"baseline": "blue"}, "baseline must be"),
        ({"baseline": "grey"}, "model.spec"),
        ({"baseline": torch.zeros(2, 1, 1)}, r"baseline \(2, 1, 1\) does not broadcast"),
        ({"segments": QUARTERS[:6]}, r"segments must be integers of shape \(3, 12, 12\)"),
        ({"segments": QUARTERS.double()}, "segments must be integers"),
        ({"batch_size": 0}, "batch_size"),
    ]:
        with pytest.raises(ValueError, match=message):
            lime(model, None, x, TARGET, **options)
    for bad, target, message in [
        (x * float("nan"), TARGET, "NaN"),
        (x[0], TARGET, r"\(N,3,H,W\)"),
        (x, TARGET + 1, "0 to 2"),
        (x, TARGET[:2], "for each of the 3 images"),
    ]:
        with pytest.raises(ValueError, match=message):
            lime(model, None, bad, target)
    assert same_state(before, state_of(model))


def test_on_a_photo_what_lime_calls_important_matters(lite0):
    x = preprocess(load_photo("dog").image, lite0)
    maps, (fit,) = lime(lite0, None, x, 235, n_samples=100, return_fit=True)
    order = fit.coefficients.argsort(descending=True)
    quarter, masks = len(order) // 4, torch.ones(2, len(order), dtype=torch.bool)
    masks[0, order[:quarter]], masks[1, order[-quarter:]] = False, False
    grey = torch.zeros_like(x[0])  # mean and std are 1/2
    with torch.no_grad():
        top, bottom = lite0(torch.where(masks[:, fit.segments][:, None], x[0], grey)).softmax(1)[:, 235]
    assert maps.shape == (1, 224, 224) and top < fit.payoffs[0] / 2 < bottom
