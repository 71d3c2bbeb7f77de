"""The command line as a user calls it; `figures` is tested in test_reproduce."""

import sys

import pytest
from PIL import Image

from cam_utils import METHODS, cli
from cam_utils.data import load_photo
from cam_utils.models import REGISTRY


def run(monkeypatch, capsys, *arguments):
    """(exit code, output, errors) of `python -m cam_utils ...`."""
    monkeypatch.setattr(sys, "argv", ["cam-utils", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0, *capsys.readouterr()


def test_lists(monkeypatch, capsys):
    code, output, _ = run(monkeypatch, capsys, "methods")
    assert code == 0 and all(name in output for name in METHODS)
    code, output, _ = run(monkeypatch, capsys, "models")
    assert code == 0 and all(name in output for name in REGISTRY)


def test_explain_writes_the_map_over_the_photo(monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "dog.png"
    photo = load_photo("dog").path
    code, output, _ = run(monkeypatch, capsys, "explain", photo, "--method", "grad_cam", "--out", out)
    assert code == 0 and load_photo("dog").label in output and str(out) in output
    assert Image.open(out).size == (224, 224)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--method", "gradcam"), "grad_cam"),
        (("--layer", "blocks.9"), "blocks.5"),
        (("--target", "tabi"), "tabby"),
        (("--target", "1000"), "0 to 999"),
        (("--model", "resnet81"), "resnet18"),
        (("--out", "map.bmp"), "PNG"),
        (("--weights", "no-such-folder"), "no-such-folder"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(monkeypatch, capsys, arguments, message):
    code, output, errors = run(monkeypatch, capsys, "explain", load_photo("dog").path, *arguments)
    assert code == 2 and message in errors and errors.count("\n") == 1 and not output


def test_photos_that_are_none(monkeypatch, capsys, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for photo in (tmp_path, tmp_path / "absent.jpg", tmp_path / "text.jpg"):
        code, _, errors = run(monkeypatch, capsys, "explain", photo)
        assert code == 2 and photo.name in errors and "Traceback" not in errors


def test_an_unknown_benchmark_fails_before_any_work(monkeypatch, capsys):
    code, _, errors = run(monkeypatch, capsys, "benchmark", "foo")
    assert code == 2 and "foo" in errors
