"""The files around the code agree with each other."""

import re
import shutil
import subprocess
import tomllib

import pandas as pd
import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cam_utils import paths
from nbval_numbers import Output


def text(name):
    return (paths.ROOT / name).read_text(encoding="utf-8")


def lock_lines():
    """(pin, hashes) of each package."""
    lines = text("requirements.lock").replace("\\\n", "").splitlines()
    return [line.partition(" --hash=")[::2] for line in lines if not line.lstrip().startswith("#")]


@pytest.fixture(scope="module")
def lock():
    """{name: Requirement}, one for each line."""
    requirements = [Requirement(pin) for pin, _ in lock_lines()]
    found = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(found) == len(requirements), "a package is pinned twice"
    return found


@pytest.fixture(scope="module")
def direct():
    """{name: Requirement} of pyproject.toml, extras included."""
    project = tomllib.loads(text("pyproject.toml"))["project"]
    texts = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{requirement} is not a pin"
    return specifier.version


def test_every_direct_dependency_is_locked_within_its_bounds(direct, lock):
    for name, requirement in direct.items():
        assert name in lock, f"{name} is in pyproject.toml, not in requirements.lock: run the command at its top"
        assert lock[name].marker is None, f"{name} is not locked for every system"
        assert requirement.specifier.contains(pinned(lock[name]), prereleases=True), f"{lock[name]}, not {requirement}"


def test_torch_is_the_version_that_the_results_are_for(lock):
    assert pinned(lock["torch"]) == "2.14.1" and pinned(lock["torchvision"]) == "0.29.1"


def test_lock_is_all_pins_and_names_no_place(lock):
    for requirement in lock.values():
        pinned(requirement)
        assert requirement.url is None and not requirement.extras
    whole = text("requirements.lock")
    assert "://" not in whole and not re.search(r"(?m)^\s*-|[ =]/\w", re.sub(r"-o \S+|--\S+", "", whole))


def test_every_package_in_the_lock_has_its_hashes_and_make_setup_asks_for_them():
    for pin, hashes in lock_lines():
        assert re.fullmatch(r"sha256:[0-9a-f]{64}(\s+--hash=sha256:[0-9a-f]{64})*\s*", hashes), f"{pin}: {hashes[:80]}"
    setup = text("Makefile").partition("\n.venv/installed:")[2]  # in two halves, and what one needs is in the lock
    assert setup.count("$(PIP) --no-deps --require-hashes -r .venv/lock-") == 2 and "-m pip check" in setup


def test_lock_serves_linux_and_macos(lock):
    for name, requirement in lock.items():
        if name.startswith(("nvidia-", "cuda-")) or name == "triton":
            assert requirement.marker and not requirement.marker.evaluate({"sys_platform": "darwin"})
    assert lock["appnope"].marker == Marker("sys_platform == 'darwin'")


def test_nothing_needs_a_screen(lock):
    assert "opencv-python" not in lock, "it needs libGL, which bare systems lack: opencv-python-headless"


def test_conda_environment_is_the_lock():
    environment = yaml.safe_load(text("environment.yml"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["--require-hashes", "-r requirements.lock"]}]
    assert "pip install --no-deps --no-build-isolation -e .`" in text("environment.yml").splitlines()[0]


def test_every_dependency_says_why():
    listed = text("pyproject.toml").split("dependencies = [", 1)[1].split("[project.scripts]")[0].splitlines()
    assert [line for line in listed if line.startswith('  "') and "#" not in line] == []


