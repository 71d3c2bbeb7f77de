"""What a reader does in JupyterLab: open a notebook, restart its kernel and run all cells."""

import time
from pathlib import Path

import nbformat
from playwright.sync_api import Page

from cam_utils import paths

HERE = paths.BUILD / "e2e"  # screenshots, the figures, the servers' logs and all that they may write to
MINUTES = 60_000  # Playwright counts milliseconds
KERNEL_IS_IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
STATES = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === "code").map(cell => ({
    done: Boolean(cell.model.executionCount) && cell.model.executionState !== "running",
    failed: [...Array(cell.model.outputs.length).keys()].some(i => cell.model.outputs.get(i).type === "error"),
}))"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === "code").map(cell => ({
    source: cell.model.sharedModel.getSource(),
    count: cell.model.executionCount,
    outputs: cell.model.outputs.toJSON(),
}))"""


def run_all(page: Page, address: str, minutes: float = 20) -> list[dict]:
    """Open a notebook, run it from the top by JupyterLab's menus; its code cells at the end, or at the first error."""
    page.goto(address, timeout=2 * MINUTES)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=2 * MINUTES)
    page.wait_for_function(KERNEL_IS_IDLE, timeout=2 * MINUTES)
    _menu(page, "Edit", "Clear Outputs of All Cells")  # so that nothing committed is taken for fresh
    _menu(page, "Run", "Restart Kernel and Run All Cells…")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        page.wait_for_timeout(1000)
        states = page.evaluate(STATES)  # without the pictures, which are megabytes
        if any(cell["failed"] for cell in states) or all(cell["done"] for cell in states):
            page.wait_for_function(KERNEL_IS_IDLE, timeout=2 * MINUTES)
            return page.evaluate(CELLS)
    raise TimeoutError(f"still running after {minutes} minutes")


def close(page: Page) -> None:
    """Shut the notebook's kernel down, which may hold gigabytes, and close the page."""
    page.evaluate("async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown(); }")
    page.close()


def _menu(page: Page, menu: str, item: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=item).click()


def check_as_committed(page: Page, cells: list[dict], file: Path) -> None:
    """The cells on the page have run in order, without an error, and show as many pictures as the committed notebook."""
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors, "\n".join(errors[0]["traceback"])
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    committed = nbformat.read(file, as_version=4).cells
    assert [cell["source"] for cell in cells] == [cell.source for cell in committed if cell.cell_type == "code"]
    assert _pictures(cells) == _pictures(committed)
    assert page.locator(".jp-OutputArea-output img").count()
    assert page.evaluate("() => [...document.images].every(image => !image.complete || image.naturalWidth)")


def _pictures(cells: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
