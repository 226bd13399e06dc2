"""What pages say of results, written from them: ``python -m experiments.claims [--write]``.

``experiments/NAME/claims.yaml`` declares claims and tables. A page shows them between ``<!-- claims: NAME -->`` or
``<!-- table: NAME TABLE -->`` and ``<!-- end -->``. No verdict word stands anywhere else.
"""

import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from experiments.study import Study
from src.data.files import write_text
from src.eval.statistics.bootstrap import Interval
from src.eval.statistics.verdict import OPPOSITE, SHOWN, UNDECIDED, verdict

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 125
BLOCK = re.compile(r"<!-- (claims|table): (\w+)((?: \w+)*) -->\n(.*?)<!-- end -->", re.DOTALL)
WORDS = "shown|undecided|opposite|decided|significant|significantly|confirms|confirmed|contradicts|contradicted"
VERDICT_WORD = re.compile(rf"\b({WORDS})\b", re.IGNORECASE)
CHANCE = 0.05
SIGNS = {"up": 1.0, "down": -1.0}


@dataclass(frozen=True)
class Claim:
    """One sentence of a page, and what decides it.

    Attributes:
        says: The claim as it is published or asked for, whatever was found.
        arm: Whose score it is, by the name that ``arms`` gives it.
        score: The score, by the name that ``scores`` gives it or its own.
        against: The arm from which it differs; the first of ``arms`` if nothing is said.
        asked: ``up`` or ``down``, how the difference should be; if left out, as published.
        above: What the score itself should exceed, in place of a difference.
        below: What it should fall short of.
        every: ``published`` for all published signs of the file; ``difference`` counts those that exclude 0.
        percent: Whether it is printed so.
    """

    says: str
    arm: str = ""
    score: str = ""
    against: str = ""
    asked: str = ""
    above: float | None = None
    below: float | None = None
    every: str = ""
    percent: bool = False


@dataclass(frozen=True)
class PageTable:
    """Means of arms by scores.

    Attributes:
        arms: Lines; all that are named if nothing is said.
        scores: Columns; likewise.
        differences: Whether lines follow with what each arm differs by from the first, and what is published of it.
    """

    arms: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    differences: bool = False


