"""Full disks, folders that may not be written, and kills at every step: nothing half-written is taken for a result."""

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from unittest import mock

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from cam_utils import benchmark, experiments, files, reproduce, shell, subjects
from cam_utils.cli import main
from cam_utils.engine import Job, merge, write_shard
from cam_utils.explanation import explain
from cam_utils.files import WriteError, make_ready, replacing
from cam_utils.notebooks import ReproductionError, write_outputs
from cam_utils.plotting import new_figure, save_figure
from cam_utils.shapley import Estimate
from test_experiments import toy
from test_reproduce import contents, write


def old_and_new(root, word):
    """Two notebooks, whose new versions change figures, make another, and make one no more."""
    extra = 'save("01_b", "old")' if word == "old" else 'save("02_d", "new")'
    table = 'os.mkdir(os.environ["CAM_UTILS_TABLES"])\n'
    table += f'(pathlib.Path(os.environ["CAM_UTILS_TABLES"]) / "02_table.csv").write_text("{word}")'
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    write(root, "01_first", f'save("01_a", "{word}"); save("01_same")', extra if word == "old" else "")
    write(root, "02_second", f'save("02_c", "{word}")', table, "" if word == "old" else extra)
    return root


def run_here(notebook, target, *, figures, **rest):
    """Like `notebooks.run`, in this process: a hundred runs take seconds."""
    figures.mkdir(parents=True)
    with mock.patch.dict(os.environ, CAM_UTILS_FIGURES=str(figures), CAM_UTILS_TABLES=f"{figures}.tables"):
        for cell in nbformat.read(notebook.path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(cell.source, globals())
    with replacing(target) as temporary:
        shutil.copyfile(notebook.path, temporary)


def figures(root, **options):
    reproduce.reproduce(root, say=lambda line: None, **{"prune": True} | options)


def published(root):
    return contents(root / "figures") | contents(root / "data" / "results")


def check(root, old, new):
    """After a kill: every file is the old one or the new one, and a new manifest says what is there."""
    found = {name: data for name, data in published(root).items() if not name.startswith(files._PREFIX)}
    for name, data in found.items():
        assert data in (old.get(name), new.get(name)), name
    if found["manifest.json"] == new["manifest.json"]:
        assert {name: found[name] for name in new if name[-3:] != "csv"}.items() <= new.items()
    return found


def left_over(root):
    return [path for path in root.rglob(f"{files._PREFIX}*") if root / "build" / "staging" not in path.parents]


# kills


def kill_at(step):
    """Kill this process before its step-th change of a file, a folder or a name."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        if changes or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_a_process(function):
    """Call the function in a fork of this process; what it ended with, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_run_killed_at_any_step_leaves_old_or_new_files_and_the_next_completes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run", run_here)
    start = old_and_new(tmp_path / "start", "old")
    figures(start)
    old_and_new(start, "new")
    figures(shutil.copytree(start, tmp_path / "end"))
    old, new, step, mixed, refused = published(start), published(tmp_path / "end"), 0, 0, 0
    assert set(old) - set(new) == {"01_b.png", "01_b.pdf"} and set(new) - set(old) == {"02_d.png", "02_d.pdf"}
    while True:
        step += 1
        root = shutil.copytree(start, tmp_path / f"killed{step}")
        ended = in_a_process(lambda step=step, root=root: (kill_at(step), figures(root)))
        found = check(root, old, new)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        if found not in (old, new):
            mixed += 1
            if found["manifest.json"] == old["manifest.json"] and found["01_a.png"] != old["01_a.png"]:
                refused += 1  # the manifest would go on telling the old figure's checksum
                with pytest.raises(ReproductionError, match="not in figures/ as the manifest says: 01_a"):
                    figures(shutil.copytree(root, tmp_path / f"some{step}"), only=["02"])
        figures(root)
        assert published(root) == new and not left_over(root)
        assert len(list((root / "build").glob("staging*"))) == 1
    assert found == new and step > 60 and mixed > 5 and refused > 3


def test_the_next_run_deletes_what_dead_processes_left_and_spares_the_living(tmp_path):
    def die():
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process(die) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with replacing(tmp_path / "b.txt") as temporary:
        temporary.write_text("whole")
        make_ready(tmp_path)
        assert not left.exists()
    assert contents(tmp_path) == {"b.txt": b"whole"}


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_a_link_is_followed(tmp_path, monkeypatch):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")

    def write_it(text, wrong=None):
        with replacing(tmp_path / "link.txt") as temporary:
            temporary.write_text(text)
            if wrong:
                raise wrong

    with pytest.raises(KeyboardInterrupt):
        write_it("half", KeyboardInterrupt())
    with monkeypatch.context() as patch:  # the bytes are on the disk before the name is
        patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        with pytest.raises(WriteError, match=r"cannot write '.*/real.txt': Input/output error. What was there"):
            write_it("lost")
    assert contents(tmp_path) == {"real.txt": b"old", "link.txt": b"old"}
    write_it("new")
    assert contents(tmp_path) == {"real.txt": b"new", "link.txt": b"new"} and (tmp_path / "link.txt").is_symlink()


# full disks


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
        benchmark.cached_reference(None, {"image": "a"}, float(text == "old"), 1, folder)


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


@contextmanager
def no_superuser():
    """Let permissions hold for this process as for anybody."""
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("the superuser may write everywhere here")
    system, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)  # of this process
    before, now = ((ctypes.c_uint32 * 6)() for _ in range(2))
    assert system.capget(header, before) == system.capget(header, now) == 0
    now[0] &= ~0b110  # effective: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH
    assert system.capset(header, now) == 0
    try:
        yield
    finally:
        assert system.capset(header, before) == 0


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
