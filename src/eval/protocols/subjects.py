"""A concept under test, as scoring sees it: a name to prompt with, a class noun, and reference images."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class ConceptSource:
    """What is known of a concept before its images are read, and perhaps before its bank is trained.

    Attributes:
        class_noun: The plain word for its kind.
        references: An image folder or ``world:INDEX``; empty if it has to be given.
    """

    class_noun: str
    references: str


def bank_source(path: str) -> ConceptSource:
    """What a bank's own metadata says.

    Raises:
        ValueError: If the file is no bank.
    """
    metadata = _metadata(path)
    return ConceptSource(metadata["class_noun"], metadata.get("references", ""))


def scored_concepts(sources: Mapping[str, ConceptSource], references: Mapping[str, str]) -> list[ScoredConcept]:
    """Read what scoring must know about each concept.

    Args:
        sources: By concept name.
        references: Concept name to an image folder or ``world:INDEX``, in place of the source's own.

    Raises:
        ValueError: If a concept has no references, or they cannot be read.
    """
    for name in references:
        if name not in sources:
            raise ValueError(f"references.{name} is given, but no bank of that name; add bank.{name}=PATH")
    concepts = []
    for name, source in sources.items():
        images = references.get(name) or source.references
        if not images:
            raise ValueError(
                f"no reference images for {name}: add references.{name}=FOLDER, or references.{name}=world:INDEX"
            )
        concepts.append(ScoredConcept(name, source.class_noun, read_references(images, source.class_noun)))
    return concepts


def check_references(concepts: Sequence[ScoredConcept]) -> None:
    """Refuse a concept whose ceiling, the likeness of its references to each other, does not exist.

    Raises:
        ValueError: If one has a single reference.
    """
    for concept in concepts:
        if len(concept.references) < 2:
            raise ValueError(f"{concept.name} has one reference image; the ceiling compares at least two")


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
