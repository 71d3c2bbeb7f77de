import re
import warnings

import matplotlib
import pytest
import yaml
from matplotlib.text import Text

from cam_utils import paths
from cam_utils.language import load_catalogue, parse, translated
from cam_utils.plotting import Figure, new_figure, save_figure, use_style

CATALOGUE = parse(
    {
        "keep": [r"[a-z]+_cam", "logit"],
        "labels": {
            "the photo": "ảnh gốc",
            "samples": "số mẫu",
            "grey": "màu xám",
            "noisy": "nhiễu",
            "map / its\nmaximum": "bản đồ /\ncực đại",
            "{} of {} segments": "{} trên {} siêu điểm ảnh",
            "{},\nheld-out R² {}": "{},\nR² giữ riêng {}",
            "{} by {}": "{1} cho {0}",
        },
    }
)


@pytest.fixture(autouse=True)
def english():
    yield
    use_style("en")


@pytest.mark.parametrize(
    ("english", "vietnamese"),
    [
        ("the photo", "ảnh gốc"),
        ("map / its\nmaximum", "bản đồ /\ncực đại"),
        ("12 of 45 segments", "12 trên 45 siêu điểm ảnh"),
        ("grey,\nheld-out R² 0.64", "màu xám,\nR² giữ riêng 0.64"),  # the gap is a label itself
        ("grey by 2", "2 cho màu xám"),  # the gaps change places
        ("German shepherd 97%\n3 of 4 segments", "German shepherd 97%\n3 trên 4 siêu điểm ảnh"),  # line by line
        ("no such label", "no such label"),
    ],
)
def test_labels_are_translated_exactly_by_template_or_line_by_line(english, vietnamese):
    assert CATALOGUE.translate(english) == vietnamese


@pytest.mark.parametrize(
    "text",
    [
        "owen_cam",
        "logit",
        "0.25",
        "r = 0.97",
        "7×7",
        r"$\alpha = 2\cdot 10^{-3}$",
        "dog",
        "German shepherd",
        "ice bear 99%",
    ]
    + ["German\nshepherd 97%", "loupe, p = 0.24", "loupe 24%\nrule 16%", "12 of 45 segments"],
)
def test_names_numbers_and_formulas_need_no_translation(text):
    assert CATALOGUE.lacks(text) == []


def test_what_has_no_translation_is_named_by_the_line():
    assert CATALOGUE.lacks("the photo\nof a dog\n0.5") == ["of a dog"]


def labelled():
    """A figure with words wherever a figure can have them."""
    figure = new_figure(1, 2, height=3)
    left, right = figure.axes
    left.bar(["grey", "noisy"], [1, 2], label="the photo")
    left.legend(title="samples")
    right.set(title="grey", xlabel="samples", xticks=[0, 1], xticklabels=["grey", "noisy"])
    right.annotate("noisy", (0.5, 0.5))
    figure.colorbar(matplotlib.cm.ScalarMappable(), ax=right, label="map / its\nmaximum")
    figure.suptitle("the photo")
    return figure


def shown(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if re.search(r"[^\W\d_]{2}", text.get_text())]


def test_every_kind_of_text_is_translated_for_a_while():
    figure = labelled()
    before = shown(figure)
    with translated(figure, CATALOGUE) as missing:
        assert shown(figure) == [CATALOGUE.translate(text) for text in before]
    assert not missing and shown(figure) == before


def test_english_comes_back_after_an_error():
    figure = labelled()
    before = shown(figure)
    with pytest.raises(OSError), translated(figure, CATALOGUE):
        raise OSError
    assert shown(figure) == before


def test_the_next_figure_is_english_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CAM_UTILS_FIGURES", str(tmp_path))

    def png():
        figure = new_figure(height=2)
        figure.axes[0].set_title("the photo")
        save_figure(figure, "04_layers")
        return (tmp_path / "04_layers.png").read_bytes()

    use_style()
    english = png()
    use_style("vi")
    vietnamese = png()
    use_style()
    assert english == png() != vietnamese


def test_missing_translations_are_told_once_a_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("CAM_UTILS_FIGURES", str(tmp_path))
    monkeypatch.setattr(Figure, "catalogue", CATALOGUE)
    figure = labelled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, "04_layers")
    figure.axes[1].set(xlabel="no such label", xticklabels=["grey", "nor this"])
    with pytest.warns(UserWarning) as told:
        save_figure(figure, "04_layers")
        figure._repr_png_()
    assert [str(w.message) for w in told] == ["04_layers: no translation of 'no such label', 'nor this'"]


def test_an_unknown_language_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="'xx'; there are en, vi, and labels_xx.yml would add it"):
        use_style("xx")


@pytest.mark.parametrize("file", sorted(paths.NOTEBOOKS.glob("labels_*.yml")), ids=lambda file: file.stem)
def test_a_catalogue_is_sound(file):
    """No label twice (YAML would take the last), as many gaps on either side, and no template that an earlier one hides."""
    keys = re.findall(r'^  (".*?(?<!\\)"): ', file.read_text(encoding="utf-8"), re.MULTILINE)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert len(keys) == len(set(keys)) == len(content["labels"])
    for english, text in content["labels"].items():
        assert text and english.count("{}") == len(re.findall(r"\{\d*\}", text)) or "$" in english, english
    catalogue = load_catalogue(file.stem.removeprefix("labels_"))
    for english, text in content["labels"].items():
        if "{}" in english:
            assert catalogue.translate(english.replace("{}", "7")) == text.replace("{}", "7"), english
