"""A picture drawn again: ``python generate.py from=IMAGE.png``, by the note in its file."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from src.data.commands import override
from src.data.mentions import mentioned

if TYPE_CHECKING:
    from src.data.notes import Note

FROM = "from="
OF_THE_CALL = ("prompt", "seed", "num_images", "output", "dry_run", "name", "style", "style_prompt")
"""Keys that a note has beside its command, or that are about where and how many."""
PLACES = ("paths.", "hydra.", "hydra/")


def key_of(argument: str) -> str:
    """The key that an argument sets, without Hydra's marks."""
    return argument.lstrip("+~").partition("=")[0]


def worth_noting(arguments: Sequence[str]) -> list[str]:
    """What of a command's arguments a picture depends on, wherever it is drawn."""
    return [one for one in arguments if key_of(one) not in OF_THE_CALL and not key_of(one).startswith(PLACES)]


def recalled(arguments: Sequence[str]) -> list[str]:
    """Replace ``from=IMAGE`` by the arguments that drew the image; those that stand beside it win.

    Raises:
        ValueError: If the image does not say how it was drawn, or no command of ``generate.py`` drew it.
    """
    images = [argument.removeprefix(FROM).strip("'\"") for argument in arguments if argument.startswith(FROM)]
    if not images:
        return list(arguments)
    # Seconds of imports, which other commands need not wait for.
    from src.data.notes import read_note

    note = read_note(images[-1])
    if note.command is None:
        raise ValueError(
            f"{images[-1]} was drawn by an evaluation or a training, which notes no command; type one with its "
            f"{override('prompt', note.prompt)} and {override('seed', note.seed)}"
        )
    typed = [argument for argument in arguments if not argument.startswith(FROM)]
    whole = {key_of(argument): argument for argument in (*_of(note), *typed)}
    print(f"as {images[-1]}: python generate.py {shlex.join(whole.values())}", file=sys.stderr)
    _say_other_files(note, whole)
    return list(whole.values())


def _of(note: "Note") -> list[str]:
    """The arguments that draw the picture of a note, and no other."""
    named = mentioned(note.prompt)
    apart = [f"{group}.{name}" for group in ("bank", "layout") for name in named]
    kept = [
        one for one in note.command or () if key_of(one) in apart or not key_of(one).startswith(("bank.", "layout."))
    ]
    told = {"prompt": note.prompt, "seed": note.seed, "num_images": 1, **note.style}
    return [*kept, *(override(*one) for one in told.items())]


def _say_other_files(note: "Note", whole: Mapping[str, str]) -> None:
    """Say which concept is not the one that the picture was drawn with."""
    from src.data.banks import concept_header
    from src.data.schema import RefusedFileError

    for key, digest in note.drawn_with.items():
        path = whole.get(key, "").partition("=")[2].strip("'\"")
        if not key.startswith("bank.") or not path:
            continue
        try:
            same = concept_header(path).get("sha256", digest) == digest
        except RefusedFileError:
            continue  # Said when it is loaded.
        if not same:
            print(f"note: {path} is not the file that the picture was drawn with", file=sys.stderr)
