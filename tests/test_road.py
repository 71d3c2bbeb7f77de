import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

from cam_utils.metrics import masked_scores
from cam_utils.road import FRACTIONS, impute, road_combined, road_lerf, road_morf
from conftest import toy_cnn
from test_metrics import TARGET, with_spec


def mask(*pixels, shape=(3, 3)):
    removed = torch.zeros(1, *shape, dtype=torch.bool)
    for i, j in pixels:
        removed[0, i, j] = True
    return removed


@pytest.fixture
def image():
    return torch.rand(1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_one_pixel_by_hand(image):
    edge, corner = image[0, :, [0, 1, 1, 2], [1, 0, 2, 1]].sum(1), image[0, :, [0, 0, 2, 2], [0, 2, 0, 2]].sum(1)
    centre = impute(image, mask((1, 1)))
    torch.testing.assert_close(centre[0, :, 1, 1], edge / 6 + corner / 12)
    assert torch.equal(centre.where(mask((1, 1))[:, None], image), centre)  # nothing else has changed
    # at the border the weights that are left, 1/6 + 1/6 + 1/12, are scaled to 1: 2/5, 2/5, 1/5
    first = impute(image, mask((0, 0)))[0, :, 0, 0]
    torch.testing.assert_close(first, 0.4 * image[0, :, 0, 1] + 0.4 * image[0, :, 1, 0] + 0.2 * image[0, :, 1, 1])


def test_two_pixels_by_hand():
    """One row a ? ? d: b = (a + c) / 2, c = (b + d) / 2, a straight line."""
    x = torch.tensor([3.0, 7.0, -7.0, 9.0]).expand(1, 3, 1, 4)
    filled = impute(x, mask((0, 1), (0, 2), shape=(1, 4)))
    torch.testing.assert_close(filled, torch.tensor([3.0, 5.0, 7.0, 9.0]).expand(1, 3, 1, 4))


def test_a_constant_image_is_restored_and_bounds_are_kept():
    removed = (
        torch.rand(4, 9, 7, generator=torch.Generator().manual_seed(0))
        < torch.tensor([0.1, 0.5, 0.9, 0.0])[:, None, None]
    )
    constant = torch.full((4, 3, 9, 7), 0.3)
    torch.testing.assert_close(impute(constant, removed), constant)
    x = torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    filled = impute(x, removed)
    assert filled.min() >= x.min() and filled.max() <= x.max()
    assert torch.equal(filled[3], x[3])


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the package gives torch tensors to numpy
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_grad_cam_package_imputes_alike(share):
    generator = torch.Generator().manual_seed(3)
    x, removed = torch.randn(1, 3, 12, 10, generator=generator), torch.rand(1, 12, 10, generator=generator) < share
    expected = NoisyLinearImputer(noise=0)(x[0], (~removed[0]).float())
    torch.testing.assert_close(impute(x, removed)[0], expected)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize(
    "remover, metric", [(RemoveMostRelevantFirst, road_morf), (RemoveLeastRelevantFirst, road_lerf)]
)
def test_grad_cam_package_agrees(toy, x, remover, metric):
    """The package removes by a percentile of the map, which for 144 different values is a whole number of pixels."""
    model, x = with_spec(toy).float(), x.float()
    heat = torch.randperm(144, generator=torch.Generator().manual_seed(0)).view(1, 12, 12).repeat(3, 1, 1) / 143
    targets, scores, fractions = [ClassifierOutputSoftmaxTarget(int(c)) for c in TARGET], [], []
    for percentile in (20, 50, 80):
        peer = PerturbationConfidenceMetric(remover(percentile, NoisyLinearImputer(noise=0)))
        values = heat[0].numpy() if metric is road_morf else 1 - heat[0].numpy()
        fractions.append(float((values >= np.percentile(values, percentile)).mean()))
        scores.append(peer(x, heat.numpy(), targets, model))  # the difference to the score of the image
    whole, _ = masked_scores(model, x, TARGET, heat)
    found = metric(model, x, TARGET, heat, fractions=fractions, noise=0)
    torch.testing.assert_close(found, whole + torch.from_numpy(np.mean(scores, 0)).double(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, metric(model, x, TARGET, 1 - heat, fractions=fractions, noise=0), atol=1e-4)


def test_orders_are_opposite(toy, x):
    """The least relevant of a map are the most relevant of its reverse."""
    heat = (
        torch.randperm(144, generator=torch.Generator().manual_seed(0)).view(1, 12, 12).repeat(3, 1, 1).double() / 143
    )
    model = with_spec(toy)
    torch.testing.assert_close(road_lerf(model, x, TARGET, heat), road_morf(model, x, TARGET, 1 - heat))
    morf, lerf = road_morf(model, x, TARGET, heat), road_lerf(model, x, TARGET, heat)
    torch.testing.assert_close(road_combined(morf, lerf), (lerf - morf) / 2)


def test_noise(x):
    """Drawn by the generator, scaled to pixel values, on imputed pixels only, the same for each image unless told otherwise."""
    model, heat = with_spec(toy_cnn()), torch.linspace(0, 1, 144, dtype=torch.float64).view(1, 12, 12).repeat(3, 1, 1)
    seen = []
    model.features[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clean = road_morf(model, x, TARGET, heat, noise=0, fractions=[0.5])
    noisy = road_morf(model, x, TARGET, heat, noise=0.1, fractions=[0.5])
    noise = seen[1] - seen[0]
    assert (noise[:, :, :6] == 0).all() and (noise[:, :, 6:] != 0).all()  # the lower half is hot
    torch.testing.assert_close(noise[0], noise[2])
    measured = noise[0, :, 6:].std((1, 2)) * torch.tensor(model.spec.std)
    torch.testing.assert_close(measured, torch.full((3,), 0.1, dtype=torch.float64), rtol=0.3, atol=0)
    assert not torch.equal(clean, noisy)
    other = torch.Generator().manual_seed(1)
    assert not torch.equal(noisy, road_morf(model, x, TARGET, heat, noise=0.1, fractions=[0.5], generator=other))
    again = torch.Generator().manual_seed(0)
    one = road_morf(model, x[:1], TARGET[:1], heat[:1], noise=0.1, fractions=[0.5], generator=again)
    assert torch.equal(one, road_morf(model, x[:1], TARGET[:1], heat[:1], noise=0.1, fractions=[0.5]))


def test_bad_input(x):
    model, heat = with_spec(toy_cnn()), torch.rand(3, 12, 12, dtype=torch.float64)
    for fractions in ((), (0.0, 0.5), (0.5, 1.0), (0.999,), (-0.1,)):
        with pytest.raises(ValueError, match=r"in \(0,1\)"):
            road_morf(model, x, TARGET, heat, fractions=fractions)
    with pytest.raises(ValueError, match="nothing is left"):
        impute(x, torch.tensor([False, True, False])[:, None, None].expand(3, 12, 12))
    with pytest.raises(ValueError, match="removed must be bool"):
        impute(x, torch.ones(3, 12, 12))
    assert all(0 < fraction < 1 for fraction in FRACTIONS)
