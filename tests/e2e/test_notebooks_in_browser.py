"""Every notebook, run in JupyterLab by a real browser, comes out as it is committed."""

import pytest

from cam_utils import paths
from lab_page import HERE, check_as_committed, run_all

# the explorer's notebook is run by its own tests
FILES = [file for file in sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if file.stem != "08_explorer"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs_from_the_top_with_all_its_pictures(lab, page, file):
    cells = run_all(page, lab.format(file.name))
    page.screenshot(path=HERE / f"{file.stem}.png")
    check_as_committed(page, cells, file)
