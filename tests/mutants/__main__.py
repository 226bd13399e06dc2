"""Plant each bug of ``planted.yaml`` in a copy of the project, and see whether its test fails.

Type ``python -m tests.mutants`` for all of them, a few seconds each, or ``python -m tests.mutants NAME`` for some; a
NAME may be a pattern such as ``llmdiff-*``. Reference tensors are hidden, so that what kills a bug stands in the
project itself. The exit status is 1 if a bug survives, and 2 if a test fails without any bug.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

from tests.mutants.planted import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = (
    *("src", "tests", "conf", "experiments", "integrations", "train.py", "generate.py", "eval.py", "doctor.py"),
    "pyproject.toml",
)
LINKED = ("world",)
HIDDEN = ("__pycache__", "golden")
LIBRARIES = ("diffusers", "lightning", "open_clip", "timm", "torchmetrics", "transformers", "wandb")
ARGUMENTS = ("-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--durations=0")


def copied(folder: Path) -> Path:
    """Copy what the tests need, but no reference tensors; large files that no test changes are linked."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*HIDDEN))
        else:
            shutil.copy(ROOT / name, folder / name)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    return folder


def tested(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests in the copy, up to the first that fails: pytest's exit status and what it printed.

    A fork of this process does it, in which the libraries are imported already: they take longer than most tests.
    """
    output = folder / "output.txt"
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os.chdir(folder)
            os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.dont_write_bytecode = True
            sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
            for name in [name for name in sys.modules if name.partition(".")[0] in ("src", "tests", "experiments")]:
                del sys.modules[name]
            status = pytest.main([*ARGUMENTS, *tests])
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, output.read_text(encoding="utf-8", errors="replace")


def verdict(folder: Path, mutant: Mutant) -> tuple[str, str]:
    """Plant one bug, and return what became of it: killed, survived or broken, and by which test."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.code, mutant.bug), encoding="utf-8")
    try:
        status, told = tested(folder, [mutant.test])
    finally:
        path.write_text(text, encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\S+)", told, re.MULTILINE)
    if status == 1 and failed:
        return "killed", failed[1]
    # Tests that cannot even be collected, or a selection without a test, prove nothing.
    return ("survived" if status == 0 else "broken"), told.strip().rpartition("\n")[2]


def main() -> int:
    """Run the mutants whose names fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="names or patterns; all without any")
    names = parser.parse_args().names
    chosen = [mutant for mutant in MUTANTS if any(fnmatch(mutant.name, name) for name in names)]
    if not chosen:
        parser.error(f"no bug is called {names[0]!r}; their names stand in tests/mutants/planted.yaml")
    counts = {"killed": 0, "survived": 0, "broken": 0}
    for name in LIBRARIES:
        import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = copied(Path(temporary))
        status, told = tested(folder, dict.fromkeys(mutant.test for mutant in chosen))
        if status:
            print(f"{told}\nthis fails already without any bug")
            return 2
        for mutant in chosen:
            found, told = verdict(folder, mutant)
            counts[found] += 1
            print(f"{found:9} {mutant.name:36} {told}", flush=True)
    print(", ".join(f"{number} {found}" for found, number in counts.items()))
    return int(counts["killed"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
