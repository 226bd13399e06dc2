"""What a protocol leaves in the run folder: metrics.json, per_image.csv, table.md, picture grids, report.html."""

import csv
import io
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from src.data.files import whole_file, write_text
from src.eval.grid import Grid
from src.eval.results.report import Report

Row = dict[str, Any]
"""One image: concept, arm, prompt, seed and its scores; an empty text where a score does not apply."""


def per_group(rows: Sequence[Row], by: str | Sequence[str], scores: Collection[str]) -> list[dict[str, Any]]:
    """Mean of each score in each group, in order of appearance.

    Args:
        rows: One per image.
        by: Columns whose values make a group, e.g. ``("arm", "prompt")``.
        scores: Columns to average over the images of the group that have them.

    Returns:
        Per group the columns of ``by``, ``num_images`` and the means; an empty text where no image has the score.

    Raises:
        ValueError: If rows lack a column.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    _check_columns(rows, (*by, *scores))
    groups: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    return [
        {
            **dict(zip(by, group, strict=True)),
            "num_images": len(members),
            **{score: _mean(row[score] for row in members) for score in scores},
        }
        for group, members in groups.items()
    ]


def worst(rows: Sequence[Row], score: str, n: int) -> list[dict[str, Any]]:
    """The ``n`` rows with the lowest score, lowest first; rows to which the score does not apply are left out.

    Raises:
        ValueError: If rows lack the score.
    """
    _check_columns(rows, (score,))
    scored = [dict(row) for row in rows if row[score] != ""]
    return sorted(scored, key=lambda row: row[score])[:n]


def disagreements(
    rows_a: Sequence[Row], rows_b: Sequence[Row], keys: Sequence[str], score_up: str, score_down: str, n: int
) -> list[dict[str, Any]]:
    """Places where, from arm a to arm b, one score rises and another falls: look there before trusting either.

    Ordered by rise times fall, largest first: that order is the same whatever the units of the two scores.

    Args:
        rows_a: One per place.
        rows_b: One per place, the same places in any order.
        keys: Columns that name a place, e.g. ``("concept", "prompt", "seed")``.
        score_up: The score that rises.
        score_down: The score that falls.
        n: How many at most.

    Returns:
        Per place the keys and, positive, ``<score_up>_rise`` and ``<score_down>_fall``.

    Raises:
        ValueError: If rows lack a column, a place occurs twice in an arm, or the arms have different places.
    """
    scores = (score_up, score_down)
    before, after = (_by_place(rows, keys, scores) for rows in (rows_a, rows_b))
    if set(before) != set(after):
        odd = min(set(before) ^ set(after), key=str)
        raise ValueError(f"arms need the same places, but {dict(zip(keys, odd, strict=True))} is in one of them only")
    found: list[dict[str, Any]] = []
    for place, row in before.items():
        rise, fall = _change(row, after[place], score_up), -_change(row, after[place], score_down)
        if rise > 0 and fall > 0:
            found.append({**dict(zip(keys, place, strict=True)), f"{score_up}_rise": rise, f"{score_down}_fall": fall})
    found.sort(key=lambda row: row[f"{score_up}_rise"] * row[f"{score_down}_fall"], reverse=True)
    return found[:n]


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write ``<path>.csv`` for people and ``<path>.jsonl`` for programs, each whole or not at all.

    In the first, an apostrophe stands before a text that a spreadsheet could take for a formula.
    Each line of the second is a row as a JSON object, whose numbers come back as they were; an empty text is a missing
    value, ``null``. The folder is made if need be.

    Args:
        rows: All with the same columns, each column of one type.
        path: Without suffix.

    Raises:
        ValueError: If rows differ in their columns or a column mixes types; then nothing is written.
    """
    columns = list(rows[0]) if rows else []
    for number, row in enumerate(rows):
        if set(row) != set(columns):
            raise ValueError(f"rows need the same columns, row {number} differs in {sorted(set(row) ^ set(columns))}")
    rows = [{column: _plain(row[column]) for column in columns} for row in rows]
    for column in columns:
        types = {type(row[column]).__name__ for row in rows if row[column] is not None}
        if len(types) > 1 and types != {"int", "float"}:
            raise ValueError(f"column {column!r} has to be of one type, got {', '.join(sorted(types))}")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for suffix, content in {".jsonl": lines.encode(), ".csv": _csv(rows, columns)}.items():
        with whole_file(f"{path}{suffix}") as partial:
            partial.write_bytes(content)


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows that ``write_rows`` wrote to ``<path>.jsonl``; a missing value is None."""
    return [json.loads(line) for line in Path(f"{path}.jsonl").read_text(encoding="utf-8").splitlines()]


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's, an empty text as None."""
    return None if isinstance(value, str) and not value else value.item() if isinstance(value, np.generic) else value


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that spreadsheets may take for a formula: https://owasp.org/www-community/attacks/CSV_Injection."""


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    # The default end of a line, which RFC 4180 gives, has both of its characters quoted inside a cell.
    writer = csv.writer(buffer)
    writer.writerows([[inert(cell) for cell in line] for line in (columns, *(row.values() for row in rows))])
    return buffer.getvalue().encode()


