"""Concepts under test: what they are called, what they are, and the images that show them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from src.data.banks import concept_header, subjects_of
from src.data.images import Picture, readable_images
from src.data.mentions import check_name


@dataclass(frozen=True)
class Concept:
    """One personalised subject.

    Attributes:
        name: What prompts call it, as ``<name>``.
        class_noun: The plain word for its kind, which the control uses.
        references: Real images of it, or their files.
        source: Where they come from, as of ``ConceptSource.references``.
        prompts: Its own templates, with ``{}`` where it stands; empty for those that a protocol has for all.
        category: What it is one of; empty if nobody groups concepts.
    """

    name: str
    class_noun: str
    references: Sequence[Picture]
    source: str = ""
    prompts: Sequence[str] = ()
    category: str = ""


@dataclass(frozen=True)
class ConceptSource:
    """What is known of a concept before its images are read, and perhaps before its bank is trained.

    Attributes:
        class_noun: The plain word for its kind.
        references: An image folder, or ``KIND:NAME`` for a reader of that kind; empty if it has to be given.
        prompts: As of ``Concept``.
        category: As of ``Concept``.
    """

    class_noun: str
    references: str
    prompts: Sequence[str] = ()
    category: str = ""


Reader = Callable[[str, str], Sequence[Picture]]
"""From what stands behind the colon of a source, and a class noun, to reference images."""


def bank_source(path: str, name: str = "") -> ConceptSource:
    """What the metadata of a bank, or of a rival's concept, says.

    Args:
        path: The file.
        name: What prompts call the concept, which tells it from others that were learnt together with it.

    Raises:
        RefusedFileError: If the file is neither.
    """
    metadata = concept_header(path)
    metadata |= subjects_of(metadata).get(name, {})
    return ConceptSource(metadata["class_noun"], metadata.get("references", ""))


def read_concepts(
    sources: Mapping[str, ConceptSource], references: Mapping[str, str], readers: Mapping[str, Reader]
) -> list[Concept]:
    """Read what scoring must know about each concept.

    Args:
        sources: By concept name.
        references: Concept name to an image folder or ``KIND:NAME``, in place of the source's own.
        readers: By kind, what reads references that are no folder.

    Raises:
        ValueError: If no prompt can name a concept, or it has no references, or they cannot be read.
    """
    for name in sources:
        check_name(name, "the name of a bank")
    for name in references:
        if name not in sources:
            raise ValueError(f"references.{name} is given, but no bank of that name; add bank.{name}=PATH")
    concepts = []
    for name, source in sources.items():
        place = references.get(name) or source.references
        if not place:
            ways = ["FOLDER", *(f"{kind}:INDEX" for kind in readers)]
            raise ValueError(
                f"no reference images for {name}: add {', or '.join(f'references.{name}={way}' for way in ways)}"
            )
        kind, colon, rest = place.partition(":")
        read = colon and kind in readers
        images = readers[kind](rest, source.class_noun) if read else readable_images(place)
        concepts.append(Concept(name, source.class_noun, images, place, source.prompts, source.category))
    return concepts


def check_references(concepts: Sequence[Concept]) -> None:
    """Refuse a concept whose ceiling, the likeness of its references to each other, does not exist.

    Raises:
        ValueError: If one has a single reference.
    """
    for concept in concepts:
        if len(concept.references) < 2:
            raise ValueError(
                f"{concept.name} has one reference image, but the ceiling compares at least two; add another, or score "
                "without it by protocol=concept protocol.ceiling=false"
            )
