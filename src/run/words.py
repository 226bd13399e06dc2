"""The words of a command line, before Hydra reads them: flags, groups, and values that need quotes."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from hydra._internal.utils import get_args_parser

from src.data.commands import argument
from src.run.targets import CONF


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Move flags and their values before all keys, between which Hydra does not take them."""
    pairs = list(zip(arguments, _flags(arguments), strict=True))
    return [word for word, flag in pairs if flag] + [word for word, flag in pairs if not flag]


def _flags(arguments: Sequence[str]) -> list[str | None]:
    """For each word the flag that it is, or is the value of; None for the others."""
    known = get_args_parser()._option_string_actions
    found: list[str | None] = []
    before = None
    for word in arguments:
        name, equals, _ = word.partition("=")
        found.append(before or (name if name.startswith("-") else None))
        takes_value = name in known and known[name].nargs is None and not equals
        before = name if takes_value and not before else None
    return found


def refuse_words(arguments: Sequence[str]) -> None:
    """Refuse what is no ``key=value``, in words of ours.

    Raises:
        ValueError: With the first such word, and what to type.
    """
    known = get_args_parser()._option_string_actions
    _refuse_split(arguments)
    for word, flag in zip(arguments, _flags(arguments), strict=True):
        name, equals, value = word.partition("=")
        if flag is None:
            _refuse_word(word, name, equals, value)
        elif flag not in known:
            key = name.lstrip("-").replace("-", "_")
            raise ValueError(f"there is no flag {name}; keys are written without dashes: {key}={value or 'VALUE'}")
        elif flag in ("--experimental-rerun", "--experimental_rerun") or flag.startswith("--exp"):
            raise ValueError(f"there is no flag {name}; an experiment is written experiment={value or 'NAME'}")
        elif equals and (choices := list(map(str, known[flag].choices or ()))) and value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of: {', '.join(choices)}")


def _refuse_split(arguments: Sequence[str]) -> None:
    """Refuse a prompt that the shell has cut at its spaces, as it has no quotes."""
    for at, word in enumerate(arguments):
        if word.startswith(("prompt=", "style_prompt=")):
            rest = list(takewhile(lambda other: "=" not in other and not other.startswith("-"), arguments[at + 1 :]))
            if rest:
                whole = " ".join([word, *rest])
                raise ValueError(
                    f"{whole} stands in no quotes, so the shell cuts it at its spaces; type {quoted(whole)}"
                )


def _refuse_word(word: str, name: str, equals: str, value: str) -> None:
    key = name.lstrip("+~")
    if not equals and not name.startswith("~"):
        is_experiment = (CONF / "experiment" / f"{word}.yaml").exists()
        advice = f"did you mean experiment={word}?" if is_experiment else f"write {key or 'KEY'}=VALUE"
        raise ValueError(f"{word!r} is no key=value; {advice}")
    if not key:
        raise ValueError(f"{word!r} has no key; write KEY{equals}{value}")
    if value.startswith("="):
        raise ValueError(f"{word.lstrip('+')} has two equals signs; write {key}={value.lstrip('=')}")
    group = CONF / key
    if equals and group.is_dir() and re.fullmatch(r"null|true|false|[\d.+-]*|\[.*|\{.*", value, re.IGNORECASE):
        names = sorted({path.relative_to(group).parts[0].removesuffix(".yaml") for path in group.rglob("*.yaml")})
        raise ValueError(f"{key} is {value or 'empty'}, but it takes a name; choose one of: {', '.join(names)}")


def quoted(word: str) -> str:
    """Write ``key=value`` so that the shell and Hydra leave the value as it is."""
    name, _, value = word.partition("=")
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value.strip("'\"")
    return argument(name.lstrip("+~"), bare)


def needs_quotes(word: str, problem: str = "") -> str:
    """The sentence for an override that Hydra cannot read."""
    why = "commas, brackets, colons, quotes and signs stand in quotes of their own"
    return f"{word.lstrip('+')} cannot be read{problem}: in a value, {why}; type {quoted(word)}"


def shortened(sentence: Any, most: int = 600) -> str:
    """One line; of a long one the beginning and the end, where the advice is."""
    text = " ".join(str(sentence).split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 3 :]}"
