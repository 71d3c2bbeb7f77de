"""`make figures` on tiny notebooks, run by the real papermill."""

import hashlib
import json
import os
import shutil
import sys

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cam_utils.cli import main, parse_parameters
from cam_utils.notebooks import ReproductionError, find_notebooks, write_outputs
from cam_utils.reproduce import reproduce

SAVE = """
import os, pathlib
def save(slug, text=""):
    folder = pathlib.Path(os.environ["CAM_UTILS_FIGURES"])
    (folder / f"{slug}.png").write_bytes(b"\\x89PNG" + text.encode())
    (folder / f"{slug}.pdf").write_bytes(b"%PDF" + text.encode())
"""


def write(root, name, *sources, parameters='photo = "cat"\nseed = 0'):
    """A notebook: title, imports, parameters, then one cell for each source."""
    cells = [new_markdown_cell("# Title"), new_code_cell(SAVE.strip()), new_code_cell(parameters)]
    cells[-1].metadata["tags"] = ["parameters"]
    cells += [new_code_cell(source) for source in sources]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def manifest(root):
    return json.loads((root / "figures" / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    write(root, "01_first", 'save("01_a", photo); save("01_b")', "print(photo)\nprint(os.getcwd()[-9:])")
    write(root, "02_second", 'save("02_c", str(seed))')
    reproduce(root, say=lambda line: None)
    return root


@pytest.fixture
def two(run_once, tmp_path):
    """A root of its own where 01 has made 01_a and 01_b, and 02 has made 02_c."""
    return shutil.copytree(run_once, tmp_path / "root")


def test_a_run_publishes_figures_manifest_and_executed_notebooks(two):
    assert sorted(contents(two / "figures")) == [
        *(f"{slug}.{kind}" for slug in ("01_a", "01_b", "02_c") for kind in ("pdf", "png")),
        "manifest.json",
    ]
    entry = manifest(two)["figures"]["01_a"]
    assert entry["notebook"] == "01_first.ipynb"
    assert entry["parameters"] == {"photo": "cat", "seed": 0} and entry["seed"] == 0
    assert entry["files"]["01_a.png"] == hashlib.sha256(b"\x89PNGcat").hexdigest()
    assert set(manifest(two)["versions"]) == {
        "python",
        "torch",
        "torchvision",
        "timm",
        "captum",
        "matplotlib",
        "numpy",
    }
    executed = nbformat.read(two / "build" / "notebooks" / "01_first.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.split() == ["cat", "notebooks"]  # ran in the notebooks' folder


def test_two_runs_are_byte_identical_and_say_so(two):
    before, lines = contents(two / "figures"), []
    reproduce(two, say=lines.append)
    assert contents(two / "figures") == before
    assert lines[-1] == "figures/: figures identical to the manifest: 3, changed: 0, new: 0"


def test_two_at_once_give_the_figures_of_one_after_the_other(two):
    meet = """
import time
open(f"../{os.getpid()}.here", "w").close()
while len(list(pathlib.Path("..").glob("*.here"))) < 2:  # the other notebook runs, too
    time.sleep(0.05)
"""
    before, lines = contents(two / "figures"), []
    write(two, "01_first", meet, 'save("01_a", photo); save("01_b")')
    write(two, "02_second", meet, 'save("02_c", str(seed)); print(os.environ["GOMP_SPINCOUNT"])')
    reproduce(two, at_once=2, timeout=60, say=lines.append)
    assert contents(two / "figures") == before
    assert lines[:2] == ["[1/2] 01_first ...", "[2/2] 02_second ..."] and len(lines) == 5
    executed = nbformat.read(two / "build" / "notebooks" / "02_second.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "0\n"  # beside another, threads do not spin


def test_of_two_at_once_one_that_fails_is_named_the_other_ended_and_figures_stay(two):
    before, lines = contents(two / "figures"), []
    write(two, "01_first", 'import time\nopen("../pid", "w").write(str(os.getpid()))\ntime.sleep(600)')
    write(two, "02_second", 'import time\nwhile not os.path.exists("../pid"):\n    time.sleep(0.05)', "1 / 0")
    write(two, "03_third", "pass")
    with pytest.raises(ReproductionError, match="02_second.ipynb failed in cell 5 of 5:\n    1 / 0\nZeroDivisionError"):
        reproduce(two, at_once=2, say=lines.append)
    assert lines == ["[1/3] 01_first ...", "[2/3] 02_second ..."] and contents(two / "figures") == before
    kernel = int((two / "pid").read_text())
    assert not psutil.pid_exists(kernel) or not psutil.wait_procs([psutil.Process(kernel)], 20)[1]


def test_outputs_are_written_back_of_one_at_a_time_only(two):
    with pytest.raises(ValueError, match="one notebook at a time"):
        reproduce(two, at_once=2, write_back=True)


def test_a_changed_figure_is_reported_by_name(two):
    lines = []
    write(two, "02_second", 'save("02_c", "other")')
    reproduce(two, only=["02"], say=lines.append)
    assert lines[-2:] == [
        "figures/: figures identical to the manifest: 0, changed: 1, new: 0",
        "  changed: 02_c",
    ]


def test_a_failing_cell_is_named_and_figures_stay(two):
    before = contents(two / "figures")
    write(two, "01_first", 'save("01_a", "half")', "ratio = 1\nratio / 0", "print('never')")
    with pytest.raises(ReproductionError) as error:
        reproduce(two, say=lambda line: None)
    text = str(error.value)
    assert "01_first.ipynb failed in cell 5 of 6:\n    ratio = 1\n    ratio / 0\n" in text
    assert "ZeroDivisionError: division by zero" in text and "build/notebooks/01_first.ipynb" in text
    assert contents(two / "figures") == before
    reached = nbformat.read(two / "build" / "notebooks" / "01_first.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in reached.cells for output in cell.get("outputs", ()))


def test_a_failure_with_a_parameter_counts_cells_as_the_notebook_does(tmp_path):
    write(tmp_path, "01_first", "1 / 0")
    with pytest.raises(ReproductionError, match="cell 4 of 4"):
        reproduce(tmp_path, parameters={"photo": "dog"}, say=lambda line: None)


def test_a_cell_that_takes_too_long_is_named(tmp_path):
    write(tmp_path, "01_first", "import time\ntime.sleep(60)")
    with pytest.raises(ReproductionError, match=r"cell 4 of 4:\n    import time\n.*\nthe cell took longer than 1 s"):
        reproduce(tmp_path, timeout=1, say=lambda line: None)
    assert not (tmp_path / "figures").exists()


def test_a_kernel_that_dies_is_a_failure(tmp_path):
    write(tmp_path, "01_first", "os._exit(3)")
    with pytest.raises(ReproductionError, match=r"cell 4 of 4:\n    os._exit\(3\)\nDeadKernelError"):
        reproduce(tmp_path, say=lambda line: None)


def test_figures_that_do_not_add_up_fail_until_pruned(two):
    (two / "figures" / "01_stray.png").write_bytes(b"\x89PNG")
    write(two, "02_second", 'save("02_d")')
    before = contents(two / "figures")
    with pytest.raises(ReproductionError) as error:
        reproduce(two, say=lambda line: None)
    assert "02_c: 02_second.ipynb has not made it this time" in str(error.value)
    assert "01_stray.png: no notebook makes it" in str(error.value)
    assert contents(two / "figures") == before
    reproduce(two, prune=True, say=lambda line: None)
    assert set(manifest(two)["figures"]) == {"01_a", "01_b", "02_d"}
    assert not [name for name in contents(two / "figures") if "02_c" in name or "stray" in name]


def test_a_deleted_notebook_fails_a_full_run_only(two):
    (two / "notebooks" / "02_second.ipynb").unlink()
    reproduce(two, only=["01"], say=lambda line: None)
    with pytest.raises(ReproductionError, match="02_c"):
        reproduce(two, say=lambda line: None)


@pytest.mark.parametrize(
    "source, message",
    [
        ('save("03_a")', "01_first.ipynb saved 03_a.pdf, but its figures are 01_slug"),
        ('save("01_a"); os.remove(os.environ["CAM_UTILS_FIGURES"] + "/01_a.pdf")', "01_a needs PNG and PDF"),
        ('open(os.environ["CAM_UTILS_FIGURES"] + "/01_a.png", "w").close()', "which is no PNG"),
    ],
)
def test_a_figure_with_a_wrong_name_or_a_missing_half_fails(tmp_path, source, message):
    write(tmp_path, "01_first", source)
    with pytest.raises(ReproductionError, match=message):
        reproduce(tmp_path, say=lambda line: None)


def test_one_notebook_with_another_parameter_is_a_variant(two):
    before = contents(two / "figures")
    folder = reproduce(two, only=["1"], parameters={"photo": "dog"}, say=lambda line: None)
    assert folder == two / "build" / "variants" / "01-photo=dog"
    assert (folder / "01_a.png").read_bytes() == b"\x89PNGdog"
    assert (folder / "notebooks" / "01_first.ipynb").exists()
    made = json.loads((folder / "manifest.json").read_text())["figures"]["01_a"]
    assert made["parameters"] == {"photo": "dog", "seed": 0}
    assert contents(two / "figures") == before


def test_wrong_requests_fail_before_anything_runs(two):
    before = contents(two)
    for arguments, message in [
        ({"parameters": {"foto": "dog"}}, "01_first has no parameter 'foto'; it has: photo, seed"),
        ({"parameters": {"seed": "one"}}, "seed is a int like 0, not a str like 'one'"),
        ({"only": ["04"]}, "no notebook '04'; there are 01_first, 02_second"),
        ({"parameters": {"seed": 3}, "write_back": True}, "own parameters"),
    ]:
        with pytest.raises(ValueError, match=message):
            reproduce(two, **arguments)
    assert contents(two) == before


def test_some_notebooks_only_is_refused_when_the_versions_differ(two):
    file = two / "figures" / "manifest.json"
    file.write_text(file.read_text().replace('"torch": "', '"torch": "0.'))
    with pytest.raises(ReproductionError, match="made with another torch: run all"):
        reproduce(two, only=["01"], say=lambda line: None)


def test_a_derived_value_in_the_parameters_cell_is_refused(tmp_path):
    write(tmp_path, "01_first", parameters="n = 3\nsize = 2 * n")
    with pytest.raises(ValueError, match=r"`size = 2 \* n` in the parameters cell"):
        find_notebooks(tmp_path / "notebooks")


def test_parameters_are_read_as_python_or_yaml():
    texts = ["a=3", "b=0.5", "c=dog", "d=None", "e=true", "f=[dog, cat]", "g=(7, 7)", "h='3'", "i=x=y", "j="]
    assert parse_parameters(texts) == {
        "a": 3, "b": 0.5, "c": "dog", "d": None, "e": True, "f": ["dog", "cat"], "g": (7, 7), "h": "3", "i": "x=y", "j": None
    }  # fmt: skip
    with pytest.raises(ValueError, match="name=value"):
        parse_parameters(["photo"])


def test_write_back_is_idempotent_and_leaves_no_trace_of_the_run(tmp_path):
    noisy = 'import sys\nprint("a", flush=True)\nprint("\\r 50%|█████     | 1/2", file=sys.stderr)\nprint("b")'
    picture = 'display({"text/plain": "42"}, raw=True, metadata={"image/png": {"alt": "a map"}})'
    path = write(tmp_path, "01_first", noisy, "6 * 7", picture)
    reproduce(tmp_path, write_back=True, say=lambda line: None)
    first = path.read_bytes()
    reproduce(tmp_path, parameters={"photo": "cat"}, write_back=True, say=lambda line: None)  # its own value
    assert path.read_bytes() == first
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == [f"cell-{index}" for index in range(6)]
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3, 4, 5]
    assert [output.text for output in notebook.cells[3].outputs if output.name == "stdout"] == ["a\nb\n"]
    assert notebook.cells[4].outputs[0].data["text/plain"] == "42"
    assert notebook.cells[5].outputs[0].metadata == {"image/png": {"alt": "a map"}}  # alternative texts stay
    for trace in (b"papermill", b"injected", b"shell.execute_reply", b'"stderr"', str(tmp_path).encode()):
        assert trace not in first


def test_write_back_refuses_another_notebook(tmp_path):
    one, other = write(tmp_path, "01_first"), write(tmp_path, "02_second", "1")
    with pytest.raises(ValueError):
        write_outputs(other, one)


def test_two_runs_at_once_are_refused(tmp_path):
    write(tmp_path, "01_first")
    with pytest.raises(ReproductionError, match=rf"another run .process {os.getpid()}. is at work in"):
        reproduce(tmp_path, say=lambda line: reproduce(tmp_path))


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["cam_utils", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, *capsys.readouterr()


def test_command_line_passes_the_options_on(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr("cam_utils.reproduce.reproduce", lambda **options: given.update(options))
    arguments = "figures --only 04 --only 01 -p photo=dog -p seed=3 --timeout 9 --prune --write-back"
    assert command(monkeypatch, capsys, *arguments.split())[0] == 0
    assert given.pop("only") == ["04", "01"] and given.pop("parameters") == {"photo": "dog", "seed": 3}
    assert given == {"timeout": 9, "prune": True, "write_back": True, "at_once": 1}
    assert command(monkeypatch, capsys, "figures", "--at-once", "2")[0] == 0 and given["at_once"] == 2


@pytest.mark.parametrize(("error", "code"), [(ReproductionError("cell 3 failed"), 1), (ValueError("cell 3 failed"), 2)])
def test_command_line_shows_errors_without_traceback(monkeypatch, capsys, error, code):
    def fail(**options):
        raise error

    monkeypatch.setattr("cam_utils.reproduce.reproduce", fail)
    assert command(monkeypatch, capsys, "figures") == (code, "", "error: cell 3 failed\n")


def test_tables_are_published_beside_the_results_and_a_variants_with_its_figures(tmp_path):
    table = """
folder = pathlib.Path(os.environ["CAM_UTILS_TABLES"])
folder.mkdir()
(folder / "01_ranks.csv").write_text(photo)
"""
    write(tmp_path, "01_first", 'save("01_a")', table)
    reproduce(tmp_path, say=lambda line: None)
    assert (tmp_path / "data/results/01_ranks.csv").read_text() == "cat"
    folder = reproduce(tmp_path, parameters={"photo": "dog"}, say=lambda line: None)
    assert (folder / "tables/01_ranks.csv").read_text() == "dog"
    assert contents(tmp_path / "data") == {"results/01_ranks.csv": b"cat"}


def test_a_table_of_another_notebook_is_refused_and_nothing_is_published(tmp_path):
    table = """
folder = pathlib.Path(os.environ["CAM_UTILS_TABLES"])
folder.mkdir()
(folder / "shapley.csv").write_text("")
"""
    write(tmp_path, "01_first", 'save("01_a")', table)
    with pytest.raises(ReproductionError, match="wrote shapley.csv, but its tables are 01_slug"):
        reproduce(tmp_path, say=lambda line: None)
    assert not (tmp_path / "data").exists() and not (tmp_path / "figures" / "01_a.png").exists()
