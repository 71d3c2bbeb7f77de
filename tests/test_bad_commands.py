"""What people type, name and break: each kind of bad or unusual input ends in one clear error, or in the right result.

A kind is a cause of its own, with a row in one of the tables here. An error is exit code 2 (what was asked for cannot be) or
1 (it went wrong), a line or a short list that names the cause and the way out, and no traceback; whatever was there before is
there afterwards, byte for byte.
"""

import functools
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from cam_utils import benchmark, language, measuring, paths, reproduce, subjects
from cam_utils.cli import parse_parameters
from cam_utils.data import load_photos
from cam_utils.engine import Job, complete, read_shard
from cam_utils.experiments import read_table
from cam_utils.models import ModelSpec, load_model
from cam_utils.notebooks import find_notebooks
from cam_utils.plotting import new_figure, save_figure
from cam_utils.shapes import CLASS_NAMES
from cam_utils.shapley import Estimate
from cam_utils.training import shapes_net
from conftest import toy_cnn
from kinds_images import encoded
from test_cli import run
from test_reproduce import write

NETWORKS = """
import sys
from torch import nn
from torchvision.transforms import InterpolationMode
from cam_utils.models import ModelSpec

def tiny(*last):
    parts = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), *last)
    bilinear, half = InterpolationMode.BILINEAR, (0.5, 0.5, 0.5)
    model.spec = ModelSpec("tiny", "3", 32, 32, bilinear, half, half, ("cat $a", "dog", "dog"))
    return model

def broken():
    return {}["no such key"]

class Passed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.spec = tiny(), tiny().spec
        self.unused = nn.Conv2d(4, 4, 1)
    def forward(self, x):
        return self.net(x)

def passed():
    return Passed()

def nan():
    model = tiny()
    nn.init.constant_(model[0].weight, float("nan"))
    return model
"""
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
GREY = Image.fromarray(np.arange(40 * 40, dtype=np.uint8).reshape(40, 40))


def photo(name, size=40):
    GREY.resize((size, size)).save(name)


def contents(folder):
    """{path: its bytes} of all files in a folder."""
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()}


def refused(result, message):
    """Whether a command ended in an error that a user can read: (exit code, output, errors)."""
    code, _, errors = result
    assert code in (1, 2) and message in errors, errors
    assert "Traceback" not in errors and errors.count("\n") <= 6 and len(errors) < 1200, errors
    return True


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder to work in, with photos, other files, and a module of networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    Path("nets.py").write_text(NETWORKS)
    Path("syntax.py").write_text("def net(:")
    Path("leaves.py").write_text("raise SystemExit(3)")
    for folder in ("empty", "texts", "photos", "more", "good"):
        Path(folder).mkdir()
    for name in (
        "photo.png",
        "photos/a.png",
        "photos/b.jpg",
        "more/a.png",
        "good/a.png",
        "good/b.png",
        "more/contact_sheet.png",
    ):
        photo(name)
    Path("nothing.png").touch()
    Path("text.png").write_text("no image")
    Path("texts/notes.txt").write_text("no image")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:60])
    shutil.copy("cut.png", "photos/cut.png")
    Image.new("RGB", (2, 900)).save("strip.png")
    os.mkfifo("pipe.png")
    os.symlink("photo.png", "same.png")
    os.symlink("nowhere.png", "dangling.png")
    os.symlink("loop.png", "loop.png")
    Path("weights.txt").write_text("no weights")
    torch.save(toy_cnn().state_dict(), "other.pt")
    torch.save({"weight": torch.arange(10000.0)}, "whole.pt")
    Path("cut.pt").write_bytes(Path("whole.pt").read_bytes()[:4000])
    Path("evil.pt").write_bytes(pickle.dumps(Evil("ran")))
    return tmp_path


class Evil:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (self.file, "w"))


