"""The built site in Chromium, on a phone and on a desk. `make site` builds it."""

import functools
import http.server
import re
import threading
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from cam_utils import METHODS, paths

SITE = paths.ROOT / "build/site"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
WINDOWS = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def origin():
    """The address of a server of build/site."""
    assert (SITE / "index.html").exists(), "build/site is missing or half built: make site"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Silence."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def tab(browser):
    """An empty tab that remembers its requests, and which of them have failed."""
    context = browser.new_context(viewport=WINDOWS["phone"])
    tab = context.new_page()
    tab.requested, tab.failed = [], []
    tab.on("request", lambda r: tab.requested.append(r.url))
    tab.on("requestfailed", lambda r: tab.failed.append(r.url))
    tab.on("response", lambda r: tab.failed.append(r.url) if r.status >= 400 else None)
    tab.on("pageerror", lambda error: tab.failed.append(str(error)))
    yield tab
    context.close()


def open_page(tab, address):
    """Load a page, all its images and formulas."""
    tab.goto(address, wait_until="load")
    tab.evaluate("document.querySelectorAll('img').forEach(img => img.loading = 'eager')")
    tab.wait_for_function("[...document.images].every(img => img.complete)")
    tab.evaluate("window.MathJax?.startup?.promise")


def test_the_site_has_a_page_for_every_notebook_and_every_module():
    notebooks = {f"notebooks/{path.stem}.html" for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    modules = {f"api/cam_utils.{path.stem}.html" for path in (paths.ROOT / "cam_utils").glob("[!_]*.py")}
    assert notebooks | modules | {"index.html", "methods.html", "api.html", "search.html"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_page(tab, origin, page):
    open_page(tab, origin + page)
    for window in WINDOWS.values():
        tab.set_viewport_size(window)
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "the page scrolls sideways"
    assert tab.failed == []
    assert [url for url in tab.requested if not url.startswith((origin, "data:", "blob:"))] == []
    images = tab.evaluate("[...document.images].map(img => [img.src, img.alt.trim(), img.naturalWidth])")
    no_alt = [
        src for src, alt, _ in images if not alt or alt.endswith(".png")
    ]  # without one, docutils puts the file's name
    assert no_alt == [], "without alt text"
    assert [src for src, _, width in images if not width] == [], "missing"
    formulas = tab.evaluate("document.querySelectorAll('.math').length")
    assert tab.evaluate("document.querySelectorAll('.math mjx-container svg').length") >= formulas
    assert tab.evaluate("document.querySelectorAll('mjx-merror, [data-mml-node=merror]').length") == 0
    prose = tab.evaluate(
        """() => {
            const copy = document.querySelector('article').cloneNode(true);
            copy.querySelectorAll('pre, code, .math, .output').forEach(node => node.remove());
            return copy.textContent;
        }"""
    )
    assert not re.search(r"\$(?!CAM_UTILS)|\\\(", prose), "a formula is not rendered"


def test_links_and_anchors(browser, origin):
    """Every link within the site leads to a page that is there, and to an anchor in it."""
    tab = browser.new_page(java_script_enabled=False)
    anchors, links = {}, []
    for page in PAGES:
        tab.goto(origin + page)
        anchors[page] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)"))
        hrefs = tab.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
        links += [(page, urljoin(origin + page, href)) for href in hrefs]
    tab.close()
    broken = []
    for page, link in links:
        address, anchor = urldefrag(link)
        if not address.startswith(origin):
            if urlsplit(address).scheme not in ("http", "https", "mailto"):
                broken.append((page, link))
            continue
        target = unquote(urlsplit(address).path).lstrip("/") or "index.html"
        if not (SITE / target).is_file() or anchor and unquote(anchor) not in anchors.get(target, ()):
            broken.append((page, link))
    assert broken == []


def test_methods_notebooks_and_functions_are_linked(browser, origin):
    tab = browser.new_page()
    tab.goto(origin + "methods.html")
    rows = tab.locator("article table tbody tr")
    assert rows.locator("td:first-child").all_inner_texts() == list(METHODS)
    rows.filter(has_text="owen_cam").locator("td:first-child a").click()
    tab.wait_for_url("**/*#cam_utils.shap_cam.owen_cam")
    tab.locator("dl:has([id='cam_utils.shap_cam.owen_cam']) > dd a", has_text="06").click()
    tab.wait_for_url("**/notebooks/06_owen_cam.html")
    assert tab.locator("a[href$='#cam_utils.shap_cam.owen_cam']").count()
    tab.close()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_shapley(tab, origin, scheme, window):
    tab.set_viewport_size(WINDOWS[window])
    root = origin if scheme == "http" else f"{SITE.as_uri()}/"
    tab.goto(root + "index.html")
    tab.evaluate("document.querySelector('form.sidebar-search-container').setAttribute('target', '_self')")
    tab.goto(root + "search.html?q=Shapley")
    # results arrive one by one
    tab.locator("ul.search li a[href*='05_shap_cam']").first.wait_for()


def test_navigation_on_the_phone(browser, origin):
    """The sidebar opens by its button and leads to a notebook."""
    tab = browser.new_page(viewport=WINDOWS["phone"])
    tab.goto(origin)
    link = tab.locator(".sidebar-tree a", has_text="06 ·")
    assert not link.is_visible() or link.bounding_box()["x"] < 0
    tab.locator("label[for=__navigation]:visible").first.click()
    tab.wait_for_timeout(500)
    link.click()
    tab.wait_for_url(origin + "notebooks/06_owen_cam.html")
    tab.close()
