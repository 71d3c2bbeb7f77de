"""Run the notebooks headlessly and publish their figures and tables, all or nothing: `make figures`.

The figures go into a staging folder; only when all notebooks have succeeded and every figure is accounted for
do they move to figures/, the manifest last, and tables to data/results/.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from . import paths
from .files import alone, make_ready, replacing_all, write_file
from .notebooks import Notebook, ReproductionError, check_parameters, find_notebooks, run, write_outputs

RECORDED = (
    "torch",
    "torchvision",
    "timm",
    "captum",
    "matplotlib",
    "numpy",
)  # whose versions the manifest tells
MARKS = {".pdf": b"%PDF", ".png": b"\x89PNG"}  # a figure is saved as both; the bytes that they start with
_say = partial(print, flush=True)


def reproduce(
    root=paths.ROOT, *, only=(), parameters=None, timeout=600, prune=False, write_back=False, at_once=1, say=_say
) -> Path:
    """Run the notebooks of root/notebooks and publish their figures; returns the folder that has them.

    only: some notebooks; the figures of the others stay. parameters: {name: value} for every notebook that
    runs; values other than a notebook's own make a variant in build/variants/ and leave figures/ alone. timeout:
    seconds for a cell. prune: delete figures that no notebook makes any more instead of failing. write_back: put
    the fresh outputs into notebooks/. at_once: how many notebooks run at the same time, more than one without progress
    bars. say: takes the lines of the report.
    Raises ValueError before anything runs, ReproductionError for what goes wrong later.
    """
    root, parameters = Path(root).resolve(), parameters or {}
    notebooks = find_notebooks(root / "notebooks", only)
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    changed = {k: v for k, v in parameters.items() if any(v != notebook.defaults[k] for notebook in notebooks)}
    at_once = min(at_once, len(notebooks))
    if write_back and at_once > 1:
        raise ValueError("outputs are written back of one notebook at a time, so that the times in them are true")
    if changed and write_back:
        raise ValueError("outputs are written back with the notebooks' own parameters only")
    build, figures, results = root / "build", root / "figures", root / "data" / "results"
    executed = build / "notebooks"
    if changed:
        figures = build / "variants" / _variant(notebooks if only else (), changed)
        results, executed = figures / "tables", figures / "notebooks"
    with alone(build, ReproductionError):
        if changed:
            shutil.rmtree(figures, ignore_errors=True)
        make_ready(figures, results, executed, *([root / "notebooks"] if write_back else []))
        for leftover in build.glob("staging*"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        staged_in = Path(
            tempfile.mkdtemp(prefix="staging-", dir=build)
        )  # where no orphaned kernel of such a run writes
        old, versions = read_manifest(figures), _versions()
        running = {notebook.path.name for notebook in notebooks}
        kept = {s: entry for s, entry in old["figures"].items() if only and entry["notebook"] not in running}
        differ = [name for name in versions if kept and versions[name] != old["versions"].get(name)]
        if differ:
            raise ReproductionError(f"figures/ was made with another {', '.join(differ)}: run all notebooks")
        made, staged, jobs = {}, {}, {}
        for position, notebook in enumerate(notebooks, 1):
            places = {"target": executed / notebook.path.name, "figures": staged_in / notebook.name}
            label = f"[{position}/{len(notebooks)}] {notebook.name}"
            options = {"changed": changed, "timeout": timeout, "label": label, "at_once": at_once}
            jobs[label] = partial(_timed, notebook, **places, **options)
        for label, (notebook, seconds) in _run_all(jobs, at_once, say):
            values = notebook.defaults | changed
            entry = {"notebook": notebook.path.name, "parameters": values, "seed": values.get("seed")}
            files = _staged(notebook, staged_in / notebook.name)
            for slug, pair in files.items():
                made[slug] = entry | {"files": {file.name: _sha256(file) for file in pair}}
                staged |= {file.name: file for file in pair}
            say(f"{label}: {seconds:.1f} s, figures: {len(files)}")
        tables = {file.name: file for notebook in notebooks for file in _tables(notebook, staged_in)}
        numbers = {notebook.number for notebook in notebooks}
        noted = {t: digest for t, digest in old["tables"].items() if only and t.partition("_")[0] not in numbers}
        stale = _stale(figures, results, old["figures"], made, kept, noted, prune)
        noted |= {name: _sha256(file) for name, file in tables.items()}
        manifest = {"versions": versions, "figures": dict(sorted((kept | made).items()))}
        manifest |= {"tables": dict(sorted(noted.items()))}
        record = staged_in / "manifest.json"
        write_file(record, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        _publish(figures, staged | {record.name: record}, stale, results, tables)
        for notebook in notebooks if write_back else ():
            write_outputs(executed / notebook.path.name, notebook.path)
    _report(figures.relative_to(root), old["figures"], made, stale, say)
    return figures


def _run_all(jobs: dict[str, Callable], at_once: int, say) -> Iterator[tuple[str, tuple[Notebook, float]]]:
    """Call the jobs {label: job}, `at_once` at the same time, and yield (label, what it returned) as they end.

    At the first that fails, and at an interrupt, those that run beside it are ended.
    """
    if at_once == 1:
        for label, job in jobs.items():
            say(f"{label} ...")
            yield label, job()
        return
    waiting, running = iter(jobs.items()), {}
    processes = ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _depend_on, (os.getpid(),))
    try:
        while True:
            for label, job in islice(waiting, at_once - len(running)):
                say(f"{label} ...")
                running[processes.submit(job)] = label
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running[future], future.result()
                del running[future]
    except BrokenProcessPool:
        names = " or ".join(running.values())
        raise ReproductionError(f"the process of {names} ended unexpectedly. figures/ is unchanged.") from None
    finally:
        for process in multiprocessing.active_children() if running else ():
            process.terminate()  # its kernel ends with it
        processes.shutdown()


def _depend_on(parent: int) -> None:
    """In a process that runs notebooks: leave Ctrl-C to the one that started it, and end with that one, kernels too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _timed(notebook: Notebook, **options) -> tuple[Notebook, float]:
    start = time.monotonic()
    run(notebook, **options)
    return notebook, time.monotonic() - start


