"""A JupyterLab of its own on a copy of the notebooks, and a browser, in each of two processes: `make e2e`."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from xdist.scheduler import LoadScopeScheduling

from cam_utils import paths
from cam_utils.notebooks import KERNEL_ENVIRONMENT
from lab_page import HERE, close

NO_NEWS = '{"fetchNews": "false", "checkForUpdates": false}'


def pytest_xdist_make_scheduler(config, log):
    """A file's tests in one process, since they share an application, but the odd notebooks apart from the even ones."""

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            number = re.search(r"\[(\d\d)_", nodeid)  # xdist_group would do, but pytest 9.2 has no _nodeid to put it in
            return nodeid.split("::")[0] + (" odd" if number and int(number[1]) % 2 else "")

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def lab(worker_id):
    """The address of a copied notebook, `{}` its name, in a running JupyterLab; the committed ones are out of its reach."""
    root, log_file = HERE / f"lab-{worker_id}", HERE / f"jupyter-{worker_id}.log"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(paths.NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(paths.ROOT / "figures", root / "figures")
    settings = root / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(NO_NEWS)
    own = {f"JUPYTER_{what}_DIR": str(root / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces")}
    own |= {"CAM_UTILS_FIGURES": str(HERE / "made"), "IPYTHONDIR": str(root / "ipython")}
    own |= {"LC_ALL": "C", "TZ": "Asia/Ho_Chi_Minh", "OMP_NUM_THREADS": "1"}  # the figures must not depend on them
    own |= {"GOMP_SPINCOUNT": "0"}  # another notebook runs beside
    token, port = secrets.token_hex(16), _free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={root}", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", "--ip=127.0.0.1"]
    with open(log_file, "w") as log:
        server = subprocess.Popen(command, cwd=root, env=os.environ | KERNEL_ENVIRONMENT | own, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, log_file)
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks/{{}}?token={token}&reset"
        finally:
            server.terminate()  # and with it its kernels
            server.wait(60)


@pytest.fixture(scope="session")
def browser():
    """The Chromium of the system: nothing is downloaded."""
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.exit("no Chromium: install it, or name it by CHROMIUM=/path/to/chromium", returncode=1)
    quiet = ["--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A window of 1280×900 pixels."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    close(page)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, log_file: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, f"JupyterLab did not start, see {log_file}"
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"JupyterLab does not answer, see {log_file}")
