import pytest
import torch

from cam_utils.postprocess import heatmap, normalize, rectify, upsample


def test_each_map_by_itself():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[0.0, 10.0], [20.0, 40.0]]])
    torch.testing.assert_close(normalize(maps)[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    torch.testing.assert_close(normalize(maps)[1], maps[1] / 40)
    assert (rectify(maps)[0] == torch.tensor([[0.0, 0.0], [1.0, 3.0]])).all()


def test_a_constant_map_becomes_zeros():
    for value in (0.0, -2.0, 1e30):
        assert (normalize(torch.full((1, 3, 3), value)) == 0).all()
        assert (heatmap(torch.full((1, 3, 3), value), 12) == 0).all()


def test_upsampling_is_bilinear_and_takes_both_kinds_of_size():
    maps = torch.tensor([[[0.0, 1.0]]])
    assert upsample(maps, 4).shape == (1, 4, 4) and upsample(maps, (2, 6)).shape == (1, 2, 6)
    torch.testing.assert_close(upsample(maps, (1, 4))[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_a_map_that_is_not_finite_is_refused_not_shown_as_blank():
    for value in (float("nan"), float("inf")):
        maps = torch.ones(1, 2, 2)
        maps[0, 0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            heatmap(maps, 4)
