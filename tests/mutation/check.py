"""`make mutants`: mutmut changes the sources one operation at a time, and for each change some test must fail.

Configured by [tool.mutmut] in pyproject.toml. Fails where fewer than 85 % of the changes are noticed, or where one is not that
survivors.yml does not list with a reason. Works on a copy, in build/mutation.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml
from mutmut.mutation.diff_apply import get_diff_for_mutant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutation"
NOTICED = 0.85  # at least this share
UNTRIED = "was not tried to the end"
# without two runs before the mutants': of the unchanged code, since the one that finds out which test covers what has just
# passed, and of code that fails everywhere, since the mutants that are noticed show as much
MUTMUT = """
from mutmut.__main__ import cli
from mutmut.workers.isolation import ForkServerRunner

ForkServerRunner.run_clean_tests = lambda self, tests: 0
ForkServerRunner.run_forced_fail = lambda self: 1
cli()
"""
# mutmut's codes; any other: noticed, by a test that fails, a crash, or time without end
STATES = {0: "survived", **dict.fromkeys((5, 33), "no test runs it"), **dict.fromkeys((None, 2, 34, 35, -9), UNTRIED)}


def main(numbers: str, *modules: str) -> int:
    """Try the mutants of some modules, all if none is named, whose number in its function is like `numbers`, such as *7.

    Returns the exit code.
    """
    modules = tuple(dict.fromkeys(modules)) or ("*",)
    for folder in ("cam_utils", "tests", "data"):
        shutil.copytree(
            ROOT / folder, WORK / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    shutil.copy(ROOT / "pyproject.toml", WORK)
    command = [sys.executable, "-c", MUTMUT, "run", "--max-children", "2"]
    command += [f"cam_utils.{module}.*__mutmut_{numbers}" for module in modules]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}  # the mutated copy, not the sources
    with open(WORK / "log", "w") as log:
        code = subprocess.run(command, cwd=WORK, env=environment, stdout=log, stderr=log, check=False).returncode
    results = [list(_results(module, numbers)) for module in modules]
    tried = sum(results, [])
    if code or not all(results) or any(state == UNTRIED for _, state in tried):
        print(f"mutmut did not come to its end, see {WORK / 'log'}")
        return 1
    survivors = [(name, state) for name, state in tried if state]
    score = 1 - len(survivors) / len(tried)
    print(f"{len(tried)} mutants, {score:.1%} noticed by the tests (at least {NOTICED:.0%})")
    reasons = yaml.safe_load((HERE / "survivors.yml").read_text(encoding="utf-8"))
    known = [re.compile(change, re.DOTALL) for entry in reasons for change in entry["changes"]]
    changes = [(_change(name), state) for name, state in survivors]
    new = [(change, state) for change, state in changes if not any(pattern.search(change) for pattern in known)]
    print(f"{len(changes) - len(new)} of those that are not noticed have their reason in {HERE.name}/survivors.yml")
    for change, state in new:
        print(f"{state}, without a reason:\n{change}")
    return int(score < NOTICED or bool(new))


def _results(module: str, numbers: str):
    """(name, why it was not noticed or None) of each mutant tried."""
    for file in sorted((WORK / "mutants" / "cam_utils").glob(f"{module}.py.meta")):
        for name, code in json.loads(file.read_text())["exit_code_by_key"].items():
            if fnmatch(name.rpartition("_")[2], numbers):
                yield name, STATES.get(code)


def _change(name: str) -> str:
    """The function of a mutant, the line as it is and as it was changed."""
    module, _, function = name.partition("__mutmut_")[0].rpartition(".")
    diff = get_diff_for_mutant(name, path=WORK / "mutants" / (module.replace(".", "/") + ".py")).splitlines()
    lines = [line for line in diff if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    function = function.replace("xǁ", "", 1).replace("ǁ", ".") if "ǁ" in function else function[2:]
    return "\n".join([f"{module.split('.')[-1]}.{function}", *(line[0] + " " + line[1:].strip() for line in lines)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
