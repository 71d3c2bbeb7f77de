import matplotlib
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image
from skimage.color import rgb2lab

from cam_utils.data import load_photos
from cam_utils.language import alternative_texts
from cam_utils.plotting import (
    DIVERGING,
    SEQUENTIAL,
    credit,
    label_points,
    new_figure,
    overlay,
    plot_maps,
    save_figure,
    show_map,
    use_style,
)

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


def test_a_notebook_shows_the_picture_and_says_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("CAM_UTILS_FIGURES", str(tmp_path))
    figure = plot_maps(IMAGE, {"one\nmap": MAP})
    for text in ("Figure: image; one map", alternative_texts()["04_layers"]):  # not saved yet, saved
        data, metadata = DisplayFormatter().format(figure)
        assert data["image/png"].startswith(b"\x89PNG") and metadata["image/png"] == {"alt": text}
        assert data["text/plain"] == text
        save_figure(figure, "04_layers")


@pytest.mark.parametrize("name", ["04_layers", "04_of_your_own"])
def test_the_files_carry_the_alternative_text(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CAM_UTILS_FIGURES", str(tmp_path))
    figure = save_figure(plot_maps(IMAGE, {"one": MAP}), name)
    text = alternative_texts().get(name, "Figure: image; one")
    assert repr(figure) == text
    assert Image.open(tmp_path / f"{name}.png").text["Description"] == text
    assert b"/Subject" in (tmp_path / f"{name}.pdf").read_bytes()


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_points_do_not_cover_each_other(side):
    figure = new_figure(1, 1, height=3)
    (ax,) = figure.axes
    ax.set(xlim=(0, 1), ylim=(0, 1))
    label_points(ax, {name: (0.5, 0.5 + 0.001 * k) for k, name in enumerate("abcdef")}, side=side)
    heights = sorted(ax.transData.transform(text.xyann)[1] for text in ax.texts)
    assert len(heights) == 6 and min(np.diff(heights)) >= 9.9
    assert all((text.xyann[0] > 0.5) == (side == "right") for text in ax.texts)


@pytest.mark.parametrize("ylim", [(0, 1), (1, 0)])
def test_labels_stay_in_the_axes_and_beside_their_points_where_there_is_room(ylim):
    (ax,) = new_figure(1, 1, height=3).axes
    ax.set(xlim=(0, 1), ylim=ylim)
    label_points(ax, {name: (0.2, 0.01 * k) for k, name in enumerate("abcdef")} | {"alone": (0.2, 0.6)})
    heights = {text.get_text(): ax.transData.transform(text.xyann)[1] for text in ax.texts}
    assert heights["alone"] == pytest.approx(ax.transData.transform((0.2, 0.6))[1])
    assert min(np.diff(sorted(heights.values()))) >= 9.9
    assert ax.bbox.y0 - 0.1 <= min(heights.values()) and max(heights.values()) <= ax.bbox.y1 + 0.1


@pytest.mark.parametrize("side, other", [("right", "left"), ("left", "right")])
def test_a_label_that_would_cover_another_point_goes_to_the_other_side(side, other):
    (ax,) = new_figure(1, 1, height=3).axes
    ax.set(xlim=(0, 1), ylim=(0, 1))
    label_points(ax, {"a": (0.5, 0.5), "b": (0.52, 0.5), "c": (0.52, 0.8)}, side=side)
    sides = {text.get_text(): text.get_ha() for text in ax.texts}
    covering = "a" if side == "right" else "b"
    assert sides == {name: side if name == covering else other for name in "abc"}  # ha is the text's side at the point


def test_the_credit_names_author_and_licence_of_each_photo():
    figure, photos = new_figure(), load_photos(["heron", "bee"])
    credit(figure, photos)
    text = figure.get_supxlabel()
    assert all(f"{p.name}: {p.author} ({p.licence})" in text.replace("\n", " ") for p in photos)


# Machado, Oliveira & Fernandes 2009, severity 1: what of linear RGB reaches an eye without one kind of cones
EYES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "all cones": np.eye(3),
}


def seen(colours, eye):
    """CIELAB of sRGB colours (N,3) as an eye sees them; in it a distance of 2.3 is just noticeable."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(EYES[eye]), 0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("eye", EYES)
def test_colours_are_told_apart_by_every_eye(eye):
    use_style()
    lines = seen(np.array([matplotlib.colors.to_rgb(f"C{k}") for k in range(10)]), eye)
    distance = np.linalg.norm(lines[:, None] - lines, axis=2) + 1e3 * np.eye(10)
    assert distance.min() > 10 and distance[:3, :3].min() > 16
    blue, pale_blue, pale_red, red = seen(matplotlib.colormaps[DIVERGING]([0, 0.25, 0.75, 1.0])[:, :3], eye)
    assert np.linalg.norm(red - blue) > 30 and np.linalg.norm(pale_red - pale_blue) > 30


@pytest.mark.parametrize("eye", EYES)
def test_sequential_colours_grow_lighter_for_every_eye_and_in_grey(eye):
    lightness = seen(matplotlib.colormaps[SEQUENTIAL](range(256))[:, :3], eye)[:, 0]
    assert (np.diff(lightness) > 0).all() and lightness[0] < 5 and lightness[-1] > 90