def _variant(notebooks, changed: dict) -> str:
    """A folder name such as 04-photo=dog."""
    label = "-".join([*(n.number for n in notebooks), *(f"{name}={value}" for name, value in changed.items())])
    return re.sub(r"[^\w=.,+-]+", "_", label)[:100]


def _versions() -> dict:
    return {"python": "{}.{}".format(*sys.version_info)} | {name: version(name) for name in RECORDED}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _staged(notebook: Notebook, staging: Path) -> dict[str, list[Path]]:
    """The figures that a notebook has saved, {slug: [pdf, png]}, each checked for name and kind."""
    figures = {}
    for file in sorted(staging.iterdir()):
        saved = f"{notebook.path.name} saved {file.name}"
        if file.suffix not in MARKS or not re.fullmatch(notebook.number + r"_[\w-]+", file.stem):
            raise ReproductionError(f"{saved}, but its figures are {notebook.number}_slug.png and .pdf")
        if not file.read_bytes().startswith(MARKS[file.suffix]):
            raise ReproductionError(f"{saved}, which is no {file.suffix[1:].upper()}")
        figures.setdefault(file.stem, []).append(file)
    for slug, files in figures.items():
        if len(files) < len(MARKS):
            raise ReproductionError(f"{notebook.path.name} saved {files[0].name} alone: {slug} needs PNG and PDF")
    return figures


def _tables(notebook: Notebook, staging: Path) -> list[Path]:
    """The tables that a notebook has written, each checked for its name."""
    files = sorted((staging / f"{notebook.name}.tables").glob("*"))
    for file in files:
        if not re.fullmatch(notebook.number + r"_[\w-]+\.(csv|tex)", file.name):
            raise ReproductionError(
                f"{notebook.path.name} wrote {file.name}, but its tables are {notebook.number}_slug.csv"
            )
    return files


def _stale(figures: Path, results: Path, old: dict, made: dict, kept: dict, noted: dict, prune: bool) -> list[str]:
    """The files in `figures` that no notebook makes (any more); an error unless they are to be pruned.

    An error as well where figures or tables that are kept are not as the manifest noted them.
    """
    present = {file.name for file in figures.glob("[!.]*") if file.is_file()} - {"manifest.json"}
    claimed = [(figures / name, digest) for entry in kept.values() for name, digest in entry["files"].items()]
    claimed += [(results / name, digest) for name, digest in noted.items()]
    lost = sorted(file.name for file, digest in claimed if not file.is_file() or _sha256(file) != digest)
    if lost:  # or replaced by a run that was killed before it came to the manifest
        raise ReproductionError(f"not as figures/manifest.json says: {', '.join(lost)}. Run all notebooks.")
    gone = sorted(set(old) - set(made) - set(kept))
    known = {name for entry in [*made.values(), *kept.values()] for name in entry["files"]}
    stale = sorted(present - known)
    if prune or not (stale or gone):
        return stale
    lines = [f"  {slug}: {old[slug]['notebook']} has not made it this time" for slug in gone]
    lines += [f"  {name}: no notebook makes it" for name in stale if name.rsplit(".", 1)[0] not in gone]
    raise ReproductionError(
        "\n".join(["figures/ does not add up and is unchanged:", *lines, "To delete them: --prune"])
    )


def read_manifest(figures: Path) -> dict:
    """What figures/manifest.json says; nothing where there is none. Raises ReproductionError for a damaged one."""
    file = figures / "manifest.json"
    if not file.exists():
        return {"versions": {}, "figures": {}, "tables": {}}
    try:
        manifest = {"tables": {}} | json.loads(file.read_text(encoding="utf-8"))
        whole = all(isinstance(manifest[part], dict) for part in ("versions", "tables")) and all(
            isinstance(entry["notebook"], str) and isinstance(entry["files"], dict)
            for entry in manifest["figures"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ReproductionError(
            f"{file} is damaged or in the form of another version: restore it (git checkout), or delete it and run all notebooks"
        )
    return manifest


def _publish(
    folder: Path,
    staged: dict[str, Path],
    stale: list[str] = (),
    results: Path | None = None,
    tables: dict | None = None,
) -> None:
    """Put the files {name: where it is} into `folder`, in their order, then delete those that are stale.

    tables: likewise into `results`, once there is room for all, and before the first of the others has its place.
    """
    with replacing_all([folder / name for name in staged]) as temporaries:
        for file, temporary in zip(staged.values(), temporaries, strict=True):
            shutil.copyfile(file, temporary)
        if tables:
            _publish(results, tables)
    for name in stale:
        (folder / name).unlink()


def _report(folder: Path, old: dict, made: dict, stale: list[str], say) -> None:
    def files(entries, slug):
        return entries.get(slug, {}).get("files")

    new = [slug for slug in sorted(made) if slug not in old]
    changed = [slug for slug in sorted(made) if slug in old and files(old, slug) != files(made, slug)]
    same = len(made) - len(new) - len(changed)
    say(f"{folder}/: figures identical to the manifest: {same}, changed: {len(changed)}, new: {len(new)}")
    for word, names in {"changed": changed, "new": new if old else (), "deleted": stale}.items():
        if names:
            say(f"  {word}: {', '.join(names)}")
