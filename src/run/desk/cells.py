"""A cell of the grid: settings of generate.py, which draw one picture, and the command that draws it again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from src.data.commands import in_shell, override
from src.run.desk.places import Places
from src.run.recall import key_of
from src.run.targets import CONF
from src.run.words import needs_quotes

Value = str | int | float | bool | None | list
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
TEXTS = ("prompt", "style_prompt", "negative_prompt")
"""Last names of keys whose values are words, whatever they look like."""
OF_THE_DESK = ("output", "dry_run", "name", "task", "num_images", "from", "defaults", "resume", "sweep", "experiment")
"""Keys that the desk sets itself, or that make no picture."""
MOST_WORDS, LONGEST, MOST_VALUES = 100, 4000, 64


@dataclass(frozen=True)
class Cell:
    """What one picture is drawn from.

    Attributes:
        settings: Key of generate.py to its value, in the order in which the command has them.
        typed: Further ``key=value`` as typed on a command line.
        alone: Whether the desk's own settings, such as its backbone, are left out.
    """

    settings: Mapping[str, Value]
    typed: Sequence[str] = ()
    alone: bool = False

    @classmethod
    def read(cls, told: Any, places: Places) -> "Cell":
        """Check what a page asks for.

        Raises:
            ValueError: If it makes no sense, names a key that the desk sets itself, or a file that it may not.
        """
        settings, typed, alone = (told.get(key) for key in ("settings", "typed", "alone"))
        well_formed = isinstance(settings, dict) and isinstance(typed, list | None) and isinstance(alone, bool | None)
        words = typed or []
        if not well_formed or len(settings) + len(words) > MOST_WORDS or not all(isinstance(one, str) for one in words):
            raise ValueError("a cell has settings, an object, and typed, a list of words key=value; reload the page")
        cell = cls(settings, words, bool(alone))
        for key, value in settings.items():
            check_key(key)
            for text in _leaves(value):
                check_text(key, text, places)
        for word in words:
            check_typed(word, places)
        return cell

    def words(self, base: Sequence[str]) -> list[str]:
        """Write the arguments of generate.py, as they are typed.

        Args:
            base: Arguments that the desk was started with.
        """
        own = [override(key, value) for key, value in self.settings.items()]
        given = {key_of(word) for word in (*own, *self.typed)}
        kept = [word for word in base if not self.alone and key_of(word) not in given]
        return [*kept, *own, *self.typed, "num_images=1"]

    def command(self, base: Sequence[str]) -> str:
        """Write the command for a POSIX shell; it draws the same picture, byte for byte."""
        return " ".join(["python generate.py", *(in_shell(word) for word in self.words(base))])


def check_key(key: str) -> None:
    """Refuse keys that the desk sets itself, that write elsewhere, or that are none.

    Raises:
        ValueError: If it is one.
    """
    if not isinstance(key, str) or not KEY.fullmatch(key) or len(key) > 200:
        raise ValueError(f"{str(key)[:80]!r} is no key of generate.py; write it as its --help does, a.b.c")
    first = key.partition(".")[0]
    if first in ("paths", "hydra", "desk") or key in OF_THE_DESK or key.endswith("_target_") or "cache_dir" in key:
        raise ValueError(f"{key} is set by the desk itself; type it behind python generate.py instead")


def check_text(key: str, text: str, places: Places) -> None:
    """Refuse a text that is too long, or that names a file which the desk may not read.

    Raises:
        ValueError: If it does.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{key} has {len(text)} characters; give at most {LONGEST}")
    if key.rpartition(".")[2] in TEXTS:
        return
    option = CONF / key / f"{text}.yaml"
    if (CONF / key).is_dir() and ".." not in Path(text).parts and (option.exists() or (CONF / key / text).is_dir()):
        return
    looks_like_one = re.search(r"[/\\]|^[.~]", text) is not None
    if looks_like_one or _is_there(text):
        places.check(key, text)


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return True


def check_typed(word: str, places: Places) -> None:
    """Refuse a word that is no ``key=value`` of one picture, or that a setting could not be.

    Raises:
        ValueError: If it is one.
    """
    key, equals, value = word.lstrip("+").partition("=")
    if not equals or len(word) > LONGEST:
        raise ValueError(f"{word[:80]!r} is no key=value; write KEY=VALUE")
    check_key(key)
    parsed = _parsed(word)
    if parsed.is_sweep_override():
        raise ValueError(f"{key}={value} are several values; make {key} an axis of the grid")
    found = parsed.value()
    for text in _leaves(found):
        if "${" in text:
            raise ValueError(f"{key} refers to another key by $; write the value itself")
        check_text(key, text, places)


def axis(key: str, values: str, places: Places) -> list[str]:
    """Split the values of an axis as Hydra splits a sweep's: ``1,2,5``, ``range(1,5)`` or ``a,b``.

    Returns:
        A word ``key=value`` for each.

    Raises:
        ValueError: If the key or a value may not be, or there are none or too many.
    """
    check_key(key)
    if not values.strip():
        raise ValueError(f"{key} has no values; give some between commas, such as {key}=1,2,5")
    parsed = _parsed(f"{key}={values}")
    words = [f"{key}={values.strip()}"]
    if parsed.is_sweep_override():
        texts = parsed.sweep_string_iterator()
        words = [f"{key}={text}" for text, _ in zip(texts, range(MOST_VALUES + 1), strict=False)]
    if len(words) > MOST_VALUES:
        raise ValueError(f"{key} has more than {MOST_VALUES} values; give fewer")
    for word in words:
        check_typed(word, places)
    return words


def _parsed(word: str) -> Any:
    try:
        return OverridesParser.create().parse_override(word)
    except Exception as error:
        raise ValueError(needs_quotes(word)) from error


def _leaves(value: Any) -> Iterator[str]:
    """Every text in a value, names of its keys too."""
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
