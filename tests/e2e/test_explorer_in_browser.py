"""The explorer of notebook 08 by mouse and keyboard in a real browser: what is chosen changes what is seen."""

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from cam_utils import paths
from lab_page import HERE, MINUTES, check_as_committed, close, run_all

MAPS, ERROR, FADE = (
    "Map of",
    "Owen-CAM at budget",
    "Probability along",
)  # how the alternative texts of the pictures begin
SCROLL = """() => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    const cells = notebook.widgets.map(cell => cell.model.sharedModel.getSource());
    notebook.activeCellIndex = cells.findIndex(source => source.startsWith("Explorer("));
    return notebook.scrollToItem(notebook.activeCellIndex, "start");
}"""


class Explorer:
    """The app on the page of the executed notebook."""

    def __init__(self, page: Page):
        self.page = page
        page.evaluate(SCROLL)
        self.root = page.locator(".jp-OutputArea-output:has(.widget-upload)").first
        self.status, self.message = self.root.get_by_role("status"), self.root.get_by_role("alert")
        self.wait()

    def wait(self) -> None:
        """Until it is idle."""
        expect(self.status).to_contain_text("Ready", timeout=2 * MINUTES)

    def pictures(self, what: str) -> list[str]:
        """The pictures' bytes."""
        return self.root.locator(f'img[alt^="{what}"]').evaluate_all("images => images.map(image => image.src)")

    def changes(self, what: str, move: Callable[[], None]) -> tuple[list[str], list[str]]:
        """Make a move and wait for other pictures than before; (before, after)."""
        before, end = self.pictures(what), time.monotonic() + 120
        move()
        while self.pictures(what) == before:
            assert time.monotonic() < end, f"the picture {what!r} stayed as it was. {self.message.all_inner_texts()}"
            self.page.wait_for_timeout(100)
        self.wait()
        return before, self.pictures(what)

    def choose(self, what: str, option: str | None = None, **how) -> None:
        """An option of the list with that name."""
        self.root.get_by_label(what, exact=True).select_option(label=option, **how)

    def slide(self, label: str, key: str) -> None:
        """Move a slider by the keyboard."""
        handle: Locator = self.root.locator(f'.widget-inline-hbox:has(label:text-is("{label}")) .noUi-handle')
        handle.focus()
        handle.press(key)

    def upload(self, *file) -> None:
        """Choose a file in the dialog that the button opens."""
        with self.page.expect_file_chooser() as chooser:
            self.root.get_by_role("button", name="Upload a photo").click()
        chooser.value.set_files(*file)


@pytest.fixture(scope="module")
def app(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    cells = run_all(page, lab.format("08_explorer.ipynb"))
    check_as_committed(page, cells, paths.NOTEBOOKS / "08_explorer.ipynb")
    yield Explorer(page)
    page.screenshot(path=HERE / "explorer_end.png")
    close(page)


def test_starts_with_maps_the_error_and_the_diagonal(app):
    app.page.screenshot(path=HERE / "explorer.png")
    assert len(app.pictures(MAPS)) == 3 and len(app.pictures(ERROR)) == len(app.pictures(FADE)) == 1
    assert not app.message.count()


def test_every_control_has_a_name(app):
    controls = app.root.locator("select, input:not([type=file]), button")
    names = controls.evaluate_all("all => all.map(one => one.labels?.[0]?.textContent || one.textContent || one.title)")
    assert len(names) >= 18 and all(name.strip() for name in names), names


def test_a_ticked_method_adds_its_map(app):
    before, after = app.changes(MAPS, app.root.get_by_label("layer_cam").check)
    assert len(after) == len(before) + 1


def test_another_class_of_the_five_likeliest(app):
    _, maps = app.changes(MAPS, lambda: app.choose("Class", index=1))
    app.changes(MAPS, lambda: app.choose("Class", index=0))
    assert app.pictures(MAPS) != maps


def test_a_class_searched_by_name(app):
    search = app.root.get_by_label("or search")

    def type_it():
        search.fill("golden retriever")
        search.press("Enter")

    app.changes(MAPS, type_it)
    chosen = app.root.get_by_label("Class", exact=True).locator("option:checked")
    expect(chosen).to_contain_text("golden retriever")


def test_a_class_that_does_not_exist_gets_a_message(app):
    search = app.root.get_by_label("or search")
    search.fill("golden retriver")
    search.press("Enter")
    expect(app.message).to_contain_text("Did you mean: golden retriever")


@pytest.mark.parametrize("label, option", [("Layer", "blocks.4"), ("Model", "tf_efficientnet_lite1"), ("Photo", "cat")])
def test_another_layer_network_or_photo(app, label, option):
    fade = app.pictures(FADE)
    app.changes(MAPS, lambda: app.choose(label, option))
    assert app.pictures(FADE) != fade
    assert not app.message.count()


def test_signed_and_opacity_change_how_maps_look(app):
    app.changes(MAPS, app.root.get_by_label("signed").check)
    app.changes(MAPS, lambda: app.slide("Opacity", "ArrowLeft"))
    app.changes(MAPS, app.root.get_by_label("signed").uncheck)


def test_more_budget_states_an_error(app):
    app.choose("Layer", "blocks.5")
    app.wait()
    app.changes(ERROR, lambda: app.slide("Budget", "ArrowRight"))
    app.changes(ERROR, lambda: app.slide("Budget", "ArrowRight"))
    expect(app.root.locator(f'img[alt^="{ERROR} 256"]')).to_have_attribute("alt", re.compile("standard error"))
    app.page.screenshot(path=HERE / "explorer_budget.png")


def test_the_fade_follows_its_slider(app):
    app.changes(FADE, lambda: app.slide("q", "ArrowLeft"))
    app.changes(FADE, lambda: app.slide("q", "Home"))
    app.page.screenshot(path=HERE / "explorer_fade.png")


def test_a_photo_of_ones_own(app):
    app.changes(MAPS, lambda: app.upload(paths.PHOTOS / "toucan.jpg"))
    assert not app.message.count()
    expect(app.root.get_by_label("Photo").locator("option:checked")).to_have_text("uploaded: toucan.jpg")
    app.page.screenshot(path=HERE / "explorer_upload.png")


def test_what_is_no_photo_gets_a_message(app):
    before = app.pictures(MAPS)
    app.upload({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"Not a photo"})
    expect(app.message).to_contain_text("notes.txt is no image")
    app.upload({"name": "huge.jpg", "mimeType": "image/jpeg", "buffer": bytes(9_800_000)})
    expect(app.message).to_contain_text("huge.jpg is too large")
    app.page.screenshot(path=HERE / "explorer_message.png")
    app.wait()
    assert app.pictures(MAPS) == before