EXPLAIN = {  # kind: arguments behind a good command, and what the error says
    "no image file of that name": ("absent.png", "no such image file"),
    "an empty file": ("nothing.png", "is empty"),
    "a text called .png": ("text.png", "no image that Pillow can read"),
    "an image that is cut off": ("cut.png", "cut.png"),
    "an image that is a long strip": ("strip.png", "crop it first"),
    "a pipe": ("pipe.png", "not a regular file"),
    "a link to nothing": ("dangling.png", "no such image file"),
    "a link to itself": ("loop.png", "loop.png"),
    "a web address": ("https://example.org/dog.png", "download the image first"),
    "a file name longer than any": ("n" * 300 + ".png", "too long"),
    "an empty folder": ("empty", "no image in empty"),
    "a folder of texts": ("texts", "no image in texts"),
    "an unknown option": ("--colour red", "--colour"),
    "an option without a value": ("--layer", "requires an argument"),
    "an unknown method": ("--method gradcam", "grad_cam"),
    "a method of no name": ("--method=", "unknown method ''"),
    "an unknown network": ("--model resnet51", "resnet50"),
    "a network of no name": ("--model=", "unknown model ''"),
    "a module without a function": ("--model nets:", "module:function"),
    "a module that is not there": ("--model no_nets:tiny", "cannot import 'no_nets'"),
    "a path for a module": ("--model ./nets.py:tiny", "given by its name, such as"),
    "a module that is no Python": ("--model syntax:net", "SyntaxError"),
    "a module that leaves Python": ("--model leaves:net", "SystemExit"),
    "a function that is not there": ("--model nets:tini", "It has: "),
    "a function that fails": ("--model nets:broken", "nets:broken fails: KeyError"),
    "a network of NaN": ("--model nets:nan", "NaN"),
    "timm without a name": ("--model timm:", "module:function"),
    "an unknown network of timm": ("--model timm:resnet8888", "timm has no model"),
    "no file of weights": ("--weights absent.pt", "no such file of weights"),
    "a folder for a file of weights": ("--weights empty", "no such file of weights"),
    "a text for weights": ("--weights weights.txt", "does not hold a state dict"),
    "weights that are cut off": ("--weights cut.pt", "cut.pt does not hold a state dict: it is damaged"),
    "weights that would run code": ("--weights evil.pt", "may run any code"),
    "weights of another network": ("--weights other.pt", "weights of another network"),
    "an unknown layer": ("--layer blocks.9", "has no layer 'blocks.9'"),
    "a layer of no name": ("--layer=", "has no layer ''"),
    "a layer behind the pooling": ("--layer 6", "before the pooling"),
    "a layer that is not used": ("--model nets:passed --layer unused", "not reached"),
    "all layers and one": ("--layer all --layer 1", "stands alone"),
    "maps of several sizes in one array": ("--layer 1 --layer 3", "differ in size"),
    "an unknown class": ("--target horse", "no class is named 'horse'"),
    "a class of no name": ("--target=", "no class is named ''"),
    "a class number out of range": ("--target 3", "0 to 2"),
    "a negative class number": ("--target=-1", "no class is named '-1'"),
    "a class name that two have": ("--target dog", "several classes are named 'dog'"),
    "a number of digits of another script": ("--target ٣", "0 to 2"),
    "an option that is no assignment": ("-o budget", "name=value"),
    "an option that no method has": ("-o bugdet=100", "has no option bugdet"),
    "an option of another method": ("--method cam -o budget=100", "has no option budget"),
    "a word for a number": ("--layer 1 -o budget=much", "budget"),
    "an expression for a number": ("--layer 1 -o budget=2**9", "budget"),
    "a list for a number": ("--method score_cam -o batch_size=[8]", "batch_size"),
    "a budget below the least": ("--layer 1 -o budget=3", "at least 5"),
    "a budget without end": ("--layer 1 -o budget=1e999", "inf"),
    "a batch of none": ("--method score_cam -o batch_size=0", "batch_size"),
    "an unknown payoff": ("-o payoff=price", "probability"),
    "an unknown baseline": ("-o baseline=pink", "mean"),
    "a number for a generator": ("--method shap_cam -o generator=3", "generator"),
    "an option that only Python can use": ("--method lime -o return_fit=True", "has no option return_fit"),
    "YAML that is none": ("-o payoff=[a", "neither a Python literal nor YAML"),
    "YAML that would run code": ("-o payoff=!!python/object/apply:os.getcwd{}", "neither a Python literal nor YAML"),
    "an unknown kind of file by its ending": ("--out map.bmp", "png, pdf, npy"),
    "an unknown kind of file by its name": ("--format bmp", "png, pdf, npy"),
    "an ending against the kind": ("--format pdf", "npy"),
    "the photo itself as output": ("--out photo.png", "would overwrite the photo"),
    "a link to the photo as output": ("--out same.png", "would overwrite the photo"),
    "a file where a folder is wanted": ("--out text.png/map.npy", "text.png"),
    "a file system that takes no files": ("--out /proc/none/map.npy", "cannot write"),
    "an unknown device": ("--device gpu", "these can: cpu"),
    "a device that is not there": ("--device xpu:7", "these can: cpu"),
    "a device without values": ("--device meta", "these can: cpu"),
    "a device of no name": ("--device=", "these can: cpu"),
}  # fmt: skip
SEVERAL = {
    "a file where the folder of several maps is wanted": ("good --out text.png", "--out is a folder"),
    "two photos of one name": ("good more/a.png", "two photos would be written to a.npy"),
    "the same photo twice": ("photo.png photo.png", "two photos would be written to photo.npy"),
    "a photo called like the contact sheet": ("more", "contact_sheet.npy"),
    "the photos' own folder as output": ("good --out good --format png", "would overwrite the photo good/a.png"),
    "a good and a broken photo": ("photos", "1 of 3 photos could not be explained"),
    "a photo and one that is not there": ("photo.png absent.png", "1 of 2 photos could not be explained"),
    "nothing that can be explained": ("text.png nothing.png", "2 of 2 photos could not be explained"),
}
COMMANDS = {
    "an unknown command": ("explian", "explian"),
    "no photo": ("explain", "Missing argument"),
    "an argument that a command does not take": ("methods all", "all"),
    "an unknown benchmark": ("benchmark fast", "fast"),
    "no time for a cell": ("figures --timeout 0", "--timeout"),
    "a word for the time": ("figures --timeout long", "--timeout"),
    "an unknown notebook": ("figures --only 09", "there are 01_first"),
    "a parameter that is no assignment": ("figures -p photo", "name=value"),
    "a parameter whose name is none": ("figures -p 1st=2", "name=value"),
    "a parameter that the notebook has not": ("figures -p foto=dog", "it has: photo, seed"),
    "a parameter of another kind": ("figures -p seed=one", "seed is a int"),
    "a truth value for a number": ("figures -p seed=True", "not a bool"),
    "a parameter of broken YAML": ("figures -p photo={a", "neither a Python literal nor YAML"),
    "a parameter that is no date": ("figures -p photo=2026-13-01", "neither a Python literal nor YAML"),
    "another parameter, to be written back": ("figures -p seed=3 --write-back", "own parameters"),
    "no photos to measure": ("benchmark speed --photos 0", "--photos"),
    "no threads": ("benchmark shapley --threads 0", "--threads"),
    "an unknown layer to measure, behind a known one": ("benchmark shapley --layer 3 --layer 9", "has no layer '9'"),
    "an unknown layer to time": ("benchmark speed --layer 3 --layer 9", "has no layer '9'"),
    "a file for the folder of the benchmark": ("benchmark shapley --layer 3 --out text.png", "text.png"),
    "an unknown profile": ("benchmark experiments --profile fast", "quick, full"),
    "an unknown engine": ("benchmark experiments --engine spark", "in-process, dask"),
    "an unknown set": ("benchmark experiments --set photo", "photos"),
    "an unknown metric": ("benchmark experiments --metric deletoin", "deletion"),
    "an unknown method to measure": ("benchmark experiments --method gradcam", "grad_cam"),
    "an unknown network to measure": ("benchmark experiments --model resnet51", "resnet50"),
    "a metric without those it is made of": ("benchmark experiments --metric adcc", "ask for"),
    "a folder and a set": ("benchmark experiments --data photos --set photos", "give one of them"),
    "no folder of images": ("benchmark experiments --data absent", "not a folder"),
    "a file for a folder of images": ("benchmark experiments --data photo.png", "not a folder"),
    "a folder without images": ("benchmark experiments --data empty", "no image in"),
    "a layer that no network has": ("benchmark experiments --data good --layer bloks.5", "none of the networks has"),
    "no images at all": ("benchmark experiments --limit 0", "--limit"),
    "a negative seed": ("benchmark experiments --seed -1", "--seed"),
    "a seed of too many bits": (f"benchmark experiments --seed {2**64}", "--seed"),
    "no workers": ("benchmark experiments --engine dask --workers 0", "--workers"),
    "a file for the folder of the experiments": ("benchmark experiments --data good --out text.png", "text.png"),
    "an unreadable image among good ones": (
        "benchmark experiments --data photos --method grad_cam --metric complexity --out new", "cut.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPLAIN)
def test_explain_refuses(kind, place, monkeypatch, capsys):
    given, message = EXPLAIN[kind]
    before, arguments = contents(place), given.split(" ")
    own_photo = [] if arguments[0][0] != "-" else ["photo.png"]
    command = ["explain", *own_photo, "--model", "nets:tiny", "--out", "map.npy", *arguments]
    assert refused(run(monkeypatch, capsys, *command), message)
    assert contents(place) | before == contents(place) and not Path("ran").exists() and not Path("map.npy").exists()


@pytest.mark.parametrize("kind", SEVERAL)
def test_explain_refuses_several(kind, place, monkeypatch, capsys):
    given, message = SEVERAL[kind]
    before = contents(place)
    command = f"explain --model nets:tiny --method grad_cam --format npy {given}".split()
    assert refused(run(monkeypatch, capsys, *command), message)
    assert contents(place) | before == contents(place)


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_refuses(kind, place, two_notebooks, network, monkeypatch, capsys):
    given, message = COMMANDS[kind]
    before = contents(place)
    monkeypatch.setattr("cam_utils.paths.BUILD", place / "build")
    assert refused(run(monkeypatch, capsys, *given.split()), message)
    assert contents(place) | before == contents(place) and not two_notebooks


@pytest.fixture
def network(monkeypatch):
    """A tiny network in the place of the real ones."""
    model = toy_cnn("gap").float()
    about = (12, 12, InterpolationMode.BILINEAR, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    model.spec = ModelSpec("tf_efficientnet_lite0", "features", *about)
    model.add_module("3", torch.nn.Identity())
    for module in ("models", "subjects"):
        load = functools.partial(
            lambda real, name="", *a: model if "lite" in name or not name else real(name, *a), load_model
        )
        monkeypatch.setattr(f"cam_utils.{module}.load_model", load)
    return model


@pytest.fixture
def two_notebooks(place, monkeypatch):
    """`figures` on two notebooks that no kernel runs: the list of those that would have."""
    ran = []

    def execute(notebook, target, *, figures, **_):
        ran.append(notebook.name)
        figures.mkdir(parents=True)
        for ending, start in reproduce.MARKS.items():
            (figures / f"{notebook.number}_a{ending}").write_bytes(start)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(notebook.path, target)

    write(place, "01_first")
    write(place, "02_second")
    monkeypatch.setattr("cam_utils.reproduce.run", execute)
    monkeypatch.setattr("cam_utils.reproduce.reproduce", functools.partial(reproduce.reproduce, place))
    return ran


def ran_as_it_should(place, two_notebooks, monkeypatch, capsys):
    code, _, errors = run(monkeypatch, capsys, "figures")
    return code == 0 and two_notebooks[-2:] == ["01_first", "02_second"] and not errors


MANIFESTS = {  # kind: what is in figures/manifest.json
    "a manifest that is no JSON": b'{"versions": {}, "figures": {',
    "an empty manifest": b"",
    "a manifest that is not UTF-8": b'{"versions": {}, "figures": {"01_\xe9": 1}}',
    "a manifest that is a list": b"[]",
    "a manifest that lacks its figures": b'{"versions": {}}',
    "a manifest of another version": b'{"versions": {}, "figures": {"01_a": {"notebook": "01_first.ipynb", "sha256": "ab"}}}',
    "a manifest of lists": b'{"versions": [], "figures": ["01_a"]}',
    "a manifest nested without end": b"[" * 100_000,
    "a folder for a manifest": None,
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_says_what_to_do_before_anything_runs(kind, place, two_notebooks, monkeypatch, capsys):
    file = place / "figures" / "manifest.json"
    file.parent.mkdir()
    file.mkdir() if MANIFESTS[kind] is None else file.write_bytes(MANIFESTS[kind])
    before = contents(place)
    assert refused(run(monkeypatch, capsys, "figures"), "manifest.json is damaged or in the form of another version")
    assert not two_notebooks and contents(place) | before == contents(place)
    file.rmdir() if file.is_dir() else file.unlink()  # one of the two ways out
    assert ran_as_it_should(place, two_notebooks, monkeypatch, capsys)


CELL = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "", "outputs": [], "execution_count": None}


def notebook(source="n = 3", **fields):
    return json.dumps(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [CELL | {"source": source}]} | fields
    )


NOTEBOOKS = {  # kind: what is in a notebook, and what is said of it or read from it
    "an empty notebook": ("", "cannot be read as a notebook"),
    "a notebook that is no JSON": ("{", "cannot be read as a notebook"),
    "a notebook that is a list": ("[]", "cannot be read as a notebook"),
    "a notebook that is not UTF-8": (b'{"cells": "\xe9"}', "cannot be read as a notebook"),
    "a notebook of a version to come": (notebook(nbformat=99), "cannot be read as a notebook"),
    "a notebook whose cells have no metadata": (notebook(cells=[{"cell_type": "code"}]), "cannot be read as a notebook"),
    "parameters that are no Python": (notebook("n = = 3"), "the parameters cell is no Python"),
    "parameters with a null byte": (notebook("n = 3\0"), "the parameters cell is no Python"),
    "a derived parameter": (notebook("n = 3\nm = n"), "`m = n` in the parameters cell is not `name = literal`"),
    "a parameter without a value": (notebook("n: int"), "is not `name = literal`"),
    "a parameter that cannot be": (notebook("n = {[]: 1}"), "is not `name = literal`"),
    "an import among the parameters": (notebook("import os"), "is not `name = literal`"),
    "two parameters at once": (notebook("n, m = 3, 4"), "is not `name = literal`"),
    "a notebook without a version": ('{"cells": []}', {}),
    "a notebook without a parameters cell": (notebook(cells=[]), {}),
    "a notebook of version 3": (
        json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [
            {"cell_type": "code", "input": "n = 3", "language": "python", "outputs": [], "metadata": CELL["metadata"]}]}]}),
        {"n": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_notebooks_that_are_none(kind, place, two_notebooks, monkeypatch, capsys):
    content, expected = NOTEBOOKS[kind]
    file = place / "notebooks" / "03_third.ipynb"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(place)
    if isinstance(expected, dict):
        assert find_notebooks(file.parent, ["3"])[0].defaults == expected
    else:
        result = run(monkeypatch, capsys, "figures")
        assert refused(result, expected) and "03_third.ipynb" in result[2] and not two_notebooks
    assert contents(place) | before == contents(place)


PARAMETERS = {  # kind: an assignment, and its value or None where it is refused
    "a value with an equals sign": ("a=x=y", "x=y"),
    "a value of no characters": ("a=", None),
    "a value in another script": ("a=mèo", "mèo"),
    "a value nested without end": ("a=" + "[" * 5000, ValueError),
    "a value of two YAML documents": ("a=b\n---\nc", ValueError),
    "a value with a control character": ("a=\x01", ValueError),
    "a value that no dictionary holds": ("a={[]: 1}", ValueError),
    "a name with a hyphen": ("my-name=3", ValueError),
    "a name of nothing": ("=3", ValueError),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_are_read_or_refused(kind):
    text, expected = PARAMETERS[kind]
    if expected is ValueError:
        with pytest.raises(ValueError, match="name=value|neither a Python literal nor YAML"):
            parse_parameters([text])
    else:
        assert parse_parameters([text]) == {"a": expected}


# files that the project keeps for itself: a damaged one is made again and replaced, never taken for a result

COLUMNS = ("name", "value")
SHARDS = {  # kind: what becomes of a shard
    "a shard that is cut off": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "an empty shard": lambda file: file.write_bytes(b""),
    "a shard without its first line": lambda file: file.write_bytes(file.read_bytes().partition(b"\n")[2]),
    "a shard with a row more": lambda file: file.write_bytes(file.read_bytes() + b"a,1\n"),
    "a shard of other rows": lambda file: file.write_bytes(file.read_bytes().replace(b"0.1", b"0.7")),
    "a shard of another key": lambda file: file.write_bytes(file.read_bytes().replace(b'"key-0"', b'"key-1"')),
    "a shard of other columns": lambda file: file.write_bytes(file.read_bytes().replace(b'"value"', b'"score"')),
    "a shard of another version": lambda file: file.write_bytes(file.read_bytes().replace(b'"sha256"', b'"md5"')),
    "a shard that is not UTF-8": lambda file: file.write_bytes(file.read_bytes().replace(b"0.1", b"\xe9")),
    "a shard with Windows line ends": lambda file: file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n")),
    "a shard whose head is a list": lambda file: file.write_bytes(b"[]\na,0.1\n"),
    "a shard nested without end": lambda file: file.write_bytes(b"[" * 100_000),
}


def two_shards(folder):
    """The jobs of two shards, and how many of them had to be computed."""
    jobs, lines = [Job(f"job {i}", f"key-{i}", i) for i in range(2)], []
    rows = functools.partial(lambda i: ([{"name": "a\r\nb", "value": 0.1 + i}], {}))
    assert complete(jobs, rows, folder, COLUMNS, progress=False, say=lines.append) == {}
    return jobs, 2 - int(lines[0].split()[-3])


@pytest.mark.parametrize("kind", SHARDS)
def test_a_damaged_shard_is_computed_again(kind, tmp_path):
    jobs, _ = two_shards(tmp_path)
    assert two_shards(tmp_path)[1] == 0  # not even for the line ends in a name
    whole, file = contents(tmp_path), tmp_path / "shards" / "key-0.csv"
    SHARDS[kind](file)
    assert read_shard(tmp_path, jobs[0], COLUMNS) is None
    assert two_shards(tmp_path)[1] == 1 and contents(tmp_path) == whole


def test_no_bit_of_a_shard_can_flip_and_no_byte_be_lost_unseen(tmp_path):
    (job, _), _ = two_shards(tmp_path)
    file = tmp_path / "shards" / "key-0.csv"
    whole, right = file.read_bytes(), read_shard(tmp_path, job, COLUMNS)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert read_shard(tmp_path, job, COLUMNS) in (
            None,
            right,
        )  # right: where the bit means nothing, as in 1e5 and 1E5
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert read_shard(tmp_path, job, COLUMNS) is None


def npz(**fields):
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    return buffer.getvalue()


REFERENCES = {  # kind: what becomes of the file of Shapley values, from its bytes and its arrays
    "a reference that is cut off": lambda whole, saved: whole[: len(whole) // 2],
    "an empty reference": lambda whole, saved: b"",
    "a reference that is a text": lambda whole, saved: b"no zip",
    "a reference with a flipped bit": lambda whole, saved: whole.replace(saved["values"].tobytes()[:8], b"\0" * 8),
    "a reference of another kind of file": lambda whole, saved: saved["values"].tobytes(),
    "a reference that lacks an array": lambda whole, saved: npz(values=saved["values"], error=saved["error"]),
    "a reference of another number of values": lambda whole, saved: npz(**saved | {"values": saved["values"][:-1]}),
    "a reference of whole numbers": lambda whole, saved: npz(**saved | {"values": saved["values"].astype("i8")}),
    "a reference of NaN": lambda whole, saved: npz(**saved | {"values": saved["values"] * np.nan}),
    "a reference whose error is NaN": lambda whole, saved: npz(**saved | {"error": np.nan}),
    "a reference of objects": lambda whole, saved: npz(**saved | {"values": np.array([Evil("ran")] * 12)}),
    "a pickle for a reference": lambda whole, saved: pickle.dumps(Evil("ran")),
    "a reference of another game": lambda whole, saved: npz(**saved | {"key": '{"game": 2}'}),
    "a reference whose key is no JSON": lambda whole, saved: npz(**saved | {"key": "{"}),
}


class Game:
    """What `cached_reference` asks of a game."""

    n_players = 12


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_damaged_reference_is_computed_again(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Estimate(torch.randn(12, dtype=torch.float64), torch.full((12,), 1e-3, dtype=torch.float64), 100, 0.0)
    monkeypatch.setattr(benchmark, "reference", lambda *_: made)
    estimate = functools.partial(benchmark.cached_reference, Game(), {"game": 1}, 0.01, 0, tmp_path)
    values, error = estimate()
    (file,) = contents(tmp_path)
    with np.load(file) as opened:
        saved = dict(opened)
    damaged = REFERENCES[kind](file.read_bytes(), saved)
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    again, its_error = estimate()
    assert torch.equal(again, values) and its_error == error and not Path("ran").exists()
    monkeypatch.setattr(benchmark, "reference", None)  # nothing is computed: the file has been replaced
    assert torch.equal(estimate()[0], values)


KEPT = {  # kind: what is put in the place of a network that was trained before, from its file
    "a network that is cut off": lambda whole: whole[:-2000],
    "an empty network": lambda whole: b"",
    "a text for a network": lambda whole: b"no network",
    "a network with a flipped bit": lambda whole: whole[: len(whole) // 2] + b"\xff\xff" + whole[len(whole) // 2 + 2 :],
    "a network of other shapes": lambda whole: saved(whole, state=lambda s: s | {"classifier.2.bias": torch.zeros(7)}),
    "a network of other layers": lambda whole: saved(whole, state=lambda s: dict(list(s.items())[:-1])),
    "a network with other weights": lambda whole: saved(whole, state=lambda s: {k: v * 2 for k, v in s.items()}),
    "a network without its fingerprint": lambda whole: saved(whole, fingerprint=lambda f: None),
    "a list for a network": lambda whole: save([1]),
    "a pickle that would run code for a network": lambda whole: pickle.dumps(Evil("ran")),
    "a network that would run code": lambda whole: save({"state": Evil("ran"), "fingerprint": ""}),
}


def save(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def saved(whole, **changes):
    content = torch.load(io.BytesIO(whole), weights_only=True)
    return save(content | {name: change(content[name]) for name, change in changes.items()})


@pytest.mark.parametrize("kind", KEPT)
def test_a_damaged_network_is_trained_again(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained = shapes_net("gap", class_names=CLASS_NAMES, seed=3).eval()
    monkeypatch.setattr(subjects, "shapes_classifier", lambda *_, **__: trained)
    train = functools.partial(subjects.train, "shapes_net_gap", 0, False, tmp_path / "kept")
    right = benchmark.fingerprint(train())
    (file,) = contents(tmp_path)
    file.write_bytes(KEPT[kind](file.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a pickle that it does not like
        assert train() is trained and benchmark.fingerprint(trained) == right
    monkeypatch.setattr(subjects, "shapes_classifier", None)  # nothing is trained: the file has been replaced
    assert benchmark.fingerprint(train()) == right and not Path("ran").exists()


# files that people edit


CATALOGUES = {  # kind: what is in labels_xx.yml, and what is said of it
    "labels that are no YAML": ('labels: {"a": "b"', "cannot be used: while parsing"),
    "no labels": ("", "must have `labels` and `keep`"),
    "labels without what is kept": ("labels: {a: b}", "must have `labels` and `keep`"),
    "labels that are a list": ("labels: [a, b]\nkeep: []", "must be texts by name"),
    "a label that is a number": ("labels: {a: 3}\nkeep: []", "must be texts: put them into quotes"),
    "a label for a truth value": ("labels: {no: không}\nkeep: []", "must be texts: put them into quotes"),
    "a pattern where a list is wanted": ("labels: {}\nkeep: abc", "must be a list of regular expressions"),
    "a pattern that is none": ("labels: {}\nkeep: ['(']", "unterminated"),
    "a translation with a gap more": ("labels: {'{} of b': '{} {}'}\nkeep: []", "other gaps"),
    "labels that are not UTF-8": (b"labels: {a: \xe9}\nkeep: []", "labels_xx.yml cannot be used"),
    "labels that would run code": ("!!python/object/apply:os.getcwd []", "labels_xx.yml cannot be used"),
}


@pytest.mark.parametrize("kind", CATALOGUES)
def test_labels_that_cannot_be_used(kind, monkeypatch, tmp_path):
    content, message = CATALOGUES[kind]
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    (tmp_path / "labels_xx.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        language.load_catalogue.__wrapped__("xx")
    assert str(error.value).startswith("labels_xx.yml") and "\n" not in str(error.value)


TEXTS = {
    "alternative texts that are no YAML": ("a: 'b", "cannot be used"),
    "no alternative texts": ("", "must be texts by name"),
    "an alternative text that is a list": ("01_a: [b]", "must be texts: put them into quotes"),
    "alternative texts that are not UTF-8": (b"01_a: \xe9", "cannot be used"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_alternative_texts_that_cannot_be_used(kind, monkeypatch, tmp_path):
    content, message = TEXTS[kind]
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    (tmp_path / "figures.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"figures.yml.*{message}") as error:
        language.alternative_texts.__wrapped__()
    assert "\n" not in str(error.value)


PHOTOS = {  # kind: what becomes of photos.csv, from its first lines, and what is said of it
    "photos without a column": (
        lambda lines: [line.partition(",")[2] for line in lines],
        "the column 'file' is missing",
    ),
    "a photo that is there twice": (lambda lines: [*lines, lines[1]], "there twice"),
    "a class that is no number": (lambda lines: [lines[0], lines[1].replace(",309,", ",bee,")], "bee.jpg: .*'bee'"),
    "a class out of range": (lambda lines: [lines[0], lines[1].replace(",309,", ",1000,")], "0 to 999"),
    "neither right nor wrong": (
        lambda lines: [lines[0], lines[1].replace(",False,", ",maybe,")],
        "'maybe' True or False",
    ),
    "half a line": (lambda lines: [lines[0], lines[1][:10]], "bee.jpg"),
    "an empty table of photos": (lambda lines: [], "no photos"),
    "photos that are not UTF-8": (lambda lines: [lines[0], lines[1] + "\udce9"], "photos.csv"),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos_that_are_not_as_they_should_be(kind, monkeypatch, tmp_path):
    damage, message = PHOTOS[kind]
    lines = (paths.PHOTOS / "photos.csv").read_text(encoding="utf-8").splitlines()[:3]
    for line in lines[1:]:
        shutil.copy(paths.PHOTOS / line.partition(",")[0], tmp_path)
    monkeypatch.setattr(paths, "PHOTOS", tmp_path)
    (tmp_path / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
    assert len(load_photos()) == 2
    (tmp_path / "photos.csv").write_text("\n".join(damage(lines)), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        load_photos()


VARIABLES = {
    "a file for the folder of the figures": ("CAM_UTILS_FIGURES", lambda: save_figure(new_figure(), "01_a")),
    "a file for the folder of the tables": ("CAM_UTILS_TABLES", paths.tables_folder),
}


@pytest.mark.parametrize("kind", VARIABLES)
def test_an_environment_variable_that_names_a_file(kind, place, monkeypatch):
    variable, use = VARIABLES[kind]
    monkeypatch.setenv(variable, "text.png")
    with pytest.raises(ValueError, match=f"{variable} names 'text.png', which is no folder"):
        use()
    assert Path("text.png").read_text() == "no image"


# what is unusual and right


RIGHT = {  # kind: the name of a photo
    "a space in a name": "my dog.png",
    "a line break in a name": "my\nother dog.png",
    "a tabulator and a carriage return in a name": "my\tthird dog\r.png",
    "a name in another script": "con mèo 猫 🐈.png",
    "a name that is not UTF-8": NOT_UTF8,
    "a dollar sign in a name": "a$b$^.png",
    "a percent sign and braces in a name": "%s{0}{}.png",
    "an ending in capitals": "LOUD.PNG",
    "a name like an option": "--out.png",
    "a folder in a folder, forty times": "deep/" * 40 + "hidden.png",
    "a folder that looks like a photo": "folder.png/dog.png",
    "an image called like another kind": "really_png.jpg",
}


@pytest.fixture
def unusual(place):
    """A folder of photos with the names of RIGHT."""
    for name in RIGHT.values():
        file = place / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            GREY.save(opened, "png")
    return place / "in"


def test_explain_takes_all_these_names(place, unusual, monkeypatch, capsys):
    before = contents(place)
    monkeypatch.setattr(sys, "stdout", strict := io.TextIOWrapper(io.BytesIO(), "utf-8"))  # as a terminal's is
    command = ["explain", "in", "--model", "nets:tiny", "--method", "grad_cam", "--out", "out"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font has no cats
        code, _, errors = run(monkeypatch, capsys, *command)
    strict.flush()
    assert code == 0 and "Traceback" not in errors, errors
    assert len(strict.buffer.getvalue().decode().splitlines()) == len(RIGHT) + 1
    pictures = {f"{Path(name).stem}.png" for name in RIGHT.values()}
    assert len(pictures) == len(RIGHT) and {p.name for p in Path("out").iterdir()} == {*pictures, "contact_sheet.png"}
    assert contents(place) | before == contents(place)


def test_experiments_take_all_these_names(unusual, network, monkeypatch, capsys):
    choices = "--model tf_efficientnet_lite0 --method grad_cam --metric complexity --no-progress".split()
    command = ["benchmark", "experiments", "--data", unusual, "--out", "out", *choices]
    code, _, errors = run(monkeypatch, capsys, *command)
    assert code == 0, errors
    expected = {name.replace("\udce9", "\\xe9").replace("\r", "\\r") for name in RIGHT.values()}
    assert set(read_table("out/experiments.csv").image) == expected
    code, output, _ = run(monkeypatch, capsys, *command)
    assert code == 0 and f"{len(RIGHT)} shards, of which {len(RIGHT)} are there" in output


def test_a_terminal_without_letters_beyond_ascii(place):
    """A name in another script and a class called °: in a process of its own, whose locale is C."""
    photo("con mèo.png")
    Path("nets.py").write_text(NETWORKS.replace('"cat $a", "dog"', '"°C", "°F"'))
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(paths.ROOT)
    command = [sys.executable, "-m", "cam_utils", "explain", "con mèo.png", "--model", "nets:tiny", "--target", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert "class 0" in done.stdout.decode() and Path("con mèo_owen_cam.png").exists()


COMPARED = {  # kind: what is in a figure or table of one of two runs
    "a figure cut short": ("01_map.png", encoded("PNG")[:-30]),
    "a figure that is none": ("01_map.png", b"\x89PNG\r\n\x1a\n"),
    "an empty table": ("07_ranks.csv", b""),
    "a table with a longer row": ("07_ranks.csv", b"a,b\n1,2\n1,2,3\n"),
    "a table that is not UTF-8": ("07_ranks.csv", b"method,mean\ncam,\xe9\n"),
}


@pytest.mark.parametrize("kind", COMPARED)
def test_a_damaged_figure_or_table_is_named_with_the_way_out(kind, place, monkeypatch, capsys):
    name, content = COMPARED[kind]
    whole = encoded("PNG") if name.endswith("png") else b"method,mean\ncam,1\n"
    for folder, data in (("one", whole), ("other", content)):
        Path(folder).mkdir()
        Path(folder, name).write_bytes(data)
    before = contents(place)
    result = run(monkeypatch, capsys, "compare", "one", "other")
    assert refused(result, f"{name} is damaged (") and refused(result, "restore it")
    assert contents(place) == before


HEADER = ",".join(measuring.COLUMNS).encode() + b"\n"
EXPERIMENTS = {  # kind: what is in experiments.csv
    "empty experiments": b"",
    "experiments of other columns": b"set,model,image,value\nphotos,a,b,1\n",
    "experiments with a word for a value": HEADER + b"photos,a,b,c,1,1,0.5,lime,increase,half,1,1\n",
    "experiments with a word for a class": HEADER + b"photos,a,b,c,cat,1,0.5,lime,increase,0,1,1\n",
    "experiments with a row cut short": HEADER + b"photos,a,b,c,1,1\n",
    "experiments that are not UTF-8": HEADER + b"photos,\xe9,b,c,1,1,0.5,lime,increase,0,1,1\n",
}


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_damaged_experiments_are_named_with_the_way_out(kind, place):
    Path("experiments.csv").write_bytes(EXPERIMENTS[kind])
    with pytest.raises(ValueError, match=r"experiments.csv is damaged or of another version \(.*restore it, or make"):
        read_table("experiments.csv")


TABLES = (
    *(COMPARED, EXPERIMENTS),
    *(EXPLAIN, SEVERAL, COMMANDS, MANIFESTS, NOTEBOOKS, PARAMETERS, SHARDS, REFERENCES, KEPT, CATALOGUES, TEXTS),
    *(PHOTOS, VARIABLES, RIGHT, {"a terminal without letters beyond ASCII": None}),
)


def test_the_kinds_are_so_many():
    kinds = {kind for table in TABLES for kind in table}
    assert len(kinds) == sum(map(len, TABLES)) == 238
