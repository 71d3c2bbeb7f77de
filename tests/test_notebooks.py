"""The committed notebooks are in the form that readers, `make figures` and nbval rely on."""

import json
import re

import nbformat
import pytest

from cam_utils import paths
from cam_utils.language import alternative_texts
from cam_utils.notebooks import find_notebooks

FILES = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
PLACES = re.compile(r"/(?:tmp|root|home|work|Users|private)/|site-packages|\b0x[0-9a-f]{8,}")

pytestmark = pytest.mark.skipif(not FILES, reason="no notebooks yet")


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def notebook(request):
    return read(request.param)


def test_all_are_numbered_and_have_literal_parameters_with_a_seed():
    notebooks = find_notebooks(paths.NOTEBOOKS)
    assert [n.path for n in notebooks] == FILES
    assert len({n.number for n in notebooks}) == len(notebooks)
    for n in notebooks:
        assert isinstance(n.defaults.get("seed"), int), f"{n.name}: the parameters cell has no `seed`"


def test_is_valid_and_holds_no_trace_of_a_tool(notebook):
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, "make notebooks tidies the metadata"
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert "injected-parameters" not in cell.metadata.get("tags", ())


def test_was_run_from_the_top_without_errors_or_warnings(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


def test_opens_with_a_title_and_an_abstract_in_both_languages(notebook):
    assert notebook.cells[0].source.startswith("# ")
    opening = "\n".join(cell.source for cell in notebook.cells[:4])
    assert "Abstract" in opening and "Tóm tắt" in opening


def test_code_cells_are_short_and_do_something(notebook):
    for cell in code(notebook):
        assert cell.source.strip(), "an empty cell"
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert "NBVAL_IGNORE_OUTPUT" not in cell.source and "NBVAL_SKIP" not in cell.source


def test_outputs_do_not_depend_on_the_machine(notebook):
    for cell in code(notebook):
        for output in cell.outputs:
            shown = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not PLACES.search(shown), shown


def test_ignored_outputs_come_with_an_assert(notebook):
    """What nbval does not compare is held by an assert in the same cell."""
    ignored = [cell for cell in code(notebook) if "nbval-ignore-output" in cell.metadata.get("tags", ())]
    assert all("assert" in cell.source for cell in ignored)
    assert len(ignored) <= len(code(notebook)) / 4, "too much of the notebook goes unchecked"


def test_every_saved_figure_is_shown(notebook):
    saved = sum(cell.source.count("save_figure(") for cell in code(notebook))
    shown = sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)
    assert shown >= saved > 0, f"{saved} figures are saved, {shown} shown"
    texts = set(alternative_texts().values())
    for output in (
        output for cell in code(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ):
        assert output.metadata.get("image/png", {}).get("alt") in texts


def test_every_figure_has_an_alternative_text_of_one_or_two_sentences():
    figures = json.loads((paths.ROOT / "figures" / "manifest.json").read_text(encoding="utf-8"))["figures"]
    texts = alternative_texts()
    assert set(texts) == set(figures), "notebooks/figures.yml and figures/ differ in these"
    assert len(set(texts.values())) == len(texts)
    for name, text in texts.items():
        assert 60 < len(text) < 400 and text[0].isupper() and text.endswith("."), name


def test_figures_are_labelled_in_the_language_of_the_parameters(notebook):
    parameters, source = (
        "\n".join(cell.source for cell in code(notebook) if ("parameters" in cell.metadata.get("tags", ())) == wanted)
        for wanted in (True, False)
    )
    assert 'lang = "en"' in parameters and "use_style(lang)" in source
