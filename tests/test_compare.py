"""`compare` names what differs between two runs, and nothing else."""

import json
import math
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from cam_utils.cli import app
from cam_utils.compare import compare, reasons


@pytest.fixture
def runs(tmp_path):
    """Two folders with the same figure, table and LaTeX table."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    Image.new("RGB", (4, 3), "white").save(one / "01_map.png")
    (one / "01_map.pdf").write_bytes(b"%PDF drawn")
    (one / "07_ranks.csv").write_text("method,mean,seconds\ncam,1.5,0.1\nlime,2.0,nan\n")
    (one / "07_ranks.tex").write_text("a\nb\n")
    entry = {"notebook": "01.ipynb", "files": {}, "parameters": {"seed": 0}}
    manifest = {"versions": {"torch": "1"}, "figures": {"01_map": entry}}
    (one / "manifest.json").write_text(json.dumps(manifest))
    (one / ".hidden.png").write_bytes(b"")
    shutil.copytree(one, other)
    return one, other


def test_nothing_differs(runs):
    assert compare(*runs) == (4, [])
    shown = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert (shown.exit_code, shown.stdout) == (0, "4 files, 0 differ\n")


def test_one_pixel_is_found_and_speaks_for_the_pdf(runs):
    image = Image.open(runs[1] / "01_map.png")
    image.putpixel((1, 2), (255, 204, 255))
    image.save(runs[1] / "01_map.png")
    (runs[1] / "01_map.pdf").write_bytes(b"%PDF drawn otherwise")
    pdf, png = compare(*runs)[1]
    assert (pdf.name, png.name) == ("01_map.pdf", "01_map.png")
    assert png.what == "1 of 12 pixels, by up to 0.200 of 1"
    assert png.size == pdf.size == pytest.approx(0.2)


def test_other_bytes_with_the_same_pixels_are_told_apart(runs):
    Image.open(runs[1] / "01_map.png").save(runs[1] / "01_map.png", compress_level=0)
    (difference,) = compare(*runs)[1]
    assert "same pixels" in difference.what and difference.size == 0
    (runs[1] / "01_map.png").write_bytes((runs[0] / "01_map.png").read_bytes())
    (runs[1] / "01_map.pdf").write_bytes(b"%PDF of another date")
    (difference,) = compare(*runs)[1]
    assert difference.name == "01_map.pdf" and difference.size == 0


def test_cells_of_a_table_are_compared_as_numbers(runs):
    (runs[1] / "07_ranks.csv").write_text("method,mean,seconds\ncam,1.5,0.2\nlime,2.00,NaN\n")
    (difference,) = compare(*runs)[1]
    assert difference.what == "seconds: 1 of 2 cells, by up to 5.0e-01"
    assert difference.size == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["method,mean\ncam,1.5\n", "method,mean,seconds\ncam,1.5,0.1\n"])
def test_other_columns_or_rows(runs, text):
    (runs[1] / "07_ranks.csv").write_text(text)
    (difference,) = compare(*runs)[1]
    assert "rows or columns" in difference.what and math.isinf(difference.size)


def test_a_word_in_place_of_a_number_is_no_small_difference(runs):
    (runs[1] / "07_ranks.csv").write_text("method,mean,seconds\ncam,inf,0.1\nlime,none,nan\n")
    (difference,) = compare(*runs)[1]
    assert difference.what == "mean: 2 of 2 cells" and math.isinf(difference.size)


def test_text_names_the_line(runs):
    (runs[1] / "07_ranks.tex").write_text("a\nc\n")
    assert compare(*runs)[1][0].what == "other text from line 2 on"
    (runs[1] / "07_ranks.tex").write_text("a\n")
    assert compare(*runs)[1][0].what == "other text from line 2 on"


def test_another_size_and_a_missing_file(runs):
    Image.new("RGB", (5, 3), "white").save(runs[1] / "01_map.png")
    (runs[1] / "01_map.pdf").unlink()
    missing, size = compare(*runs)[1]
    assert missing.what == f"only in {runs[0]}" and size.what == "4×3 pixels / 5×3"


def test_versions_and_parameters_are_given_as_reasons(runs):
    assert reasons(*runs) == []
    entry = {"notebook": "01.ipynb", "files": {}, "parameters": {"seed": 1}}
    manifest = {"versions": {"torch": "2", "timm": "1"}, "figures": {"01_map": entry}}
    (runs[1] / "manifest.json").write_text(json.dumps(manifest))
    (runs[1] / "07_ranks.tex").write_text("c\nb\n")
    assert reasons(*runs) == ["torch 1 / 2", "timm None / 1", "01_map: seed=0 / 1"]
    shown = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert shown.exit_code == 1
    assert shown.stdout.splitlines() == [
        "other text from line 1 on: 07_ranks.tex",
        "made with torch 1 / 2",
        "made with timm None / 1",
        "made with 01_map: seed=0 / 1",
        "4 files, 1 differ",
    ]


def test_small_differences_can_be_tolerated(runs):
    (runs[1] / "07_ranks.csv").write_text("method,mean,seconds\ncam,1.5001,0.1\nlime,2.0,nan\n")
    shown = CliRunner().invoke(app, ["compare", *map(str, runs), "--tolerance", "1e-3"])
    assert (shown.exit_code, shown.stdout) == (0, "4 files, 0 differ by more than 0.001\n")
    assert CliRunner().invoke(app, ["compare", *map(str, runs), "--tolerance", "1e-5"]).exit_code == 1


def test_the_files_of_some_notebooks_alone(runs):
    (runs[1] / "07_ranks.tex").write_text("a\nc\n")
    assert compare(*runs, ["01"]) == (2, [])
    assert [difference.name for difference in compare(*runs, ["01", "07"])[1]] == ["07_ranks.tex"]
    shown = CliRunner().invoke(app, ["compare", *map(str, runs), "--only", "01"])
    assert (shown.exit_code, shown.stdout) == (0, "2 files, 0 differ\n")
    with pytest.raises(ValueError, match=r"holds a figure or table 7_\* \(.png"):
        compare(*runs, ["7"])


def test_folders_that_are_not_there_or_hold_nothing(runs, tmp_path):
    with pytest.raises(ValueError, match="no such folder: .*nowhere"):
        compare(runs[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds a figure or table"):
        compare(tmp_path / "empty", tmp_path / "empty")


@pytest.mark.parametrize("text", ["{", "[]", '{"versions": {}}'])
def test_a_damaged_manifest_says_so(runs, text):
    (runs[1] / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        reasons(*runs)
