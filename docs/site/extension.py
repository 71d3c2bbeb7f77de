"""What the site needs beyond Sphinx and MyST-NB: alt texts, and links between methods, notebooks and functions."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import cam_utils
from cam_utils import METHODS

logger = logging.getLogger(__name__)
MODULES = Path(cam_utils.__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def home(thing) -> str:
    """Where a function or class is documented: its module and name, such as `cam_utils.cams.grad_cam`."""
    return f"{thing.__module__}.{thing.__qualname__}"


def names_used(code: str) -> set[str]:
    """The functions and classes of cam_utils in the code of a notebook: imported, or methods named by a string."""
    tree = ast.parse(code)
    known, used = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cam_utils"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                thing = getattr(module, alias.name, None)  # None: a module that nothing has imported yet
                known[alias.asname or alias.name] = thing or importlib.import_module(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = known.get(node.value.id)
            used.append(getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.append(METHODS.get(node.value))
    return {
        home(thing)
        for thing in [*known.values(), *used]
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith("cam_utils")
    }


def read_notebooks(app: Sphinx):
    """Before anything is read: `app.uses` {notebook: names of cam_utils in it}, and every module must be in api.md."""
    app.uses = {}
    for path in sorted((Path(app.srcdir) / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        app.uses[path.stem] = names_used(code)
    listed = (Path(app.srcdir) / "api.md").read_text(encoding="utf-8").split()
    for path in sorted(MODULES.glob("[!_]*.py")):
        if f"cam_utils.{path.stem}" not in listed:
            logger.warning("cam_utils.%s is missing in docs/api.md", path.stem)


def prepare_notebook(app: Sphinx, docname: str, source: list[str]):
    """Notebooks: alt texts from the outputs, no widgets, a link to download it, and one to each function it uses."""
    stem = docname.removeprefix("notebooks/")
    if stem not in app.uses:
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/markdown": "*Controls, which work in JupyterLab: download the notebook.*"}
    title, *rest = "".join(notebook["cells"][0]["source"]).split("\n")
    notebook["cells"][0]["source"] = "\n".join(
        [title, "", f"{{download}}`Download this notebook <{stem}.ipynb>`", *rest]
    )
    functions = ", ".join(f"{{py:obj}}`{name.removeprefix('cam_utils.')} <{name}>`" for name in sorted(app.uses[stem]))
    if functions:
        links = f"**From `cam_utils`, used in this notebook:** {functions}."
        notebook["cells"].append({"cell_type": "markdown", "id": "uses", "metadata": {}, "source": links})
    source[0] = json.dumps(notebook)


def prepare_translation(app: Sphinx, docname: str, source: list[str]):
    """The README is the first page here."""
    if docname == "README.vi":
        source[0] = source[0].replace("(README.md)", "(index.md)")


def escaped(text: str) -> str:
    """Plain text as reStructuredText."""
    return re.sub(r"([\\*|_])", r"\\\1", text)


def linked(code: str) -> str:
    """A name in backticks as a link to what it names, if there is such a thing, here or elsewhere (`games.LayerGame`)."""
    elsewhere = (MODULES / f"{code.split('.')[0]}.py").exists() and "." in code
    return f":py:obj:`{code} <cam_utils.{code}>`" if elsewhere else f":py:obj:`{code}`"


def rest(docstring: list[str]) -> list[str]:
    """Lines of plain text with code in backticks as reStructuredText; where a hanging indent ends, so does a paragraph."""
    lines = []
    for line, before in zip(docstring, ["", *docstring], strict=False):
        if before.startswith(" ") and line and not line.startswith(" "):
            lines.append("")
        text, *parts = re.split("`([^`]*)`", line.strip())
        line = escaped(text)
        for code, text in zip(parts[::2], parts[1::2], strict=True):
            line += linked(code) + "\\ " * text[:1].isalnum() + escaped(text)
        lines.append(line)
    return lines


def prepare_docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]):
    """API: docstrings are plain text with code in backticks, and end with the notebooks that use the function or class."""
    lines[:] = rest(lines)
    if what in ("function", "class") and (stems := [stem for stem, names in app.uses.items() if name in names]):
        lines += [
            "",
            "Used in notebook " + ", ".join(f":doc:`{stem[:2]} </notebooks/{stem}>`" for stem in stems) + ".",
            "",
        ]


def skip_foreign(app: Sphinx, what: str, name: str, obj, skip: bool, options) -> bool | None:
    """API: nothing that a class has from elsewhere, such as matplotlib or the fields of a named tuple."""
    module = getattr(obj, "__module__", "cam_utils") or ""
    return True if not module.startswith("cam_utils") or type(obj).__module__ == "collections" else None


class MethodsTable(SphinxDirective):
    """METHODS as a table: what its documentation says of each and its cost, where it is derived, the notebooks that use it."""

    def run(self) -> list[nodes.Node]:
        """The table, written in Markdown and parsed."""
        rows = ["| method | what it is | cost | derived in | used in |", "|---|---|---|---|---|"]
        for name, function in METHODS.items():
            doc = inspect.getdoc(function)
            what = doc.splitlines()[0].split(" Cost:")[0]
            cost = re.search(r"Cost: (.*?)\.(?=\s|$)", doc, re.S)[1].replace("\n", " ")
            uses = {stem[:2]: stem for stem, names in self.env.app.uses.items() if home(function) in names}
            derived = next((number for number, stem in uses.items() if stem[3:] == name), "04")  # 04 has all the others
            links = {number: f"[{number}](notebooks/{stem}.ipynb)" for number, stem in uses.items()}
            row = [f"{{py:func}}`{name} <{home(function)}>`", what, cost, links.pop(derived), ", ".join(links.values())]
            rows.append(f"| {' | '.join(row)} |")
        return self.parse_text_to_nodes("\n".join(rows))


def setup(app: Sphinx):
    """Sphinx calls this."""
    app.add_directive("methods-table", MethodsTable)
    app.connect("builder-inited", read_notebooks)
    app.connect("source-read", prepare_notebook)
    app.connect("source-read", prepare_translation)
    app.connect("autodoc-process-docstring", prepare_docstring)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
