"""The command line as a user calls it; `figures` is tested in test_reproduce."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
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
    assert Image.open(out).width > 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--method", "Grad-CAM"), "grad_cam, "),
        (("--layer", "blocks.9"), "blocks.5"),
        (("--target", "tabi"), "tabby"),
        (("--target", "1000"), "0 to 999"),
        (("--model", "resnet81"), "resnet18"),
        (("--out", "map.bmp"), "png, pdf, npy"),
        (("--target", "shepherd"), "german shepherd"),
        (("--layer", "bn2", "--layer", "blocks.9"), "blocks.5"),
        (("--layer", "classifier"), "before the pooling"),
        (("--model", "ResNet-5"), "resnet50"),
        (("--device", "gpu"), "these can: cpu"),
        (("--out", "/proc/no-such/map.png"), "cannot write '/proc/no-such'"),
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


def test_methods_side_by_side_with_options_and_formats(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    photo, pair = load_photo("dog").path, ("--method", "owen_cam", "--method", "grad_cam", "--layer", "blocks.5")
    code, output, _ = run(monkeypatch, capsys, "explain", photo, *pair, "-o", "budget=150", "--signed")
    assert code == 0 and "standard error" in output and output.count("%  ") == 5
    assert Image.open("dog_owen_cam_grad_cam.png").width > 1000
    code, *_ = run(monkeypatch, capsys, "explain", photo, *pair, "--out", "maps.npy")
    assert code == 0 and np.load("maps.npy").shape == (2, 7, 7)
    code, *_ = run(monkeypatch, capsys, "explain", photo, "--method", "grad_cam", "--format", "pdf")
    assert code == 0 and Path("dog_grad_cam.pdf").read_bytes().startswith(b"%PDF")
    code, _, errors = run(monkeypatch, capsys, "explain", photo, *pair, "-o", "bugdet=150")
    assert code == 2 and "It has: budget" in errors


def test_a_folder_gives_a_contact_sheet_and_names_what_failed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("dog", "cat"):
        shutil.copy(load_photo(name).path, tmp_path / "in")
    code, output, _ = run(monkeypatch, capsys, "explain", "in", "--method", "grad_cam")
    assert code == 0 and {path.name for path in Path("explanations").iterdir()} == {
        "cat.png",
        "contact_sheet.png",
        "dog.png",
    }
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    code, output, errors = run(monkeypatch, capsys, "explain", "in", "--method", "grad_cam", "--out", "again")
    assert code == 1 and "1 of 3 photos" in errors and "broken.jpg" in errors and Path("again/dog.png").exists()


def test_a_network_of_the_users_own_code(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(
        "import torch\n"
        "def tiny():\n"
        "    torch.manual_seed(0)\n"
        "    n = torch.nn\n"
        "    parts = [n.Conv2d(3, 8, 3, 4), n.ReLU(), n.Conv2d(8, 8, 3, 4), n.ReLU()]\n"
        "    return n.Sequential(*parts, n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(8, 4))\n"
    )
    photo = load_photo("dog").path
    code, output, errors = run(
        monkeypatch, capsys, "explain", photo, "--model", "own_network:tiny", "--target", "class 2"
    )
    assert code == 0 and '"class 2"' in output and "at 3:" in output, errors
    (tmp_path / "weights.pth").write_text("no weights")
    arguments = ("--model", "own_network:tiny", "--weights", "weights.pth")
    code, _, errors = run(monkeypatch, capsys, "explain", photo, *arguments)
    assert code == 2 and "weights.pth does not hold a state dict" in errors
    for model, message in [
        ("own_network:tini", "tiny"),
        ("no_such:f", "cannot import"),
        ("timm:resnet8888", "timm has no"),
    ]:
        code, _, errors = run(monkeypatch, capsys, "explain", photo, "--model", model)
        assert code == 2 and message in errors


def test_any_network_of_timm_and_its_missing_weights(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    photo = load_photo("dog").path
    for model, layer in (("timm:resnet10t", "layer4"), ("timm:vit_tiny_patch16_224", "patch_embed.proj")):
        code, output, _ = run(monkeypatch, capsys, "explain", photo, "--model", model, "--weights", "random")
        assert code == 0 and f"at {layer}:" in output
    code, _, errors = run(monkeypatch, capsys, "explain", photo, "--model", "timm:resnet10t")
    assert code == 2 and "not in timm's cache" in errors


def test_a_dot_in_the_photos_name_stays(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(load_photo("dog").path, "my.dog.jpg")
    code, output, _ = run(monkeypatch, capsys, "explain", "my.dog.jpg", "--method", "grad_cam")
    assert code == 0 and Path("my.dog_grad_cam.png").exists() and "my.dog_grad_cam.png" in output


def test_layers_side_by_side_and_all_of_them(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    photo = load_photo("dog").path
    code, output, _ = run(monkeypatch, capsys, "explain", photo, "--method", "grad_cam", "--layer", "all")
    layers = ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"]  # 112, 56, 28, 14, 7
    assert code == 0 and [line.split(" at ")[1].split(":")[0] for line in output.splitlines()[5:-1]] == layers
    assert Image.open("dog_grad_cam_layers.png").width > 1000
    pair = ("--layer", "blocks.5", "--layer", "bn2", "--out", "maps.npy")
    code, *_ = run(monkeypatch, capsys, "explain", photo, *pair)
    assert code == 0 and np.load("maps.npy").shape == (2, 7, 7)
    code, _, errors = run(monkeypatch, capsys, "explain", photo, "--layer", "all", "--out", "maps.npy")
    assert code == 2 and "differ in size" in errors


def test_an_existing_folder_takes_the_picture(monkeypatch, capsys, tmp_path):
    code, *_ = run(monkeypatch, capsys, "explain", load_photo("dog").path, "--method", "grad_cam", "--out", tmp_path)
    assert code == 0 and (tmp_path / "dog_grad_cam.png").exists()


@pytest.mark.parametrize(
    "size, code, message", [((1, 1), 0, "written"), ((3, 900), 2, "strip"), ((20000, 15000), 2, "large")]
)
def test_tiny_and_huge_photos(monkeypatch, capsys, tmp_path, size, code, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", size).save("photo.png")
    found, output, errors = run(monkeypatch, capsys, "explain", "photo.png", "--method", "grad_cam")
    assert found == code and message in output + errors and "Traceback" not in errors


NETWORKS = """
import torch
from torch import nn

