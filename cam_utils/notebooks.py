"""One notebook: its parameters, its execution by papermill, its outputs put back tidily."""

import ast
import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nbformat
import papermill
import tqdm.auto  # noqa: F401  papermill's progress bar, imported before the kernels' TQDM_DISABLE is set
from nbclient.exceptions import CellTimeoutError

from . import paths
from .files import replacing, write_file

KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch's deterministic algorithms on a GPU ask for it
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "TQDM_DISABLE": "1",  # no progress bars in committed outputs
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's python3 kernel, not one from the home folder
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # spares stderr a warning of the debugger
    # glibc gives the memory of large tensors back at once and gets it anew, page by page: twice the time for batches
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
    # torch's threads wait for each other by spinning, which beside other work costs up to a hundred times the work itself
    "GOMP_SPINCOUNT": "5000",
}
_BARS = re.compile(r"[^\r\n]*(?:\d%\||it/s\]|s/it\])[^\r\n]*[\r\n]*")  # progress in stderr
_ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of the cells that papermill adds


class ReproductionError(RuntimeError):
    """A notebook failed, or the figures do not add up; figures/ is as it was."""


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook and what its cell tagged `parameters` assigns."""

    path: Path
    defaults: dict

    @property
    def name(self) -> str:
        """For instance 04_grad_cam."""
        return self.path.stem

    @property
    def number(self) -> str:
        """For instance 04."""
        return self.path.stem[:2]


def find_notebooks(folder: Path, only=()) -> list[Notebook]:
    """The notebooks NN_name.ipynb in order; `only` picks by number ("04", "4") or name, else ValueError."""
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise ValueError(f"no notebook NN_name.ipynb in {folder}")
    chosen = set()
    for wanted in map(str, only):
        same = {name for name in found if wanted.removesuffix(".ipynb") == name or wanted.zfill(2) == name[:2]}
        if not same:
            raise ValueError(f"no notebook {wanted!r}; there are {', '.join(found)}")
        chosen |= same
    return [Notebook(path, _defaults(path)) for name, path in found.items() if name in chosen or not only]


def _defaults(path: Path) -> dict:
    """Literals only: papermill overrides after this cell, so what is derived in it would not follow."""
    try:
        cells = nbformat.read(path, as_version=4).cells
        source = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())), "")
    except OSError:
        raise
    except Exception as error:  # what is no notebook fails in a dozen ways
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path.name} cannot be read as a notebook: restore it, or move it away. {why}") from None
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:  # a null byte
        raise ValueError(f"{path.name}: the parameters cell is no Python: {error}") from None
    values = {}
    for statement in statements:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        try:
            values |= {target.id: ast.literal_eval(statement.value) for target in targets}
        except (AttributeError, ValueError, TypeError):
            line = ast.unparse(statement)
            raise ValueError(f"{path.name}: `{line}` in the parameters cell is not `name = literal`") from None
    return values


def check_parameters(notebook: Notebook, given: dict) -> None:
    """ValueError if the notebook lacks a given parameter or its own value is of another kind."""
    for name, value in given.items():
        if name not in notebook.defaults:
            known = ", ".join(notebook.defaults) or "none"
            raise ValueError(f"{notebook.name} has no parameter {name!r}; it has: {known}")
        default = notebook.defaults[name]
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits and default is not None and value is not None:
            kinds = f"a {type(default).__name__} like {default!r}, not a {type(value).__name__} like {value!r}"
            raise ValueError(f"{notebook.name}: {name} is {kinds}")


def run(
    notebook: Notebook, target: Path, *, figures: Path, changed: dict, timeout: float, label: str, at_once: int = 1
) -> None:
    """Execute into `target`, saving figures into `figures`; ReproductionError says which cell failed and why.

    Tables that it writes go into a folder named like `figures`, with the suffix .tables. changed: parameters that differ
    from the notebook's own. timeout: seconds for a cell. label: of the progress bar, which a terminal shows. at_once: how many
    notebooks run at the same time; beside others there is no bar, and threads wait without spinning.
    """
    figures.mkdir(parents=True)
    search = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    environment = KERNEL_ENVIRONMENT | {
        "CAM_UTILS_FIGURES": str(figures),
        "CAM_UTILS_TABLES": f"{figures}.tables",
        "PYTHONPATH": search,
    }
    environment |= {"GOMP_SPINCOUNT": "0"} if at_once > 1 else {}
    bar = {"desc": label, "leave": False} if at_once == 1 and sys.stderr.isatty() else False
    options = {"cwd": notebook.path.parent, "execution_timeout": timeout, "progress_bar": bar}
    options |= {"kernel_name": "python3", "language": "python", "extra_arguments": ["--log-level=CRITICAL"]}
    options |= {"coalesce_streams": True}  # text is one output however many pieces it came in
    failed = None
    with replacing(target) as running, mock.patch.dict(os.environ, environment):
        # papermill takes a path for a format string
        source, output = (str(path).replace("{", "{{").replace("}", "}}") for path in (notebook.path, running))
        try:
            papermill.execute_notebook(source, output, changed, **options)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, CellTimeoutError):  # the file may end anywhere
                raise ReproductionError(f"{notebook.path.name} cannot be executed into {target}: {error}") from error
            failed = error
            if not running.exists():  # before its first cell
                shutil.copyfile(notebook.path, running)
    if failed is not None:
        raise ReproductionError(_failure(notebook, target, failed, timeout)) from failed


def _failure(notebook: Notebook, target: Path, error: Exception, timeout: float) -> str:
    """Which cell (counted as in the notebook itself), how it starts, what went wrong, where to look."""
    cells = nbformat.read(target, as_version=4).cells if target.exists() else []
    cells = [cell for cell in cells if not _ADDED & set(cell.metadata.get("tags", ()))]
    begun = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    where, source = "failed before its first cell", []
    if begun:
        where, source = (
            f"failed in cell {begun[-1] + 1} of {len(cells)}",
            cells[begun[-1]].source.splitlines(),
        )
    if isinstance(error, CellTimeoutError):
        why = f"the cell took longer than {timeout:g} s (--timeout)"
    elif isinstance(error, papermill.PapermillExecutionError):
        why = f"{error.ename}: {error.evalue}"
    else:
        why = f"{type(error).__name__}: {error}"
    code = [f"    {line}" for line in source[:5] + ["..."] * (len(source) > 5)]
    end = [why, f"The notebook as far as it came: {target}", "figures/ is unchanged."]
    return "\n".join([f"{notebook.path.name} {where}:", *code, *end])


def write_outputs(executed: Path, notebook: Path) -> None:
    """Put the outputs of an executed copy into the notebook and tidy it: equal outputs give equal bytes."""
    tidy, ran = (nbformat.read(path, as_version=4) for path in (notebook, executed))
    tidy.nbformat_minor = 5  # cells have ids
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    tidy.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}  # no version of this machine
    for index, (cell, fresh) in enumerate(zip(tidy.cells, ran.cells, strict=True)):
        cell.setdefault("id", hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8])
        for times in ("execution", "papermill"):
            cell.metadata.pop(times, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = _tidy(fresh.outputs), fresh.execution_count
    write_file(notebook, nbformat.writes(nbformat.from_dict(tidy)) + "\n")


def _tidy(outputs: list) -> list:
    """Without progress bars in stderr, and without the links to widgets, random numbers of a kernel that is gone."""
    for output in outputs:
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if output.get("name") == "stderr":
            output.text = _BARS.sub("", output.text)
    return [output for output in outputs if output.get("text") != ""]