def test_layout():
    for name in (
        "cam_utils data/photos figures notebooks tests README.md LICENSE CITATION.cff Makefile environment.yml "
        "requirements.lock pyproject.toml .gitignore .pre-commit-config.yaml .ci/run"
    ).split():
        assert (paths.ROOT / name).exists(), f"{name} is missing"
    assert "MIT License" in text("LICENSE") and "Nguyễn Khải Phú, Thái Cẩm Phong" in text("LICENSE")
    assert (paths.ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run is not executable"
    commands = " ".join(re.findall("^make (.*)", text(".ci/run"), re.MULTILINE))
    targets = [word for word in re.sub('".*?"', "", commands).split() if word.isalnum()]
    assert targets == "setup browser test e2e figures mutants supply determinism".split()
    assert "nbstripout" not in text(".pre-commit-config.yaml"), "outputs of notebooks are committed"


def test_citation_has_the_authors_and_the_eleven_references_of_the_thesis():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert [f"{a['family-names']} {a['given-names']}" for a in citation["authors"]] == [
        "Nguyễn Khải Phú",
        "Thái Cẩm Phong",
    ]
    assert citation["license"] == "MIT" and citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == tomllib.loads(text("pyproject.toml"))["project"]["version"]
    first = [reference["authors"][0] for reference in citation["references"]]
    assert [author.get("family-names") or author["name"] for author in first] == (
        "LeCun Krizhevsky Simonyan Szegedy He MathWorks Ribeiro Zhou Selvaraju Zheng Shapley".split()
    )
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert {"doi", "url"} & set(reference), f"{reference['title']} cannot be looked up"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_alone_shows_its_targets():
    shown = subprocess.run(["make"], cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    assert listed == [
        "help",
        "setup",
        "figures",
        "test",
        "site",
        "browser",
        "e2e",
        "determinism",
        "mutants",
        "notebooks",
        "supply",
        "clean",
    ]


def test_sanitizer_takes_durations_but_not_shapes():
    rules = re.findall(
        "^regex: (.*)$\n^replace: (.*)$", text("tests/nbval_sanitize.cfg"), flags=re.MULTILINE
    )  # as nbval

    def clean(line):
        for pattern, replacement in rules:
            line = re.sub(pattern, replacement, line)
        return line

    assert clean("LIME 12.3 s") == clean("LIME    9 ms") == clean("LIME 1,204 ms")
    assert clean("it is 3.4x faster") == clean("it is 12× faster")
    assert clean("<Axes at 0x7f0012ab34>") == clean("<Axes at 0x55d0aabbcc>")
    assert clean("2026-11-24 10:20:10") == clean("2027-01-01T00:00:00Z")
    assert clean("Python 3.11.7") == clean("Python 3.12.1")
    for kept in (
        "bn2 7x7x1280",
        "7×7×1280",
        "224 x 224",
        "60 of 76",
        "3 samples",
        "1.8 ×10⁹",
        "torch 2.14.1",
        "5 maps",
    ):
        assert clean(kept) == kept


def test_the_readmes_python_runs_as_it_stands(monkeypatch):
    monkeypatch.chdir(paths.ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.S)
    names = {}
    exec(block, names)
    assert names["maps"].shape == (1, 7, 7) and names["estimates"][0].standard_error.isfinite().all()


def test_the_decision_table_in_the_readme_agrees_with_the_tables_of_results():
    results = paths.ROOT / "data/results"
    errors, maps = (pd.read_csv(results / name) for name in ("shapley.csv", "maps.csv"))
    errors = errors[(errors.network == "tf_efficientnet_lite0") & (errors.estimator == "Owen-CAM")]
    maps = maps[maps.network == "tf_efficientnet_lite0"].groupby(["layer", "method"]).correlation.median()
    table = text("README.md").partition("## Which method when")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line.startswith("| ")
    ]
    rows = {(what, take): rest for what, take, *rest in rows[1:]}
    checked = 0
    for (what, take), (price, error, correlation) in rows.items():
        layer = "blocks.4" if "blocks.4" in what else "blocks.5"
        if take.startswith("`owen_cam`") and "bn2" not in what:
            budget = int(re.search(r"budget=(\d+)|$", take)[1] or 32)  # its default is what 32 buys
            found = errors[(errors.layer == layer) & (errors.budget == budget)][
                ["cost", "error", "correlation"]
            ].median()
            assert abs(found.cost - float(price)) <= 1
            assert (error, correlation) == (f"{found.error:.2f}", f"{found.correlation:.2f}")
            checked += 1
        for name, peer in {"grad_cam": "GradCAM", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM"}.items():
            if f"`{name}`" in take:
                found = maps[layer, "grad-cam's " + peer]
                assert f"{found:.2f}" in correlation
                checked += 1
    assert checked == 7
    assert rows["Shap-CAM as published, to compare with", "`shap_cam`"][0] == f"{2 * 200 * 49 + 2:,}"


def test_the_vietnamese_readme_says_the_same():
    """The same commands and links, and the same numbers in the tables."""
    both = [text(name) for name in ("README.md", "README.vi.md")]

    def commands(page):
        return [
            line.split("#")[0].strip()
            for block in re.findall(r"```\w+\n(.*?)```", page, re.S)
            for line in block.splitlines()
        ]

    def numbers(page):
        rows = [line for line in page.splitlines() if line.startswith("| ") and ("`" in line)]
        return [
            re.findall(r"(?<![\w.])\d[\d.,]*(?![\w.])", row.rpartition("`")[2])
            for row in rows
            if "cam_utils/" not in row
        ]

    english, vietnamese = map(commands, both)
    assert len(vietnamese) > 15 and set(vietnamese) <= set(english)
    assert numbers(both[0])[:17] == numbers(both[1])[:17]
    links = [set(re.findall(r"\]\(([^)]*)\)", page)) for page in both]
    assert links[0] - links[1] <= {"README.vi.md", "https://jobqueue.dask.org"}
    assert links[1] - links[0] <= {"README.md"}


def test_every_test_that_a_promise_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.(?:py|yml))(?:::(\w+))?`", text("docs/reliability.md"))
    assert len(named) > 25
    counted = re.findall(r"Tried with (\d+) kinds. \| `([\w/.]+)`", text("docs/reliability.md"))
    assert len(counted) == 2 and all(f"= {number}" in text(file) for number, file in counted)
    for file, test in named:
        assert (paths.ROOT / file).is_file(), file
        assert not test or re.search(rf"(?m)^\s*def {test}\(", text(file)), f"{file} has no {test}"


def test_outputs_agree_in_their_words_and_but_for_the_last_digits_in_their_numbers():
    one = Output("Owen-CAM   0.128 [-0.137, +0.30]  of 16\nGrad-CAM  12.31")
    for same in (one, "Owen-CAM 0.129 [-0.136, +0.31] of 16\nGrad-CAM 12.40"):
        assert one == Output(same) and not one != Output(same)
    for other in (
        "Owen-CAM 0.130 [-0.137, +0.30] of 16\nGrad-CAM 12.31",  # two units, and more than a hundredth
        "Owen-CAM 0.128 [+0.137, +0.30] of 16\nGrad-CAM 12.31",
        "Owen-CAM 0.128 [-0.137, +0.30] of 17\nGrad-CAM 12.31",
        "Shap-CAM 0.128 [-0.137, +0.30] of 16\nGrad-CAM 12.31",
        "Owen-CAM 0.128 [-0.137, +0.30] of 16\nGrad-CAM 12",
        "Owen-CAM 0.128 [-0.137, +0.30] of 16",
        "Owen-CAM 0.128 [-0.137, +0.30] of 16 Grad-CAM 12.31",  # one line of two
    ):
        assert one != Output(other) and not one == Output(other)
    assert Output("1.5e-05") != Output("1.5e-06") and Output("0.00") != Output("0.02")
