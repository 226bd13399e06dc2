"""The ``model_index.json`` of a pipeline's folder: the classes that it names are checked first."""

from pathlib import Path
from typing import Any

from src.data.schema import RefusedFileError, read_json

LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "src.modules.next_scale", "src.modules.scale_ar")
"""Libraries whose classes a folder may name; ``stable_diffusion`` holds diffusers' safety checker."""


def read_model_index(folder: str | Path) -> dict[str, Any]:
    """Read the names of a pipeline's class and parts.

    Raises:
        RefusedFileError: If it is missing or damaged, or names a class of another library or code in the folder.
    """
    path = Path(folder).expanduser() / "model_index.json"
    index = read_json(path, "the index of a pipeline")
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise RefusedFileError(f"{path} is no index of a pipeline: its _class_name is no name of a class")
    for part, value in index.items():
        if not _is_a_part(part, value):
            continue
        library, class_name = value
        named = isinstance(library, str) and isinstance(class_name, str) and class_name.isidentifier()
        if not named or not any(library == one or library.startswith(f"{one}.") for one in LIBRARIES):
            raise RefusedFileError(
                f"{path} wants {str(value)[:80]} for its {part[:40]!r}, but a pipeline is made of classes of "
                f"{', '.join(LIBRARIES[:2])} alone: code that comes with a model is not run"
            )
    return index


def _is_a_part(name: str, value: object) -> bool:
    """Whether diffusers reads an entry as a library and a class of it; two nulls stand for a part that is left out."""
    if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
        return False
    return value != [None, None] and any(isinstance(one, str) for one in value)
