"""A picture that is dropped on the page: the settings that drew it, as far as this desk can use them."""

from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from src.data.images import decode_image
from src.data.notes import Note, read_note
from src.run.desk.cells import check_typed
from src.run.desk.places import Places
from src.run.recall import key_of


def recalled_settings(data: bytes, places: Places, known: Collection[str]) -> dict[str, Any]:
    """Read the note of a PNG.

    Args:
        data: The file.
        places: Folders that files may come from.
        known: Paths of the banks that the desk has.

    Returns:
        ``prompt``, ``seed``, ``banks`` by name, ``style``, ``typed`` words of other settings, and ``left_out``:
        sentences about what could not be taken over.

    Raises:
        ValueError: If it is no picture of ours.
    """
    decode_image(BytesIO(data), "that was dropped", min_side=1)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "dropped.png"
        path.write_bytes(data)
        try:
            note = read_note(str(path))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the dropped picture")) from None
    return _settings(note, places, known)


def _settings(note: Note, places: Places, known: Collection[str]) -> dict[str, Any]:
    banks, typed, left_out = dict[str, str](), list[str](), list[str]()
    for word in note.command or ():
        key, value = key_of(word), word.partition("=")[2].strip("'\"")
        try:
            check_typed(word, places)
        except ValueError as error:
            left_out.append(str(error))
            continue
        if key.startswith("bank."):
            name = key.removeprefix("bank.")
            banks[name] = value
            if value not in known:
                left_out.append(f"the bank of <{name}>, {value}, is not on this desk any more")
        else:
            typed.append(word.lstrip("+"))
    if note.command is None:
        left_out.append("an evaluation or a training drew it, which notes prompt and seed alone")
    style = dict(note.style)
    if "style" in style and not places.holds(style["style"]):
        left_out.append(f"the style {style.pop('style')} is in none of the folders of this desk")
    return {
        "prompt": note.prompt,
        "seed": note.seed,
        "banks": banks,
        "style": style,
        "typed": typed,
        "left_out": left_out,
    }
