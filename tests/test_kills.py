"""Real processes killed, hung, and started twice: what they leave, and that the next run completes it."""

import functools
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from cam_utils import experiments, measuring, reproduce
from cam_utils.cli import main
from cam_utils.engine import ExperimentError, Job, complete, merge
from cam_utils.files import alone
from cam_utils.notebooks import ReproductionError
from test_experiments import images, measured, same, shard_files
from test_faults import check, figures, left_over, old_and_new, published, run_here
from test_reproduce import write

PROCESSES = multiprocessing.get_context("forkserver")  # imports once, and each child is as good as fresh
PROCESSES.set_forkserver_preload(["cam_utils.cli", "cam_utils.reproduce", "cam_utils.experiments"])


def started(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process


def until(condition, seconds=60):
    """Wait for it; whether it has come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(found)


def figures_command(root, log, at_once=1):
    """In a process of its own and as the leader of a group: `python -m cam_utils figures --prune` for another root."""
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    reproduce.reproduce = functools.partial(reproduce.reproduce, root)
    sys.argv = ["cam_utils", "figures", "--prune", "--at-once", str(at_once)]
    main()


@pytest.fixture
def half_way(tmp_path, monkeypatch):
    """A root whose figures are old and whose notebooks would make new ones; the old files and the new ones."""
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "run", run_here)
        end = old_and_new(tmp_path / "end", "new")
        figures(end)
        root = old_and_new(tmp_path / "root", "old")
        figures(root)
    return old_and_new(root, "new"), published(root), published(end)


def kernels_of(process):
    """The kernels that it, or what it started, has started."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("at_once, victims", [(1, ("run", "child", "group", "run")), (2, ("run", "child"))])
def test_figures_killed_at_random_times_are_old_or_new_and_no_kernel_stays(half_way, tmp_path, at_once, victims):
    root, old, new = half_way
    draws, log, hit = random.Random(0), tmp_path / "log", 0
    for number, victim in enumerate(victims):
        process = started(figures_command, root, log, at_once)
        assert until(lambda process=process: kernels_of(process))
        time.sleep(draws.uniform(0, 1.5) if number else 0)  # the first as soon as there is a kernel: that hits one
        kernels = kernels_of(process)
        hit += bool(kernels)
        if victim == "child":  # a kernel, or a process that runs notebooks
            for child in psutil.Process(process.pid).children() if process.is_alive() else ():
                child.kill()
        elif process.is_alive():
            os.killpg(process.pid, signal.SIGKILL) if victim == "group" else process.kill()
        process.join(60)
        if process.exitcode == 1:  # the run outlived its child
            ended = r"error: (0\d_\w+.ipynb failed .*\n|the process of .* ended unexpectedly).*figures/ is unchanged"
            assert re.search(ended, log.read_text(), re.DOTALL)
            assert "Traceback" not in log.read_text()
        else:
            assert process.exitcode in (0, -signal.SIGKILL)
        with alone(root / "build", RuntimeError):  # the lock is free at once
            check(root, old, new)
        assert not psutil.wait_procs(kernels, 20)[1], "a kernel outlives its run"
        log.unlink()
    assert hit
    figures(root)
    assert published(root) == new and not left_over(root)


def test_a_cell_that_ignores_every_polite_signal_is_ended_by_the_time_limit(tmp_path):
    ignore = "import signal, time\nfor s in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(s, signal.SIG_IGN)\n"
    write(tmp_path, "01_first", f'{ignore}open("../pid", "w").write(str(os.getpid()))\nwhile True:\n    time.sleep(1)')
    with pytest.raises(
        ReproductionError, match=r"cell 4 of 4:\n    import signal(.*\n)*.*longer than 2 s \(--timeout\)"
    ):
        figures(tmp_path, timeout=2)
    assert until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), 20)


def test_the_second_of_two_commands_says_who_is_at_work_and_the_first_completes(tmp_path):
    wait = 'import time\nwhile not os.path.exists("../go"):\n    time.sleep(0.05)'
    write(tmp_path, "01_first", wait, 'save("01_a")')
    process = started(figures_command, tmp_path, tmp_path / "log")
    assert until(lambda: (tmp_path / "log").exists() and "[1/1]" in (tmp_path / "log").read_text())
    with pytest.raises(ReproductionError, match=rf"another run \(process {process.pid}\) is at work in .*build: wait"):
        figures(tmp_path)
    (tmp_path / "go").touch()
    process.join(60)
    assert process.exitcode == 0 and (tmp_path / "figures" / "01_a.png").exists()


def experiments_slowly(out, data):
    """In a process of its own: the run of `measured`, 0.1 s a shard at least."""

    def slow(task):
        time.sleep(0.1)
        return measuring.measure(task)

    experiments.measure = slow
    measured(out, data)


def test_experiments_killed_again_and_again_give_the_table_of_one_run(tmp_path):
    data, out, draws, kills = images(tmp_path / "data", 8), tmp_path / "out", random.Random(0), 0
    table = measured(tmp_path / "uninterrupted", data)
    while True:
        wanted = len(shard_files(out)) + draws.choice((1, 2))
        process = started(experiments_slowly, out, data)
        until(lambda process=process, n=wanted: len(shard_files(out)) >= n or not process.is_alive())
        if not kills:  # and nobody else is let in
            with pytest.raises(ExperimentError, match=rf"another run \(process {process.pid}\) is at work in"):
                measured(out, data)
        time.sleep(draws.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if (out / "experiments.csv").exists():
            assert same(experiments.read_table(out / "experiments.csv"), table)
        if len(shard_files(out)) == 8:
            break
    assert kills >= 3
    assert same(measured(out, data), table) and not left_over(out)
    assert same(experiments.read_table(out / "experiments.csv"), table)


CLUSTER = """
import time, distributed, cam_utils.engine
options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
with distributed.LocalCluster(**options) as cluster:
    print(cluster.scheduler_address, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_dask_scheduler_that_dies_ends_the_run_and_costs_no_shard(tmp_path):
    pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    (tmp_path / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, tmp_path / "cluster.py"]
    cluster = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        quiet = {"progress": False, "say": lambda line: None}
        address, jobs = cluster.stdout.readline().strip(), [Job(f"job {i}", f"key{i}", i) for i in range(20)]

        def numbers(n):
            time.sleep(0.2)
            return [{"n": n}], {}

        def kill():
            until(lambda: len(shard_files(tmp_path)) > 2)
            os.killpg(cluster.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        gone = f"the Dask scheduler at {address} is gone; what was computed is kept"
        soon = dask.config.set({"distributed.comm.timeouts.connect": "2s"})  # else half a minute
        with soon, pytest.raises(ExperimentError, match=gone):
            complete(jobs, numbers, tmp_path, ("n",), engine="dask", scheduler=address, prepare=lambda: None, **quiet)
        thread.join()
    finally:
        if cluster.poll() is None:
            os.killpg(cluster.pid, signal.SIGKILL)
        cluster.wait()
        cluster.stdout.close()
    kept = {file: file.read_bytes() for file in shard_files(tmp_path)}
    assert 2 < len(kept) < 20
    assert complete(jobs, numbers, tmp_path, ("n",), **quiet) == {}
    assert {file: file.read_bytes() for file in kept} == kept
    merge(tmp_path, jobs, ("n",), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "n\n" + "".join(f"{i}\n" for i in range(20))
