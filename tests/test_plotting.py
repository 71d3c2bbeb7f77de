import numpy as np
import pytest
import torch
from PIL import Image

from cam_utils.plotting import label_points, new_figure, overlay, plot_maps, save_figure, show_map, use_style

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
MAP = torch.tensor([[-1.0, 0.0], [0.5, 2.0]])


def test_saving_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    use_style()
    files = []
    for run in ("a", "b"):
        monkeypatch.setenv("CAM_UTILS_FIGURES", str(tmp_path / run))
        figure = plot_maps(IMAGE, {"one": MAP, "two": MAP}, signed=True)
        assert save_figure(figure, "04_layers") is figure
        files.append([(tmp_path / run / f"04_layers.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["layers", "4_layers", "04_Layers", "04_a/b", "04-layers"])
def test_names_follow_the_rule(name):
    with pytest.raises(ValueError, match="04_layers"):
        save_figure(new_figure(), name)


def test_signed_maps_are_centred_on_zero_and_others_start_at_zero():
    ax = new_figure().axes[0]
    drawn = show_map(ax, IMAGE, MAP, signed=True)
    assert drawn.get_clim() == (-1, 1) and drawn.get_array().max() == 1
    drawn = show_map(ax, IMAGE, MAP)
    assert drawn.get_clim() == (0, 1) and drawn.get_array().min() == 0
    assert show_map(ax, IMAGE, torch.zeros(2, 2), signed=True).get_array().max() == 0


def test_every_map_gets_an_axis_and_empty_ones_go():
    figure = plot_maps(IMAGE, {str(i): MAP for i in range(5)})
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image", "0", "1", "2", "3", "4"]


def test_overlay_mixes():
    assert overlay(IMAGE, torch.zeros(32, 32), alpha=0).tobytes() == IMAGE.tobytes()
    assert overlay(IMAGE, torch.ones(32, 32), alpha=1).getpixel((0, 0)) == (
        252,
        255,
        164,
    )  # the end of inferno


def test_a_notebook_shows_the_picture():
    assert plot_maps(IMAGE, {"one": MAP})._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_points_do_not_cover_each_other(side):
    figure = new_figure(1, 1, height=3)
    (ax,) = figure.axes
    ax.set(xlim=(0, 1), ylim=(0, 1))
    label_points(ax, {name: (0.5, 0.5 + 0.001 * k) for k, name in enumerate("abcdef")}, side=side)
    heights = sorted(ax.transData.transform(text.xyann)[1] for text in ax.texts)
    assert len(heights) == 6 and min(np.diff(heights)) >= 9.9
    assert all((text.xyann[0] > 0.5) == (side == "right") for text in ax.texts)
