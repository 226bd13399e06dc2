"""The words that a model was taught: a small one may carry their list beside its weights, and what it lacks is said."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from src.data.files import write_text

NAME = "words.txt"
"""The list in a model's folder: words in lower case, with white space between."""
SHOWN = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownWords:
    """All words of the captions that a model has seen.

    Attributes:
        path: File that lists them.
        words: In lower case.
    """

    path: Path
    words: frozenset[str]

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """Read the list in a model's folder; None where there is none, as beside every large model."""
        path = Path(folder).expanduser() / NAME
        return cls(path, frozenset(path.read_text(encoding="utf-8").split())) if path.is_file() else None

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """List the words of some texts that the model was never taught, in their order, each once."""
        found = [word for text in texts for word in re.findall(r"[^\W\d_]{2,}", text.lower())]
        return [word for word in dict.fromkeys(found) if word not in self.words]


def write_known_words(folder: str | Path, words: Iterable[str]) -> None:
    """Write the list into a model's folder."""
    write_text(Path(folder) / NAME, "\n".join(sorted(words)) + "\n")


def warn_of_unknown(known: KnownWords | None, texts: Sequence[str]) -> None:
    """Say which words of some texts the model was never taught, if it carries a list of what it was."""
    unknown = known.unknown(texts) if known else []
    if known and unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        _log.warning(
            "this model was never taught %s%s: what these words mean will not be seen in its pictures; it knows the "
            "words in %s",
            ", ".join(unknown[:SHOWN]),
            more,
            known.path,
        )
