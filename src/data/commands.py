"""Commands to type, as they are printed: a value of any content comes back from the shell and from Hydra as it was."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_MEANS_ELSE = re.compile(r"null|true|false|nan|inf", re.IGNORECASE)
"""Words that are no text in YAML."""


def command(script: str, settings: Mapping[str, Any]) -> str:
    """Write ``python <script> key=value ...`` for a POSIX shell."""
    return " ".join(["python", in_shell(script), *(in_shell(override(*one)) for one in settings.items())])


def override(key: str, value: Any) -> str:
    """Write ``key=value`` as Hydra reads it; a ``$`` in a text is no reference."""
    return f"{key}={_in_hydra(value)}"


def argument(key: str, value: Any) -> str:
    """Write ``key=value`` for Hydra and for a POSIX shell around it."""
    return in_shell(override(key, value))


def _in_hydra(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_in_hydra(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_hydra, value))}]"
    if isinstance(value, int | float):
        return str(value)
    value = str(value)
    if _PLAIN.fullmatch(value) and not _MEANS_ELSE.fullmatch(value):
        return value
    # A backslash is doubled where it would escape what follows it: a reference, a quote, the quote at the end.
    text = re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", value)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f"'{text}'"


def in_shell(word: str) -> str:
    """Quote a word for a POSIX shell."""
    quoted = shlex.quote(word)
    # Texts are quoted for Hydra by ' already: between " they stay readable, where the shell changes nothing in them.
    return f'"{word}"' if quoted != word and not re.search(r'["$`\\!\n]', word) else quoted
