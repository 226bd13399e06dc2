"""The gallery of the desk: runs to browse, two series side by side, and blind votes between them.

A page names runs, series and pictures by numbers that it was given, never by a path.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from src.data.images import check_png, load_image
from src.eval.grid import Grid, read_grid
from src.eval.results.results import inert
from src.eval.statistics.paired import paired_difference
from src.eval.votes import TIE, Vote, add_vote, preferences, read_votes
from src.run.desk.places import Places, named
from src.run.desk.runs import Cell, Run, Series, changed, read_run, run_folders

MOST_RUNS = 1000
MOST_REFERENCES = 5
SMALL = 192
"""Pixels of the longer side of a small picture."""
SIDES = ("left", "right", TIE)


Pair = tuple[Cell, Cell]
"""The same place of two series."""


class Gallery:
    """What a folder of runs holds, and the votes that were given on it.

    Args:
        root: Folder of all runs.
        places: Folders that pictures may come from; what a link or a table names outside of them is not there.
        votes: The table of votes, which ``python -m src.eval.votes`` reads.
    """

    def __init__(self, root: Path, places: Places, votes: Path) -> None:
        self.root, self.places, self.votes = root, places, votes
        self._runs: dict[Path, Run] = {}
        self._series: dict[str, tuple[Run, Series]] = {}
        self._cells: dict[str, Cell] = {}

    def runs(self) -> list[dict[str, Any]]:
        """List all runs, the newest first; each is read again when its folder has changed."""
        folders = [folder for folder in run_folders(self.root) if self.places.holds(folder)]
        newest = sorted(folders, key=changed, reverse=True)[:MOST_RUNS]
        return [self._told(run) for folder in newest if (run := self._run(folder)) is not None]

    def _run(self, folder: Path) -> Run | None:
        if folder not in self._runs or self._runs[folder].made != changed(folder):
            try:
                self._runs[folder] = read_run(folder)
            except OSError:  # It was removed just now.
                return None
        return self._runs[folder]

    def _told(self, run: Run) -> dict[str, Any]:
        try:
            cover, trouble = [self._picture(cell) for cell in self._held(run.cover)], run.trouble
        except (ValueError, KeyError, OSError) as error:
            cover, trouble = [], str(error)
        each = []
        for series in run.series:
            key = named(f"{run.path}\0{series.label}")
            self._series[key] = run, series
            each.append({"id": key, "label": series.label, "step": series.step})
        told = {"id": named(run.path), "kind": run.kind, "name": run.name, "date": run.date, "made": run.made}
        return {**told, "settings": list(run.settings), "cover": cover, "series": each, "trouble": trouble}

    def _held(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.places.holds(cell.path) and cell.path.is_file()]

    def _picture(self, cell: Cell) -> str:
        """Number of a picture; another one when its file has changed."""
        key = named(f"{cell.path}\0{cell.index}\0{cell.path.stat().st_mtime_ns}")
        self._cells[key] = cell
        return key

    def _of(self, series: str) -> tuple[Run, Series]:
        if series not in self._series:
            self.runs()
        if series not in self._series:
            raise ValueError("there are no such pictures any more; reload the page")
        return self._series[series]

    def cells(self, series: str) -> dict[str, Any]:
        """List the pictures of a series, and what they are held against.

        Raises:
            ValueError: If there is no such series, or what holds it is damaged.
        """
        run, one = self._of(series)
        cells = self._held(one.cells)
        return {"cells": [self._cell(cell) for cell in cells], "references": self._references(run, cells)}

    def _references(self, run: Run, cells: Sequence[Cell]) -> list[str]:
        """A few of them, one after the other evenly; the same one may stand in several grids."""
        found = self._held(run.references(list(dict.fromkeys(cell.of for cell in cells))))
        return [self._picture(cell) for cell in found[:: -(-len(found) // MOST_REFERENCES) or 1]]

    def _cell(self, cell: Cell) -> dict[str, Any]:
        told = {"prompt": cell.prompt, "seed": cell.seed, "of": cell.of}
        return {**told, "scores": dict(cell.scores), "picture": self._picture(cell)}

    def compared(self, first: str, second: str) -> dict[str, Any]:
        """Pair two series picture by picture.

        Returns:
            Their pairs; how many pictures have no partner; and the difference of each score, second less first, with
            its interval over prompts, and over subjects where there are several.

        Raises:
            ValueError: If they have no place in common.
        """
        pairs, alone = self._paired(first, second)
        told = [{"first": self._cell(ours), "second": self._cell(theirs)} for ours, theirs in pairs]
        return {"pairs": told, "alone": alone, "differences": differences(pairs)}

    def _paired(self, first: str, second: str) -> tuple[list[Pair], int]:
        ours, theirs = ({one.place: one for one in self._held(self._of(key)[1].cells)} for key in (first, second))
        pairs = [(cell, theirs[place]) for place, cell in ours.items() if place in theirs]
        if not pairs:
            raise ValueError(
                f"{self._name(first)} and {self._name(second)} have no prompt and seed in common, so there is nothing "
                "to hold side by side; choose two that drew the same prompts"
            )
        return pairs, len(ours) + len(theirs) - 2 * len(pairs)

    def _name(self, series: str) -> str:
        """What the table of votes calls a series."""
        run, one = self._of(series)
        return f"{run.kind}/{run.name}/{run.date} {one.label}"

    def trial(self, first: str, second: str, rater: str, question: str) -> dict[str, Any]:
        """Choose the next pair that a rater has not voted on; nothing says which side is which.

        Returns:
            The prompt, the pictures of both sides, what they are held against, how many pairs are left with it, and
            of how many; no more than these numbers where none is left.

        Raises:
            ValueError: As ``compared``, or if no rater is named.
        """
        _check_rater(rater)
        pairs, _ = self._paired(first, second)
        both = {self._name(first), self._name(second)}
        asked = inert(rater.strip()), inert(question.strip())
        mine = [one for one in self._given() if (one.rater, one.question) == asked]
        done = {(one.case, one.seed) for one in mine if {one.first, one.second} == both}
        pairs = _telling(pairs)
        left = [pair for pair in pairs if _case(pair[0]) not in done]
        if not left:
            return {"left": 0, "number": len(pairs)}
        # Each rater sees another order.
        pair = random.Random(f"{rater}\0{question}\0{len(left)}").choice(left)
        sides = [self._picture(cell) for cell in (pair[::-1] if _turned(pair, rater, question) else pair)]
        told = {"prompt": pair[0].place[1], "of": pair[0].of, "sides": sides}
        references = self._references(self._of(first)[0], pair[:1])
        return {"left": len(left), "number": len(pairs), "references": references, **told}

    def vote(self, first: str, second: str, rater: str, question: str, sides: Sequence[str], choice: str) -> None:
        """Write a vote on the pair of a trial.

        Args:
            first: One series.
            second: The other.
            rater: Who looked.
            question: What was asked.
            sides: The pictures that stood on the left and on the right.
            choice: ``left``, ``right`` or ``tie``.

        Raises:
            ValueError: If there is no such pair or choice, no rater is named, or the pair was voted on already.
        """
        _check_rater(rater)
        pairs, _ = self._paired(first, second)
        shown = {tuple(map(self._picture, pair)): pair[0] for pair in _telling(pairs)}
        straight, turned = tuple(sides), tuple(sides[::-1])
        if choice not in SIDES or not (straight in shown or turned in shown):
            raise ValueError(f"a vote is one of {', '.join(SIDES)} on a pair that was shown; reload the page")
        case, seed = _case(shown[straight if straight in shown else turned])
        left, right = [self._name(first), self._name(second)][:: 1 if straight in shown else -1]
        chosen = {"left": left, "right": right, TIE: TIE}[choice]
        add_vote(self.votes, Vote(case, rater.strip(), question.strip(), left, right, chosen, seed))

    def _given(self) -> list[Vote]:
        return read_votes(self.votes) if self.votes.is_file() else []

    def preferences(self) -> list[dict[str, Any]]:
        """List how often each was preferred to the other, with intervals, see ``src.eval.votes``.

        Raises:
            ValueError: If the table of votes is damaged.
        """
        found = preferences(self._given())
        names = ("question", "method", "other", "won", "tied", "lost", "word")
        return [{**{name: getattr(one, name) for name in names}, "share": one.share.as_dict()} for one in found]

    def png(self, picture: str, small: bool = False) -> bytes:
        """A picture, cut out of its grid if it stands in one.

        Raises:
            ValueError: If there is none of this number, or its file is damaged.
        """
        cell = self._cells.get(picture)
        if cell is None or not self._held([cell]):
            raise ValueError("there is no such picture any more; reload the page")
        path, stamp = str(cell.path), cell.path.stat().st_mtime_ns
        if small:
            return _small(path, cell.index, stamp)
        if cell.index is not None:
            return _encoded(_grid(path, stamp).images[cell.index])
        check_png(path)
        # As it was written: its notes say how it was drawn.
        return cell.path.read_bytes()


def differences(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """By score, the second less the first of all pairs that have both, with its interval as sweeps compute it."""
    scores: Mapping[str, None] = dict.fromkeys(name for one, other in pairs for name in (*one.scores, *other.scores))
    found = {}
    for score in scores:
        both = [(one, other) for one, other in pairs if score in one.scores and score in other.scores]
        if both:
            ours, theirs = ([cell.scores[score] for cell in cells] for cells in zip(*both, strict=True))
            groups = [[one.place[1] for one, _ in both], [one.of for one, _ in both]]
            groups = [labels for labels in groups if len(set(labels)) > 1]
            found[score] = paired_difference(theirs, ours, groups, seed=0).as_dict()
    return found


def _telling(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs of two pictures: arms that share a picture, such as a control, leave nothing to choose."""
    return [(one, other) for one, other in pairs if (one.path, one.index) != (other.path, other.index)]


def _check_rater(rater: str) -> None:
    if not rater.strip():
        raise ValueError("type who you are, a name or initials; the interval is over raters as well as prompts")


def _turned(pair: Pair, rater: str, question: str) -> bool:
    """Whether the second stands on the left: as good as by chance, and told by nothing that a page gets."""
    told = "\0".join((rater, question, *pair[0].place, str(pair[0].path), str(pair[1].path)))
    return bool(hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[0] & 1)


def _case(cell: Cell) -> tuple[str, str]:
    """What the table of votes calls a pair: the prompt, of what, and the seed."""
    of, prompt, seed = cell.place
    return inert(f"{prompt} ({of})" if of else prompt).strip(), seed


@lru_cache(maxsize=4)
def _grid(path: str, stamp: int) -> Grid:
    return read_grid(path)


@lru_cache(maxsize=512)
def _small(path: str, index: int | None, stamp: int) -> bytes:
    image = load_image(path, min_side=1) if index is None else _grid(path, stamp).images[index].copy()
    image.thumbnail((SMALL, SMALL))
    return _encoded(image)


def _encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
