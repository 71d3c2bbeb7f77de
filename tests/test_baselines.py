import math

import pytest
import torch
from skimage.filters import sobel

from cam_utils.baselines import BASELINES, all_ones, centre_gaussian, random_map, sobel_edges
from cam_utils.metrics import average_drop, average_drop_in_deletion
from cam_utils.postprocess import heatmap
from conftest import same_state, state_of, toy_cnn
from test_metrics import MEAN, STD, TARGET, with_spec


@pytest.mark.parametrize("method", BASELINES.values(), ids=BASELINES)
class TestEveryBaseline:
    def test_is_a_method(self, method, x):
        model = with_spec(toy_cnn().train())
        before = state_of(model)
        maps = method(model, "features", x[..., :8], TARGET)
        assert maps.shape[0] == 3 and maps.ndim == 3 and maps.dtype == x.dtype and (maps >= 0).all()
        heat = heatmap(maps, (12, 8))
        assert (heat.amax((1, 2)) == 1).all() and (heat.amin((1, 2)) == 0).all()
        assert torch.equal(maps, method(model, model.features, x[..., :8], 0))  # blind to the target
        loop = torch.cat([method(model, "features", x[i : i + 1, :, :, :8], TARGET[i]) for i in range(3)])
        torch.testing.assert_close(maps, loop)
        assert same_state(before, state_of(model)) and method(model, None, x, TARGET).shape == (3, 12, 12)

    def test_bad_input(self, method, x):
        model = with_spec(toy_cnn())
        for bad, message in [
            ((x * math.nan, TARGET), "NaN"),
            ((x[0], TARGET), "N,3,H,W"),
            ((x, TARGET[:2]), "each of"),
        ]:
            with pytest.raises(ValueError, match=message):
                method(model, "features", *bad)


def test_random_map(x):
    model = toy_cnn()
    assert random_map(model, "features", x, TARGET).shape == (3, 6, 6)
    assert random_map(model, "features.0", x, TARGET).shape == (3, 12, 12)
    a, b = (random_map(model, "features", x, TARGET, generator=torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])
    with pytest.raises(ValueError, match="no layer"):
        random_map(model, "nowhere", x, TARGET)


def test_centre_gaussian_by_hand(x):
    """At the middle of a side of 12, half a pixel off: exp(-2 · (0.5/12)² / 2σ²); at a corner 5.5 pixels off."""
    found = centre_gaussian(toy_cnn(), None, x, TARGET, sigma=0.5)[0]
    assert found[5, 6].item() == pytest.approx(math.exp(-2 * (0.5 / 12) ** 2 / (2 * 0.25)))
    assert found[0, 11].item() == pytest.approx(math.exp(-2 * (5.5 / 12) ** 2 / (2 * 0.25)))
    with pytest.raises(ValueError, match="sigma"):
        centre_gaussian(toy_cnn(), None, x, TARGET, sigma=0)


def test_all_ones_stays_what_it_is(toy, x):
    """Unlike a constant map, which becomes zeros: nearly nothing is masked."""
    model = with_spec(toy)
    heat = heatmap(all_ones(model, "features", x, TARGET), (12, 12))
    assert (heat == 1).sum() == 3 * 143 and (heat[:, 0, 0] == 0).all()
    assert (average_drop(model, x, TARGET, heat) < 0.02).all()
    black = average_drop(model, x, TARGET, torch.zeros_like(heat))
    torch.testing.assert_close(average_drop_in_deletion(model, x, TARGET, heat), black, atol=0.05, rtol=0)


def test_skimage_agrees_on_sobel(x):
    pixels = x * torch.tensor(STD).double()[:, None, None] + torch.tensor(MEAN).double()[:, None, None]
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)
    expected = torch.stack([torch.from_numpy(sobel(image.numpy())) for image in grey])
    torch.testing.assert_close(sobel_edges(with_spec(toy_cnn()), None, x, TARGET), expected, rtol=1e-6, atol=1e-6)