class Declared:
    """The claims and tables of one folder of ``experiments``.

    Args:
        folder: Holds ``claims.yaml`` and ``results``.

    Raises:
        ValueError: If ``claims.yaml`` says what nothing here understands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = yaml.safe_load((folder / "claims.yaml").read_text(encoding="utf-8"))
        _only(told, {"file", "arms", "scores", "claims", "tables"}, folder)
        self.file: str = told.get("file", "comparison")
        self.arms: dict[str, Any] = told.get("arms", {})
        self.scores: dict[str, str] = told.get("scores", {})
        self.claims = {name: _built(Claim, one, folder, name) for name, one in told.get("claims", {}).items()}
        self.tables = {name: _built(PageTable, one or {}, folder, name) for name, one in told.get("tables", {}).items()}
        self._studies: dict[tuple[Path, str | None], Study] = {}

    @cached_property
    def first(self) -> str:
        """The arm that others differ from."""
        return next(iter(self.arms))

    def is_run(self, claim: Claim) -> bool:
        """Whether there are results; what is claimed and how it is measured can be written down before."""
        return all(self._path(arm).exists() for arm in {claim.arm or self.first, claim.against or self.first})

    def line(self, name: str) -> str:
        """A claim as a page shows it: its word, what it says, and the interval from which the word comes.

        Where the file of results is missing, nothing is known of it yet.
        """
        claim = self.claims[name]
        if not self.is_run(claim):
            return f"- **Not run:** {claim.says}."
        word, found = (self._counted if claim.every else self._single)(claim)
        start = f"{word}** {claim.says}," if claim.every == "difference" else f"{word.capitalize()}:** {claim.says}:"
        text = f"- **{start} {found}."
        return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

    def words(self) -> dict[str, str]:
        """The verdict of each claim by its name."""
        return {name: (self._counted if one.every else self._single)(one)[0] for name, one in self.claims.items()}

    def _single(self, claim: Claim) -> tuple[str, str]:
        limit = claim.below if claim.above is None else claim.above
        if limit is not None:
            found = self._mean(claim.arm, claim.score)
            assert found is not None, f"{claim.arm} has no {claim.score}"
            return verdict(found, 1.0 if claim.above is not None else -1.0, limit), _printed(found, claim.percent)
        against = claim.against or self.first
        found = self._difference(claim.arm, against, claim.score)
        if claim.asked:
            return verdict(found, SIGNS[claim.asked]), _printed(found, claim.percent)
        theirs = self._published(claim.arm, against, claim.score)
        if theirs is None:
            raise ValueError(
                f"nothing is published of {claim.score} of {claim.arm} in {self.folder}; add asked: up or down"
            )
        return verdict(found, theirs), f"{_printed(found, claim.percent)}, published {theirs:+.3f}"

    def _counted(self, claim: Claim) -> tuple[str, str]:
        if claim.every == "published":
            words = {name: verdict(found, theirs) for name, found, theirs in self._every_difference() if theirs}
            each = [f"{sum(word == one for word in words.values())} {one}" for one in (SHOWN, UNDECIDED, OPPOSITE)]
            others = [f"{name} {word}" for name, word in words.items() if word != SHOWN]
            return _of_all(set(words.values())), f"{', '.join(each)}{_listed(others)}"
        found = list(self._every_difference())
        apart = [f"{name} {_printed(one)}" for name, one, _ in found if not one.low <= 0 <= one.high]
        by_chance = f"about {len(found) * CHANCE:.0f} would by chance"
        return f"{len(apart)} of {len(found)}", f"{by_chance}{_listed(apart)}"

    def _every_difference(self) -> Iterator[tuple[str, Interval, float | None]]:
        """By arm and score, what an arm differs by from the first, and what is published of it; no arm is left out."""
        study, first = self._study(self.first)
        arms = {self._study(arm)[1]: arm for arm in self.arms}
        scores = {score: name for name, score in self.scores.items()}
        for arm in study.means:
            for score in study.scores if arm != first else []:
                name = f"{arms.get(arm, arm)}, {scores.get(score, score)}"
                yield name, study.difference(arm, first, score), study.published(arm, score, first)

    def _study(self, arm: str) -> tuple[Study, str]:
        """The file of an arm, and what that file calls it."""
        path, told = self._path(arm), self._told(arm)
        if (path, told.get("of")) not in self._studies:
            self._studies[path, told.get("of")] = Study(path, told.get("of"))
        return self._studies[path, told.get("of")], str(told["arm"])

    def _path(self, arm: str) -> Path:
        return self.folder / "results" / f"{self._told(arm).get('file', self.file)}.json"

    def _told(self, arm: str) -> dict[str, str]:
        if arm not in self.arms:
            raise ValueError(f"{self.folder / 'claims.yaml'} names no arm {arm!r}; it names {', '.join(self.arms)}")
        return self.arms[arm] if isinstance(self.arms[arm], dict) else {"arm": self.arms[arm]}

    def _mean(self, arm: str, score: str) -> Interval | None:
        study, label = self._study(arm)
        return study.mean(label, self.scores.get(score, score))

    def _difference(self, arm: str, against: str, score: str) -> Interval:
        (study, ours), (other, theirs) = self._study(arm), self._study(against)
        if study.path != other.path:
            raise ValueError(f"{arm} and {against} of {self.folder} are of two files and cannot be paired")
        name = self.scores.get(score, score)
        return study.difference(ours, theirs, name) if study is other else study.from_rows(ours, name, theirs, other)

    def _published(self, arm: str, against: str, score: str) -> float | None:
        study, label = self._study(arm)
        return study.published(label, self.scores.get(score, score), self._study(against)[1])

    def table(self, name: str) -> str:
        """A table of ``tables`` in Markdown."""
        wanted = self.tables[name]
        arms, scores = wanted.arms or list(self.arms), wanted.scores or list(self.scores)
        lines = [["", *scores], ["---"] * (len(scores) + 1)]
        lines += [[arm, *(_cell(self._mean(arm, score)) for score in scores)] for arm in arms]
        for arm in arms[1:] if wanted.differences else []:
            lines.append([f"{arm}, less {arms[0]}", *(_cell(self._difference(arm, arms[0], one)) for one in scores)])
            theirs = [self._published(arm, arms[0], score) for score in scores]
            if any(one is not None for one in theirs):
                lines.append(["published", *("" if one is None else f"{one:+.3f}" for one in theirs)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _only(told: Mapping[str, Any], known: set[str], where: object) -> None:
    if odd := sorted(set(told) - known):
        raise ValueError(f"{where}: unknown key {odd[0]!r} in claims.yaml; choose from {', '.join(sorted(known))}")


def _built(kind: Any, told: Mapping[str, Any], folder: Path, name: str) -> Any:
    _only(told, set(kind.__dataclass_fields__), f"{folder.name}, {name}")
    return kind(**told)


def _of_all(words: set[str]) -> str:
    """Of all signs together: one that is opposite refutes them, one that is undecided leaves them so."""
    return OPPOSITE if OPPOSITE in words else SHOWN if words == {SHOWN} else UNDECIDED


def _listed(names: list[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def _printed(found: Interval, percent: bool = False) -> str:
    if not percent:
        return str(found)
    return f"{found.mean:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _cell(found: Interval | None) -> str:
    """Nothing where the arm has no such score; a number alone where it has no interval."""
    if found is None:
        return ""
    return f"{found.mean:.3f}" if math.isnan(found.low) else str(found)


def pages() -> list[Path]:
    """Every page whose verdicts are computed."""
    return [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "experiments").glob("*/README.md"))]


def written(text: str, folder: Path = ROOT / "experiments") -> str:
    """A page with its claims and tables as the results have them now.

    Raises:
        ValueError: If it asks for a claim or a table that is not declared.
    """

    def block(match: re.Match[str]) -> str:
        kind, name, rest, _ = match.groups()
        declared, names = Declared(folder / name), rest.split()
        known = declared.claims if kind == "claims" else declared.tables
        if unknown := [one for one in names if one not in known]:
            raise ValueError(f"{name}/claims.yaml declares no {kind} {unknown[0]!r}; it has {', '.join(known)}")
        made = [(declared.line if kind == "claims" else declared.table)(one) for one in names or known]
        return f"<!-- {kind}: {name}{rest} -->\n" + "\n".join(made) + "\n<!-- end -->"

    return BLOCK.sub(block, text)


def stray_words(text: str) -> list[str]:
    """Verdict words that nothing computed. A word in quotation marks is one that is explained."""
    prose = re.sub(r'```.*?```|`[^`]*`|"[^"]*"|\]\([^)]*\)', "", BLOCK.sub("", text), flags=re.DOTALL)
    return [match.group(0) for match in VERDICT_WORD.finditer(prose)]


def main() -> None:
    """Check every page, or write what differs."""
    for path in pages():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        made = written(text)
        if made != text and "--write" not in sys.argv:
            sys.exit(f"{name} does not say what the results say: python -m experiments.claims --write")
        if odd := stray_words(made):
            sys.exit(f"{name} has the verdict word {odd[0]!r} that nothing computed; declare a claim in claims.yaml")
        if made != text:
            write_text(path, made)
            print(f"written: {name}")


if __name__ == "__main__":
    main()
