import pytest
import torch

from cam_utils.data import mosaic_masks
from cam_utils.localisation import energy_pointing_game, grid_pointing_game, pointing_game

HEAT = torch.tensor([[[1.0, 0.5], [0.25, 0.25]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
REGION = torch.tensor([[True, False], [True, False]]).repeat(3, 1, 1)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_energy_by_hand():
    """1.25 of 2 inside; a map of zeros points nowhere; a map of ones has the region's share of the image."""
    torch.testing.assert_close(energy_pointing_game(HEAT, REGION), float64(0.625, 0, 0.5))
    torch.testing.assert_close(energy_pointing_game(HEAT, ~REGION), float64(0.375, 0, 0.5))
    assert (energy_pointing_game(HEAT, torch.zeros_like(REGION)) == 0).all()


def test_pointing_game_by_hand():
    """A hit, nothing, two of the four hottest pixels."""
    torch.testing.assert_close(pointing_game(HEAT, REGION), float64(1, 0, 0.5))
    torch.testing.assert_close(pointing_game(HEAT, ~REGION), float64(0, 0, 0.5))
    paler = torch.stack([HEAT[0], HEAT[0] / 2])  # each map has a hottest pixel of its own
    torch.testing.assert_close(pointing_game(paler, REGION[:2]), float64(1, 1))
    tie = torch.tensor([[[0.2, 0.9], [0.9, 0.9]]])
    torch.testing.assert_close(pointing_game(tie, REGION[:1]), float64(1 / 3))


@pytest.mark.parametrize("tolerance, hit", [(0, 0), (4.9, 0), (5, 1), (15, 1)])
def test_pointing_game_with_a_tolerance(tolerance, hit):
    """The hottest pixel is 3 rows and 4 columns from the region: a distance of 5."""
    heat, region = torch.zeros(2, 20, 20), torch.zeros(2, 20, 20, dtype=torch.bool)
    heat[0, 13, 14] = heat[1, 0, 0] = 1
    region[0, 8:11, 8:11] = True  # the second region is empty: no distance is near enough
    torch.testing.assert_close(pointing_game(heat, region, tolerance=tolerance), float64(hit, 0))


def test_grid_pointing_game_by_hand():
    """Positive attribution 3 + 1 of which 3 in the first cell; the negative -9 does not count."""
    maps = torch.tensor([[[3.0, 1.0], [-9.0, 0.0]]]).repeat(4, 1, 1)
    maps[3] = -1
    cells = torch.from_numpy(mosaic_masks(2, 2, 2, 2))
    torch.testing.assert_close(grid_pointing_game(maps, cells, torch.tensor([0, 1, 2, 0])), float64(0.75, 0.25, 0, 0))
    torch.testing.assert_close(
        grid_pointing_game(1e3 * maps, cells, torch.tensor([0, 1, 2, 0])), float64(0.75, 0.25, 0, 0)
    )


def test_grid_pointing_game_adds_up_to_one():
    cells = torch.from_numpy(mosaic_masks(2, 2, 9, 13))
    maps = torch.randn(1, 9, 13, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    torch.testing.assert_close(grid_pointing_game(maps, cells, torch.arange(4)).sum(), torch.tensor(1.0).double())
    ones = grid_pointing_game(torch.ones(4, 8, 8), torch.from_numpy(mosaic_masks(2, 2, 8, 8)), torch.arange(4))
    torch.testing.assert_close(ones, torch.full((4,), 0.25).double())


@pytest.mark.parametrize("metric", [energy_pointing_game, pointing_game])
def test_bad_input(metric):
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(metric(HEAT[order], REGION[order]), metric(HEAT, REGION)[order])
    for heat, region, message in [
        (HEAT, REGION.float(), "bool"),
        (HEAT, REGION[:2], "like heat"),
        (HEAT, REGION.numpy(), "bool tensor"),
        (-HEAT, REGION, r"\[0,1\]"),
        (HEAT[0], REGION[0], r"\(N,H,W\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(heat, region)


def test_bad_grids():
    cells, maps = torch.from_numpy(mosaic_masks(2, 2, 2, 2)), HEAT
    for arguments, message in [
        ((maps, cells, torch.tensor([0, 1, 4])), "0 … 3"),
        ((maps, cells, torch.tensor([0, 1, -1])), "0 … 3"),
        ((maps, cells, torch.tensor([0, 1])), "each of the 3 maps"),
        ((maps, cells, torch.tensor([0.0, 1, 2])), "0 … 3"),
        ((maps, cells.float(), torch.tensor([0, 1, 2])), "bool"),
        ((maps, cells[:, :1], torch.tensor([0, 1, 2])), "bool"),
        ((maps * float("nan"), cells, torch.tensor([0, 1, 2])), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            grid_pointing_game(*arguments)


def test_rounding_does_not_choose_among_pixels_that_share_the_maximum():
    heat = torch.zeros(1, 4, 4)
    heat[0, 1:3, 1:3] = torch.tensor([[1.0, 1.0 - 1e-7], [1.0 - 2e-7, 1.0]])  # the middle of an upsampled cell
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, :, 1] = True
    assert pointing_game(heat, region) == 0.5
