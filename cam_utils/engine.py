"""A long table computed shard by shard: what is killed goes on where it was, in this process or on Dask's workers.

A `Job` is one shard of the table. Its rows are written at once, by a rename, to FOLDER/shards/KEY.csv; the key holds a digest of
all that they depend on, and the file's first line says what it must contain, so that nothing truncated or foreign
is ever taken for a result. Only the process that was started writes: Dask's workers send their rows to it.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from .files import make_ready, replacing, write_file

Work = Callable[[Any], tuple[list[dict], dict[str, str]]]  # payload -> rows, and {what failed: why}
ENGINES = ("in-process", "dask")
_shared: tuple[ExitStack, dict[int | None, str]] | None = None  # what stops the clusters; their addresses by workers


class ExperimentError(RuntimeError):
    """Something of the table could not be computed, or must not be now; what has been computed is kept."""


@dataclass(frozen=True)
class Job:
    """One shard: its name for people, the key that its file is named by, and what `work` makes rows from."""

    name: str
    key: str
    payload: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class Shard:
    """The rows of a job as CSV text without the head, and what failed in it; a complete shard has no failures."""

    body: str = field(repr=False)
    failures: dict[str, str]


def write_shard(folder: Path, job: Job, columns: tuple[str, ...], rows: list[dict], failures: dict[str, str]) -> None:
    """Write the rows of a job, all or none."""
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)  # floats by repr: they come back to the last bit
    head = {"key": job.key, "columns": columns, "failures": failures, "sha256": _sha256(text.getvalue())}
    write_file(_file(folder, job), json.dumps(head) + "\n" + text.getvalue())


def read_shard(folder: Path, job: Job, columns: tuple[str, ...]) -> Shard | None:
    """The shard of a job, or None where there is none that is whole and its own."""
    try:
        with _file(folder, job).open(encoding="utf-8", newline="") as file:  # a carriage return in a name stays one
            first, _, body = file.read().partition("\n")
        head = json.loads(first)
        expected = {"key": job.key, "columns": list(columns), "sha256": _sha256(body)}
        if all(head[name] == value for name, value in expected.items()) and body:
            return Shard(body, dict(head["failures"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def merge(folder: Path, jobs: Iterable[Job], columns: tuple[str, ...], target: Path) -> None:
    """Write the rows of all jobs that have a shard, in the order of the jobs, into the one table `target`."""

    def lines() -> Iterator[str]:
        yield ",".join(columns) + "\n"
        for job in jobs:
            if (shard := read_shard(folder, job, columns)) is not None:
                yield shard.body

    with replacing(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines())


def complete(
    jobs: list[Job],
    work: Work,
    folder: Path,
    columns: tuple[str, ...],
    *,
    engine: str = "in-process",
    prepare: Callable[[], None] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, str]]:
    """Compute the shards of `jobs` that are missing, damaged or had failures; returns {job's name: {what failed: why}}.

    work, prepare: module-level functions (or partials of them), so that a worker can be sent them; prepare runs once in every
    process before its first job. An exception in one job is its failure and stops no other. The jobs are done in the order of
    their keys, which is as good as random, so that the time left is told honestly. engine: one of ENGINES, see
    `_by_dask` for workers and scheduler. progress: True or False switches the bar, None shows it on a terminal.
    """
    check_engine(engine)
    if len({job.key for job in jobs}) < len(jobs):
        raise ValueError("two jobs have the same key")
    missing = sorted((job for job in jobs if not _is_done(folder, job, columns)), key=lambda job: job.key)
    make_ready(folder / "shards")
    say(f"{len(jobs)} shards, of which {len(jobs) - len(missing)} are there")
    if not missing:
        return {}
    by_dask = engine == "dask"
    results = (
        _by_dask(missing, work, prepare, workers, scheduler, say) if by_dask else _in_process(missing, work, prepare)
    )
    failed, disable = {}, None if progress is None else not progress
    options = {"total": len(jobs), "initial": len(jobs) - len(missing), "unit": "shard", "smoothing": 0}
    with tqdm(**options, desc="experiments", disable=disable) as bar:
        for job, rows, failures in results:
            if rows:
                write_shard(folder, job, columns, rows, failures)
            if failures:
                failed[job.name] = failures
                bar.set_postfix(failed=len(failed))
            bar.update()
    return failed


@contextmanager
def one_cluster() -> Iterator[None]:
    """Within it, runs share a local Dask cluster: the first that needs one starts it, and it stops at the end.

    Starting one takes seconds, since every worker imports torch.
    """
    global _shared
    before = _shared
    try:
        with ExitStack() as stack:
            _shared = stack, {}
            yield
    finally:
        _shared = before


def check_engine(engine: str) -> None:
    """Raises ValueError for an engine that does not exist or is not installed."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if engine == "dask":
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise ValueError("the Dask engine needs dask.distributed: pip install -e '.[cluster]'") from None


def attempt(work: Work, payload: Any) -> tuple[list[dict], dict[str, str]]:
    """`work(payload)`, an exception being the failure of everything."""
    try:
        return work(payload)
    except Exception as error:
        return [], {"everything": describe(error)}


def describe(error: BaseException) -> str:
    """An exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _in_process(jobs: list[Job], work: Work, prepare: Callable | None) -> Iterator[tuple[Job, list[dict], dict]]:
    if prepare is not None:
        prepare()
    for job in jobs:
        yield job, *attempt(work, job.payload)


def _by_dask(
    jobs: list[Job],
    work: Work,
    prepare: Callable | None,
    workers: int | None,
    scheduler: str | None,
    say: Callable[[str], None],
) -> Iterator[tuple[Job, list[dict], dict]]:
    """Compute the jobs on the workers of an existing `scheduler` (tcp://…), or on a local cluster of `workers` processes.

    workers: None means one for each core. The job of a worker that dies is done again by another; one whose worker has died
    four times in a row counts as failed. A few jobs per worker are handed out at a time, so that a million are no burden.
    """
    import distributed

    with ExitStack() as stack:
        address = _local_cluster(distributed, workers, stack) if scheduler is None else scheduler
        try:
            client = stack.enter_context(distributed.Client(address, timeout=30))
        except OSError as error:
            raise ExperimentError(f"no Dask scheduler answers at {scheduler}: {error}") from None
        say(f"Dask: {len(client.nthreads())} workers, dashboard at {client.dashboard_link}")
        if prepare is not None:
            plugin = _plugin(distributed, prepare)
            try:
                client.register_plugin(plugin)
            except Exception as error:
                raise ExperimentError(f"a Dask worker cannot take part. {describe(error)}") from error
            if scheduler is not None or _shared is not None:
                stack.callback(_forget, client, plugin)
        try:
            yield from _handed_out(jobs, work, client, distributed.as_completed())
        except (OSError, distributed.CancelledError) as error:
            where = f" at {scheduler}" if scheduler else ""
            dropped = isinstance(error, distributed.CancelledError) and client.status == "running"
            what = f"the Dask scheduler{where} {'has dropped a job' if dropped else 'is gone'}"
            raise ExperimentError(f"{what}; what was computed is kept: start again. {describe(error)}") from error


def _local_cluster(distributed, workers: int | None, stack: ExitStack) -> str:
    """The address of the cluster that is shared, or of one that `stack` will stop."""
    stack, addresses = _shared or (stack, {})
    if workers not in addresses:
        options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        quiet = logging.ERROR  # its warnings tell of a busy machine
        cluster = stack.enter_context(distributed.LocalCluster(**options, processes=True, silence_logs=quiet))
        addresses[workers] = cluster.scheduler_address
    return addresses[workers]


def _handed_out(jobs: list[Job], work: Work, client, finished) -> Iterator[tuple[Job, list[dict], dict]]:
    waiting, pending = iter(jobs), {}
    while True:
        free = max(4, 2 * sum(client.nthreads().values())) - len(pending)
        for job in islice(waiting, max(0, free)):
            future = client.submit(attempt, work, job.payload, key=f"shard-{job.key}")
            pending[future.key] = job
            finished.add(future)
        if not pending:
            return
        future = next(finished)
        job = pending.pop(future.key)
        if future.status == "error":  # KilledWorker: `attempt` raises nothing
            yield job, [], {"everything": describe(future.exception())}
        else:
            yield job, *future.result()  # CancelledError if the scheduler has dropped it


def _forget(client, plugin) -> None:
    """Take the plugin from a scheduler that stays; asking one that is gone would take minutes."""
    if client.status == "running":
        with suppress(OSError):
            client.unregister_worker_plugin(plugin.name)


def _plugin(distributed, prepare: Callable):
    class Prepare(distributed.WorkerPlugin):
        """Prepares every worker, those too that join or are restarted later."""

        name = f"cam_utils-{uuid4().hex}"

        def setup(self, worker):
            prepare()

    return Prepare()


def _is_done(folder: Path, job: Job, columns: tuple[str, ...]) -> bool:
    shard = read_shard(folder, job, columns)
    return shard is not None and not shard.failures


def _file(folder: Path, job: Job) -> Path:
    return folder / "shards" / f"{job.key}.csv"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
