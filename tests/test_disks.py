"""Full disks and folders that may not be written: every writer says so, and leaves what was there."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from cam_utils import benchmark, experiments, reproduce, shell, subjects
from cam_utils.cli import main
from cam_utils.engine import Job, merge, write_shard
from cam_utils.explanation import explain
from cam_utils.files import WriteError
from cam_utils.notebooks import ReproductionError, write_outputs
from cam_utils.plotting import new_figure, save_figure
from cam_utils.shapley import Estimate
from conftest import no_superuser
from test_experiments import toy
from test_faults import figures
from test_reproduce import contents, write


@contextmanager
def no_file_above(size):
    """The system refuses to make a file longer than `size` bytes, so that any write can end in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def filled_up(folder):
    with open(folder / "filler", "wb", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    try:
        yield
    finally:
        (folder / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def a_figure(folder, text):
    figure = new_figure(width=2, height=2)
    figure.axes[0].set_title(text)
    with mock.patch.dict(os.environ, CAM_UTILS_FIGURES=str(folder)):
        save_figure(figure, "01_a")


def a_shard(folder, text):
    write_shard(folder, Job("a", "key", None), ("n",), [{"n": text * 3000}], {})


def a_merged_table(folder, text):
    merge(folder, [], (text * 3000,), folder / "experiments.csv")


def a_reference(folder, text):
    estimate = Estimate(torch.ones(500), torch.ones(500), 1.0, 0.0)
    with mock.patch.object(benchmark, "reference", lambda *rest: estimate):
        benchmark.cached_reference(SimpleNamespace(n_players=500), {"image": "a"}, float(text == "old"), 1, folder)


def a_network(folder, text):
    with mock.patch.multiple(subjects, shapes_classifier=lambda *_, **__: toy(), _kept=lambda *_: None):
        subjects.train("shapes_net_fc", 0, False, folder)


def an_explanation(format):
    def write_it(folder, text):
        model, image = toy("gap", 64), Image.fromarray(np.full((64, 64, 3), len(text), np.uint8))
        shell._write([explain(model.float(), image, method="grad_cam")], folder / f"map.{format}", False)

    write_it.__name__ = f"an_explanation_as_{format}"
    return write_it


def a_notebook(folder, text):
    name = "01_first.ipynb"
    if not (folder / name).exists():
        shutil.copyfile(write(folder.parent, "01_first", "1"), folder / name)
    cells = nbformat.read(folder / name, as_version=4)
    cells.cells[1].outputs = [nbformat.v4.new_output("stream", text=text * 3000)]
    with no_file_above(resource.RLIM_INFINITY):
        nbformat.write(cells, folder.parent / name)
    write_outputs(folder.parent / name, folder / name)


def published_figures(folder, text):
    staged = {name: folder.parent / f"staged_{name}" for name in ("a.png", "b.png", "manifest.json")}
    with no_file_above(resource.RLIM_INFINITY):
        for name, file in staged.items():
            file.write_text(name * 1000 + text)
    reproduce._publish(folder, staged)


WRITERS = [
    a_figure,
    a_shard,
    a_merged_table,
    a_reference,
    a_network,
    *map(an_explanation, ("png", "pdf", "npy")),
    a_notebook,
    published_figures,
]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_write_that_ends_in_the_middle_says_so_and_leaves_what_was_there(writer, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    writer(folder, "old")
    before = contents(folder)
    size = max(map(len, before.values()))
    for limit in (0, size // 2):
        with (
            no_file_above(limit),
            pytest.raises(WriteError, match=f"cannot write '{folder}.*': File too large. What was"),
        ):
            writer(folder, "new")
        assert contents(folder) == before
    writer(folder, "new")
    assert set(contents(folder)) == set(before)


def test_on_a_full_disk_every_writer_says_so_and_leaves_what_was_there(small_disk):
    for writer in WRITERS:
        folder = small_disk / writer.__name__
        folder.mkdir()
        writer(folder, "old")
        before = contents(folder)
        with filled_up(small_disk), pytest.raises(WriteError, match="cannot write '.*': No space left on device"):
            writer(folder, "new")
        assert contents(folder) == before
        shutil.rmtree(folder)


def test_an_executed_notebook_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    write(tmp_path, "01_first", "print('a line\\n' * 10_000)")
    with (
        no_file_above(50_000),
        pytest.raises(ReproductionError, match="01_first.ipynb cannot be executed into .*too large"),
    ):
        figures(tmp_path)
    assert not (tmp_path / "figures").exists() and contents(tmp_path / "build" / "notebooks") == {}


# folders that may not be written


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o555)
    with no_superuser():
        yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize(
    "command",
    [
        "explain data/photos/bee.jpg --out=FOLDER/map.png",
        "explain data/photos --out=FOLDER/maps",
        "benchmark experiments --data=data/photos --out=FOLDER",
        "benchmark experiments --data=data/photos --out=FOLDER/new",
        "benchmark speed --photos=1 --out=FOLDER",
        "benchmark shapley --photos=1 --out=FOLDER/new",
        "figures",
    ],
)
def test_a_read_only_folder_is_named_before_any_work(command, read_only, monkeypatch, capsys):
    root = read_only.parent
    write(root, "01_first")
    (root / "figures").symlink_to(read_only)
    here, never = reproduce.reproduce, mock.Mock(side_effect=AssertionError("too late"))
    monkeypatch.setattr(reproduce, "reproduce", lambda **options: here(root, **options))
    monkeypatch.setattr(reproduce, "run", never)
    monkeypatch.setattr(shell, "open_model", never)
    monkeypatch.setattr(experiments, "networks", never)
    monkeypatch.setattr(benchmark, "speed_benchmark", never)
    monkeypatch.setattr(benchmark, "games", never)
    monkeypatch.setattr(
        sys, "argv", ["cam_utils", *(word.replace("FOLDER", str(read_only)) for word in command.split())]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and err.startswith("error: cannot write ") and err.count("\n") == 1
    assert str(read_only if command != "figures" else root / "figures") in err
