"""Kills at every step of publishing: nothing half-written is taken for a result, and the next run completes it."""

import errno
import os
import shutil
import signal
import sys
import traceback
from unittest import mock

import nbformat
import pytest

from cam_utils import files, reproduce
from cam_utils.files import WriteError, make_ready, replacing
from cam_utils.notebooks import ReproductionError
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
        assert new.items() <= found.items()
    return found


def left_over(root):
    return [path for path in root.rglob(f"{files._PREFIX}*") if root / "build" / "staging" not in path.parents]


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
            changed = [name for name in ("01_a.png", "02_table.csv") if found[name] != old[name]]
            for name in changed if found["manifest.json"] == old["manifest.json"] else ():
                refused += 1  # the manifest would go on telling the old file's checksum
                with pytest.raises(ReproductionError, match=f"not as figures/manifest.json says: .*{name}"):
                    some = shutil.copytree(root, tmp_path / f"some{step}{name}")
                    figures(some, only=["02" if name < "02" else "01"])
        figures(root)
        assert published(root) == new and not left_over(root)
        assert len(list((root / "build").glob("staging*"))) == 1
    assert found == new and step > 60 and mixed > 5 and refused > 3


@pytest.mark.parametrize("name", ["01_a.png", "manifest.json", "02_table.csv"])
def test_a_disk_that_fills_while_files_are_copied_leaves_figures_and_tables(name, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run", run_here)
    root = old_and_new(tmp_path, "old")
    figures(root)
    before, copy = published(root), shutil.copyfile

    def full(source, target):
        if os.path.basename(target) == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    old_and_new(root, "new")
    with monkeypatch.context() as patch, pytest.raises(WriteError, match="No space left"):
        patch.setattr(shutil, "copyfile", full)
        figures(root)
    assert published(root) == before and not left_over(root)


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
