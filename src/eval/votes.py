"""Preference votes of people: which of two methods they preferred, how often, and whether that could be chance.

One line of the CSV file is one vote. ``case`` names what was shown, such as a prompt; ``rater`` says who looked;
``question`` says what was asked, such as "concept" or "prompt" (without this column there is one question); ``first``
and ``second`` are the two methods, and ``choice`` is one of them, or ``tie``::

    case,rater,question,first,second,choice
    a dog next to a cat,anna,concept,latexblend,omg,latexblend

A column ``seed`` may tell several pictures of a case apart, so that a rater can judge each of them; the desk's gallery
writes such a file.

``python -m src.eval.votes votes.csv`` prints one line for each question and pair of methods.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from filelock import FileLock

from src.data.files import whole_file
from src.data.schema import RefusedFileError
from src.eval.results.results import Table, inert
from src.eval.statistics.bootstrap import Interval, bootstrap_mean

TIE = "tie"
COLUMNS = ("case", "rater", "first", "second", "choice")
QUESTION, SEED = "question", "seed"
WORTH = {1: 1.0, 0: 0.5, -1: 0.0}
"""What a vote is worth to a method: for it, a tie, against it."""


@dataclass(frozen=True)
class Vote:
    """One answer of one person.

    Attributes:
        case: What was shown, such as a prompt.
        rater: Who looked.
        question: What was asked; empty where a file has one question.
        first: One of the two methods.
        second: The other.
        choice: The one that was preferred, or ``tie``.
        seed: Which of several pictures of the case; empty where there is one.
    """

    case: str
    rater: str
    question: str
    first: str
    second: str
    choice: str
    seed: str = ""

    def worth(self, method: str) -> float:
        """1 if this method was preferred, 0 if the other was, 0.5 for a tie."""
        return WORTH[0 if self.choice == TIE else 1 if self.choice == method else -1]


@dataclass(frozen=True)
class Preference:
    """Two methods on one question.

    Attributes:
        question: What was asked.
        method: The method that is spoken of.
        other: The one that it was shown beside.
        won: Votes for ``method``.
        tied: Votes for neither.
        lost: Votes for ``other``.
        share: Votes for ``method``, a tie as half a vote, as a share of all; its interval is over cases and raters.
    """

    question: str
    method: str
    other: str
    won: int
    tied: int
    lost: int
    share: Interval

    @property
    def word(self) -> str:
        """``preferred`` or ``not preferred`` where the interval excludes one half, else ``undecided``."""
        if self.share.low > WORTH[0]:
            return "preferred"
        return "not preferred" if self.share.high < WORTH[0] else "undecided"


def read_votes(path: str | Path) -> list[Vote]:
    """Read a CSV file of votes.

    Raises:
        ValueError: If there is no such file, a column is missing, a cell is empty, a choice is not one of the two
            methods, or one rater answers one question on one pair, case and seed twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a CSV file with the columns {', '.join(COLUMNS)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or [])]
            lines = [] if missing else list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedFileError(f"{path} cannot be read as a CSV file in UTF-8 ({error})") from error
    if missing:
        raise RefusedFileError(f"{path} has no column {missing[0]!r}; its first line names {', '.join(COLUMNS)}")
    votes = [_vote(path, number, line) for number, line in enumerate(lines, start=2)]
    if not votes:
        raise RefusedFileError(f"{path} holds no vote; each line after the first is one")
    _refuse_twice(path, votes)
    return votes


def add_vote(path: str | Path, vote: Vote) -> None:
    """Add a vote to a file of votes, which is made if need be; several programs may do so at once.

    Raises:
        ValueError: As of ``read_votes``, if the file with this vote could not be read; it stays as it was then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        votes = read_votes(path) if path.is_file() else []
        line = {name: inert(text) for name, text in asdict(vote).items()}
        votes.append(_vote(path, len(votes) + 2, line))
        _refuse_twice(path, votes)
        with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            writer.writeheader()
            writer.writerows(map(asdict, votes))


def _vote(path: Path, number: int, line: dict[str, str | None]) -> Vote:
    cells = {name: (line.get(name) or "").strip() for name in (*COLUMNS, QUESTION, SEED)}
    if empty := [name for name in COLUMNS if not cells[name]]:
        raise RefusedFileError(f"line {number} of {path} has no {empty[0]}; fill it, or remove the line")
    if cells["first"] == cells["second"] or TIE in (cells["first"], cells["second"]):
        raise RefusedFileError(f"line {number} of {path} needs two different methods, neither called {TIE!r}")
    choices = (cells["first"], cells["second"], TIE)
    if cells["choice"] not in choices:
        raise RefusedFileError(f"line {number} of {path} chooses {cells['choice']!r}; write {', '.join(choices)}")
    return Vote(**cells)


def _refuse_twice(path: Path, votes: Sequence[Vote]) -> None:
    seen: dict[tuple[str, str, str, str, frozenset[str]], int] = {}
    for number, vote in enumerate(votes, start=2):
        place = (vote.case, vote.seed, vote.rater, vote.question, frozenset((vote.first, vote.second)))
        if place in seen:
            raise RefusedFileError(
                f"line {number} of {path} repeats line {seen[place]}: {vote.rater} answers on {vote.case!r} twice; "
                "keep one of the two"
            )
        seen[place] = number


def preferences(votes: Sequence[Vote], seed: int = 0) -> list[Preference]:
    """Every two methods that stood beside each other, question by question, in the order of the file.

    Args:
        votes: All votes of a study, of any number of questions, methods, cases and raters.
        seed: Seeds the bootstrap, which draws cases and raters anew, both crossed.
    """
    methods = list(dict.fromkeys(method for vote in votes for method in (vote.first, vote.second)))
    pairs = [
        (question, method, other)
        for question in dict.fromkeys(vote.question for vote in votes)
        for method, other in combinations(methods, 2)
    ]
    return [one for pair in pairs if (one := _preference(votes, *pair, seed)) is not None]


def _preference(votes: Sequence[Vote], question: str, method: str, other: str, seed: int) -> Preference | None:
    both = {method, other}
    cast = [vote for vote in votes if vote.question == question and {vote.first, vote.second} == both]
    if not cast:
        return None
    worth = [vote.worth(method) for vote in cast]
    share = bootstrap_mean(worth, [[vote.case for vote in cast], [vote.rater for vote in cast]], seed)
    won, tied, lost = (worth.count(WORTH[sign]) for sign in (1, 0, -1))
    return Preference(question, method, other, won, tied, lost, share)


def preference_table(found: Sequence[Preference]) -> Table:
    """One line for each question and pair."""
    rows = [
        [one.question, one.method, one.other, str(one.won), str(one.tied), str(one.lost), str(one.share), one.word]
        for one in found
    ]
    columns = ["question", "method", "beside", "won", "tied", "lost", "share preferred", "verdict"]
    return Table("Preferences, share of votes [95% interval over cases and raters]", columns, rows)


def main() -> None:
    """Print how often each method was preferred to each other one."""
    parser = argparse.ArgumentParser(description="Preference votes: wins, and the share preferred with its interval.")
    parser.add_argument("votes", help=f"CSV file with the columns {', '.join(COLUMNS)}, and {QUESTION} if you like")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments = parser.parse_args()
    try:
        found = preferences(read_votes(arguments.votes), arguments.seed)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(preference_table(found).markdown())


if __name__ == "__main__":
    main()
