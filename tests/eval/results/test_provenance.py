"""A record of a command names no place of the machine that ran it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = 'from src.eval.results.results import provenance\nprint(provenance()["command"])\n'


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (["FOLDER/told.py", "prompt='a dog'"], "python told.py 'prompt='\"'\"'a dog'\"'\"''"),
        (["-m", "told", "seed=1"], "python -m told seed=1"),
        (["-m", "whole", "seed=1"], "python -m whole seed=1"),
    ],
)
def test_a_program_is_recorded_without_its_place(tmp_path: Path, typed: list[str], recorded: str) -> None:
    (tmp_path / "whole").mkdir()
    for name in ("told.py", "whole/__main__.py"):
        (tmp_path / name).write_text(f"import sys\nsys.path.append({str(ROOT)!r})\n{PROGRAM}", encoding="utf-8")
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in typed]
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert ended.stdout.strip() == recorded


def test_shipped_results_name_programs_and_no_places() -> None:
    found = []
    for path in ROOT.glob("experiments/*/results/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        found += [record["command"]] if isinstance(record, dict) and "command" in record else []
    assert len(found) > 20
    assert [command for command in found if not re.match(r"python (-m [\w.]+|\w+\.py)( |$)", command)] == []
