import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.eval.results.results import Table, disagreements, per_group, read_rows, worst, write_rows

ROOT = Path(__file__).parents[3]


def row(arm, prompt, seed, clip_t, dino):
    return {"concept": "rex", "arm": arm, "prompt": prompt, "seed": seed, "clip_t": clip_t, "dino": dino}


CONTROL = [row("control", "p", 0, 0.30, 0.50), row("control", "p", 1, 0.20, 0.60), row("control", "q", 0, 0.40, 0.70)]
CONCEPT = [row("concept", "q", 0, 0.39, 0.90), row("concept", "p", 1, 0.30, 0.70), row("concept", "p", 0, 0.25, 0.80)]
CEILING = [row("ceiling", "", 0, "", 0.95)]


def test_means_per_group_in_order_of_appearance():
    table = per_group(CONTROL + CEILING, ("arm", "prompt"), ("clip_t", "dino"))
    assert table == [
        {"arm": "control", "prompt": "p", "num_images": 2, "clip_t": 0.25, "dino": 0.55},
        {"arm": "control", "prompt": "q", "num_images": 1, "clip_t": 0.40, "dino": 0.70},
        {"arm": "ceiling", "prompt": "", "num_images": 1, "clip_t": "", "dino": 0.95},
    ]
    assert [line["num_images"] for line in per_group(CONTROL, "concept", ("dino",))] == [3]


def test_worst_are_the_lowest_that_have_the_score():
    assert worst(CEILING + CONTROL, "clip_t", 2) == [CONTROL[1], CONTROL[0]]
    assert len(worst(CONTROL + CEILING, "dino", 10)) == 4


def test_disagreements_are_ordered_whatever_the_units():
    found = disagreements(CONTROL, CONCEPT, ("concept", "prompt", "seed"), "dino", "clip_t", 5)
    assert [(line["prompt"], line["seed"]) for line in found] == [("p", 0), ("q", 0)]
    assert found[0]["dino_rise"] == pytest.approx(0.3) and found[0]["clip_t_fall"] == pytest.approx(0.05)
    before, after = [[{**line, "dino": 100 * line["dino"]} for line in rows] for rows in (CONTROL, CONCEPT)]
    scaled = disagreements(before, after, ("prompt", "seed"), "dino", "clip_t", 1)
    assert [(line["prompt"], line["seed"]) for line in scaled] == [("p", 0)]
    assert disagreements(CONTROL, CONCEPT, ("prompt", "seed"), "clip_t", "dino", 5) == []
    assert disagreements(CEILING, CEILING, ("prompt",), "dino", "clip_t", 5) == []


def test_wrong_tables_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="no column 'style', choose from concept, arm"):
        per_group(CONTROL, "style", ("dino",))
    with pytest.raises(ValueError, match="no column 'lpips'"):
        worst(CONTROL, "lpips", 1)
    with pytest.raises(ValueError, match="3 rows name only 2 places by prompt"):
        disagreements(CONTROL, CONCEPT, ("prompt",), "dino", "clip_t", 1)
    with pytest.raises(ValueError, match="'seed': 1} is in one of them only"):
        disagreements(CONTROL, [CONCEPT[0], CONCEPT[2]], ("prompt", "seed"), "dino", "clip_t", 1)


def test_rows_come_back_from_both_files(tmp_path):
    rows = [*CONTROL, *CEILING, row("control", 'a "dog", é', 7, np.float64(0.1), np.float32(0.5))]
    write_rows(rows, tmp_path / "new" / "per_image.v1")
    table = read_rows(tmp_path / "new" / "per_image.v1")
    assert table == [{key: None if value == "" else value for key, value in line.items()} for line in rows]
    assert [type(table[-1][name]) for name in ("prompt", "seed", "dino")] == [str, int, float]
    with open(tmp_path / "new" / "per_image.v1.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [line["prompt"] for line in read] == [line["prompt"] for line in rows]
    assert [float(line["dino"]) for line in read] == [line["dino"] for line in rows]
    assert sorted(path.name for path in tmp_path.rglob("per*")) == ["per_image.v1.csv", "per_image.v1.jsonl"]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula_in_a_spreadsheet(tmp_path, first):
    texts = [f"{first}cmd|' /C calc'!A0", "a dog = a cat", "plain"]
    write_rows([{"prompt": text, "clip_t": -0.5, f"{first}name": -3} for text in texts], tmp_path / "rows")
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["prompt", "clip_t", f"'{first}name"]
    assert lines == [[text, "-0.5", "-3"] for text in (f"'{texts[0]}", *texts[1:])]
    assert [line["prompt"] for line in read_rows(tmp_path / "rows")] == texts


def test_pipes_and_line_breaks_do_not_break_a_table():
    table = Table("two\nlines", ["", "a|b"], [["x|y\nz", r"\|"], ["\r\n", "1"]]).markdown()
    assert table == "### two lines\n\n|  | a\\|b |\n| --- | ---: |\n| x\\|y z | \\\\| |\n|  | 1 |\n"


def test_no_rows_make_files_that_can_be_read(tmp_path):
    write_rows([], tmp_path / "none")
    assert read_rows(tmp_path / "none") == []
    with open(tmp_path / "none.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == []


def test_rows_that_do_not_fit_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 differs in \['b'\]"):
        write_rows([{"a": 1}, {"a": 1, "b": 2}], tmp_path / "rows")
    with pytest.raises(ValueError, match="column 'a' has to be of one type, got float, str"):
        write_rows([{"a": 0.5}, {"a": "half"}], tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_a_failing_write_keeps_the_old_files(tmp_path, monkeypatch):
    write_rows(CONTROL, tmp_path / "rows")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        write_rows(CONCEPT, tmp_path / "rows")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_killed_write_leaves_nothing_half(tmp_path):
    # The process dies without warning in the middle of the first file, then in the middle of the second.
    code = f"""
import os, signal, sys
from pathlib import Path
from src.eval.results.results import write_rows
whole = Path.write_bytes
def killed(path, content):
    if sys.argv[1] not in path.name:
        return whole(path, content)
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_bytes = killed
write_rows([{{"a": n}} for n in range(1000)], {str(tmp_path / "rows")!r})
"""
    for suffix, whole in ((".jsonl", set()), (".csv", {"rows.jsonl"})):
        process = subprocess.run([sys.executable, "-c", code, suffix], cwd=ROOT, env=os.environ)
        assert process.returncode == -signal.SIGKILL
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == whole
    assert len(read_rows(tmp_path / "rows")) == 1000