def inert(cell: Any) -> Any:
    """A text that no spreadsheet runs: an apostrophe stands before what could be a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _by_place(rows: Sequence[Row], keys: Sequence[str], scores: Sequence[str]) -> dict[tuple[Hashable, ...], Row]:
    _check_columns(rows, (*keys, *scores))
    places = {tuple(row[key] for key in keys): row for row in rows}
    if len(places) != len(rows):
        raise ValueError(
            f"{len(rows)} rows name only {len(places)} places by {', '.join(keys)}; add a column that differs"
        )
    return places


def _check_columns(rows: Sequence[Row], columns: Collection[str]) -> None:
    for row in rows:
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"rows have no column {missing[0]!r}, choose from {', '.join(row)}")


def _change(before: Row, after: Row, score: str) -> float:
    """Not a number, which neither rises nor falls, where the score does not apply."""
    return math.nan if "" in (before[score], after[score]) else after[score] - before[score]


def _mean(values: Iterable[Any]) -> float | str:
    present = [value for value in values if value != ""]
    return math.fsum(present) / len(present) if present else ""


PACKAGES = ("torch", "open_clip_torch", "timm", "diffusers", "pillow", "numpy")


@dataclass(frozen=True)
class Table:
    """Cells as text, with a title; of the machine if it tells of that and not of pictures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    of_machine: bool = False

    def markdown(self) -> str:
        """A pipe table under its title; a cell's own pipes are escaped, and each cell is one line."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        cells = [[_one_line(cell).replace("|", r"\|") for cell in line] for line in lines]
        return f"### {_one_line(self.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"

    def plain(self) -> str:
        """Cells in columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self.rows)
        return "\n".join(line.rstrip() for line in (self.title, *lines))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def provenance() -> dict[str, Any]:
    """What it takes to get the same numbers again: command, commit, package versions."""
    return {
        "command": shlex.join(["python", *_program(), *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def _program() -> list[str]:
    """What runs, without the place where it lies: that is of no use elsewhere, and the user's own."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]


def write_results(
    run_dir: str | Path,
    title: str,
    metrics: Mapping[str, Any],
    tables: Sequence[Table],
    rows: Sequence[Row],
    grids: Mapping[str, Grid],
) -> None:
    """Write everything, each file whole or not at all.

    Args:
        run_dir: The run folder.
        title: The heading of ``report.html``.
        metrics: Content of ``metrics.json``.
        tables: Content of ``table.md``.
        rows: Lines of ``per_image.csv`` and ``per_image.jsonl``, all with the keys of the first.
        grids: By file stem; they stand before the tables, the first of them open.
    """
    folder = Path(run_dir)
    report = Report(title)
    for name, grid in grids.items():
        grid.save(folder / f"{name}.png")
    arm = str(metrics.get("compared", {}).get("rows", {}).get("arm", ""))
    # The arm under test before its control.
    ordered = sorted(grids, key=lambda name: not name.endswith(f"_{arm}"))
    add_grids(report, {_told(name): grids[name] for name in ordered})
    for table in sorted(tables, key=lambda table: table.of_machine):
        with report.folded(table.title) if table.of_machine else nullcontext():
            report.add_table(table.columns, table.rows, "" if table.of_machine else table.title)
    report.add_config(
        {key: metrics[key] for key in ("profile", "encoders", "generator", "seed") if key in metrics}, "Profile"
    )
    report.add_config(provenance(), "Provenance")
    report.write(folder / "report.html")
    write_rows(rows, folder / "per_image")
    write_text(folder / "table.md", "\n".join(table.markdown() for table in tables))
    # Last: where metrics.json is, everything is.
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _told(stem: str) -> str:
    """What a grid is called on the page."""
    name = stem.removeprefix("grid").strip("_").replace("_", " ")
    return f"Pictures: {name}" if name else "Pictures"


def add_grids(report: Report, grids: Mapping[str, Grid]) -> None:
    """Show the first of several grids under its name, and the others at a click on theirs."""
    for at, (name, grid) in enumerate(grids.items()):
        with report.folded(name) if at else nullcontext():
            report.add_grid(grid, "" if at else name)


def _git_commit() -> str:
    """Hash of the checked-out commit, marked when tracked files differ from it."""
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        runs = [
            subprocess.run(["git", *rest], capture_output=True, text=True, check=True, encoding="utf-8")
            for rest in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    commit, changes = (run.stdout.strip() for run in runs)
    return f"{commit}-dirty" if changes else commit
