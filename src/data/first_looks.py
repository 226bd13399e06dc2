"""Arguments that can be looked at before anything that takes long is read: files, folders, names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from src.data.images import load_folder
from src.data.mentions import check_name
from src.data.schema import NOUN


# By identity: a union hashes what its members are annotated with.
@dataclass(frozen=True, eq=False)
class FirstLook:
    """Marks an argument whose value is looked at before a model is read; lists and mappings are, value by value.

    Attributes:
        look: Reads as little as tells whether the value can be used; raises ValueError if it cannot.
        missing: The sentence if the argument is None; empty where it may be.
    """

    look: Callable[[str], object]
    missing: str = ""


def looks_local(path: str) -> bool:
    """Tell whether a path means a local folder and not a hub id: it starts like one, or its first folder exists."""
    return path.startswith((".", "/", "~")) or Path(*Path(path).parts[:1]).exists()


def _model(place: str) -> None:
    if looks_local(place) and not Path(place).expanduser().exists():
        raise ValueError(f"there is no model at {place}")


def is_gguf(path: Path) -> bool:
    """Tell by its first bytes whether a file is of GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _language_model(place: str) -> None:
    whole = Path(place).expanduser()
    if looks_local(place) and not is_gguf(whole) and not (whole / "config.json").exists():
        raise ValueError(f"{place} is no language model folder: it has no config.json, and it is no GGUF file")


def _noun(text: str) -> None:
    expected = NOUN(text)
    if expected:
        raise ValueError(f"class_noun is {text[:80]!r}; give {expected}")


ImageFolder = Annotated[str, FirstLook(load_folder)]
"""A folder of images, all of which can be read."""
ModelPlace = Annotated[str, FirstLook(_model)]
"""A folder or file of a model, or its name on the hub."""
LanguageModelPlace = Annotated[str, FirstLook(_language_model)]
"""A folder of a language model, or its name on the hub."""
ClassNoun = Annotated[str, FirstLook(_noun)]
"""The plain word for what a subject is."""
ConceptName = Annotated[str, FirstLook(lambda name: check_name(name, "concept"))]
"""What prompts may call a concept."""