def plain(channels=3, *last):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4), *last]
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, 4), *head).train()

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()
    def forward(self, x):
        return self.net(x), None

class Tutorial(nn.Module):  # one pooling layer, used twice
    def __init__(self, side):
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc = nn.Linear(16 * side * side, 10)
    def forward(self, x):
        x = self.pool(torch.relu(self.conv2(self.pool(torch.relu(self.conv1(x))))))
        return self.fc(x.flatten(1))

def pair(): return Pair()
def grey(): return plain(1)
def probabilities(): return plain(3, nn.Softmax(1))
def single(): return plain(3, nn.Linear(4, 1))
def needs(a): return plain()
def nothing(): return None
def small(): return Tutorial(5)
def large(): return Tutorial(53)
"""


@pytest.mark.parametrize(
    "function, message",
    [
        ("pair", "wrap it in a module"),
        ("grey", "cannot take an RGB image of 224×224"),
        ("probabilities", "leave out its softmax"),
        ("single", "two logits"),
        ("needs", "called without arguments"),
        ("nothing", "no torch.nn.Module"),
        ("small", "model.spec ="),
        ("large", None),
        ("plain", None),
    ],
)
def test_networks_of_every_kind(monkeypatch, capsys, tmp_path, function, message):
    monkeypatch.chdir(tmp_path)
    Path("networks_of_users.py").write_text(NETWORKS)
    model = f"networks_of_users:{function}"
    monkeypatch.delitem(sys.modules, "networks_of_users", raising=False)
    code, output, errors = run(monkeypatch, capsys, "explain", load_photo("dog").path, "--model", model)
    if message:
        assert code == 2 and message in errors and errors.count("\n") == 1 and not output
    else:  # in evaluation mode, at the last layer that is used once
        assert code == 0 and f"at {'conv2' if function == 'large' else '3'}:" in output


def test_weights_of_every_kind(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("networks_of_users.py").write_text(NETWORKS)
    monkeypatch.delitem(sys.modules, "networks_of_users", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    from networks_of_users import large, plain

    state = plain().state_dict()
    for weights, message in {
        "good": (state, None),
        "checkpoint": ({"model": state, "epoch": 3}, "'model', 'epoch'"),
        "parallel": ({f"module.{key}": value for key, value in state.items()}, "model.module.state_dict()"),
        "another": (large().state_dict(), "weights of another network"),
        "whole": (plain(), "torch.save(model.state_dict(), file)"),
        "absent": (None, "no such file of weights: 'absent.pt'"),
    }.items():
        saved, message = message
        if saved is not None:
            torch.save(saved, f"{weights}.pt")
        arguments = ("--model", "networks_of_users:plain", "--weights", f"{weights}.pt")
        code, _, errors = run(monkeypatch, capsys, "explain", load_photo("dog").path, *arguments)
        assert (code == 0) if message is None else (code == 2 and message in errors and errors.count("\n") == 1), errors
