"""A concept under test, as scoring sees it: a name to prompt with, a class noun, and reference images."""

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image
from safetensors import SafetensorError, safe_open

from src.data.images import load_folder
from src.data.world.render import render
from src.data.world.scenes import subject_scene

WORLD = "world:"
NUM_WORLD_REFERENCES = 5


@dataclass(frozen=True)
class ScoredConcept:
    """One personalised subject.

    Attributes:
        name: What prompts call it, as ``<name>``.
        class_noun: The plain word for its kind, which the control uses.
        references: Real images of it.
    """

    name: str
    class_noun: str
    references: list[Image.Image]


def scored_concepts(banks: Mapping[str, str], references: Mapping[str, str]) -> list[ScoredConcept]:
    """Read what scoring must know about each concept.

    Args:
        banks: Concept name to bank file; its metadata holds ``class_noun`` and may hold ``references``.
        references: Concept name to an image folder or ``world:INDEX``; what is not here comes from the bank.

    Raises:
        ValueError: If a file is no bank, or a concept has no references.
    """
    for name in references:
        if name not in banks:
            raise ValueError(f"references.{name} is given, but no bank of that name; add bank.{name}=PATH")
    concepts = []
    for name, path in banks.items():
        metadata = _metadata(path)
        source = references.get(name) or metadata.get("references")
        if not source:
            raise ValueError(
                f"no reference images for {name}: add references.{name}=FOLDER, or references.{name}=world:INDEX"
            )
        concepts.append(ScoredConcept(name, metadata["class_noun"], read_references(source, metadata["class_noun"])))
    return concepts


def read_references(source: str, class_noun: str) -> list[Image.Image]:
    """Images of a folder, or five views of a held-out subject of the world.

    Raises:
        ValueError: If the folder cannot be read, or ``world:`` is not followed by a number.
    """
    if not source.startswith(WORLD):
        return load_folder(source)
    index = source.removeprefix(WORLD)
    if not index.isdecimal():
        raise ValueError(f"references {source!r} should be {WORLD} and the number of a subject, e.g. {WORLD}3")
    return [render(subject_scene(int(index), view, class_noun)) for view in range(NUM_WORLD_REFERENCES)]


def _metadata(path: str) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the bank {path}: {error}") from None
    if "class_noun" not in metadata:
        raise ValueError(f"{path} is no concept bank: its metadata has no class_noun")
    return metadata
