"""Every notebook, run in JupyterLab by a real browser, comes out as it is committed."""

import nbformat
import pytest

from cam_utils import paths
from lab_page import HERE, pictures, run_all

FILES = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs_from_the_top_with_all_its_pictures(lab, page, file):
    cells = run_all(page, lab.format(file.name))
    page.screenshot(path=HERE / f"{file.stem}.png")
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors, "\n".join(errors[0]["traceback"])
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    committed = nbformat.read(file, as_version=4).cells
    assert [cell["source"] for cell in cells] == [cell.source for cell in committed if cell.cell_type == "code"]
    assert pictures(cells) == pictures(committed)
    shown = page.locator(".jp-OutputArea-output img")
    assert shown.count() and page.evaluate(
        "() => [...document.images].every(image => !image.complete || image.naturalWidth)"
    )
