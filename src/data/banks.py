"""The files of concepts, of LaTexBlend's banks and of its rivals: what their metadata and tensors must be."""

import json
from typing import Annotated

from safetensors import SafetensorError, safe_open

from src.data.first_looks import FirstLook
from src.data.schema import (
    HASH,
    LONGEST,
    NAME,
    NOUN,
    TEMPLATE,
    FileKind,
    Metadata,
    RefusedFileError,
    Shapes,
    matching,
    number,
    one_of,
    read_object,
    shown,
)

MOST_ROWS = 64
"""Most tokens of a concept; text encoders take 77 in all, and a noun has a few."""


def _shapes(metadata: Metadata, shapes: Shapes) -> str | None:
    """What is wrong with the tensors."""
    if metadata.get("attention") == "joint":
        return _joint(shapes)
    for name, shape in shapes.items():
        kind, dot, layer = name.partition(".")
        if kind not in ("k", "v") or not dot or not layer or not name.isprintable():
            return f"it holds {name[:80]!r}, but rows are named k.LAYER and v.LAYER"
        if len(shape) != 2 or not 2 <= shape[0] <= MOST_ROWS or not shape[1]:
            return f"{name[:80]!r} has shape {tuple(shape)}, but rows are (2 to {MOST_ROWS} tokens, width)"
        other = shapes.get(f"{'v' if kind == 'k' else 'k'}.{layer}")
        if other is None:
            return f"{name[:80]!r} has no partner: each layer has keys and values"
    numbers = sorted({shape[0] for shape in shapes.values()})
    return None if len(numbers) == 1 else f"its layers have {numbers[0]} and {numbers[-1]} rows, not equally many"


def _joint(shapes: Shapes) -> str | None:
    """What is wrong with offsets of text, and with changes of its projections."""
    if len(rows := shapes.get("text", ())) != 2 or not 2 <= rows[0] <= MOST_ROWS:
        return f"its offsets of text have shape {tuple(rows)}, but rows are (2 to {MOST_ROWS} tokens, width)"
    for name, shape in shapes.items():
        part, _, layer = name.partition(".")
        if name != "text" and (part not in ("down", "up", "add") or layer[:2] not in ("k.", "v.") or len(shape) != 2):
            return f"it holds {name[:80]!r}, but changes are down.LAYER, up.LAYER and add.LAYER, of two axes"
        if part == "add" and shape[0] != rows[0]:
            return f"{name[:80]!r} has {shape[0]} rows, but its text has {rows[0]}"
        other = shapes.get(f"{'up' if part == 'down' else 'down'}.{layer}") if part in ("down", "up") else shape
        if other is None or part == "down" and other[1] != shape[0]:
            return f"{name[:80]!r} has no partner of its rank: a change is up.LAYER times down.LAYER"
    return None


CONCEPT_BANK = FileKind(
    name="a concept bank",
    format="atelier-concept-bank-1",
    required={"class_noun": NOUN, "backbone_hash": HASH},
    optional={
        "backbone": shown(),
        "backbone_content": HASH,
        "modifier_token": matching(r"<[A-Za-z0-9_.-]{1,100}>", "a name in angle brackets"),
        "references": shown(4096),
        "templates": one_of("pool", "fixed"),
        "extraction_template": TEMPLATE,
        "bank_templates": one_of("one", "all"),
        "attention": one_of("joint"),
        "reading": one_of("concept", "offsets", "constant", "all"),
        "seed": number(-(2**63), 2**64 - 1),
        "steps": number(0, 10**12),
        "training": shown(20_000),
    },
    shapes=_shapes,
    made_by="; training writes one to <run folder>/exports/*.safetensors",
)


def _parts(metadata: Metadata, shapes: Shapes) -> str | None:
    """What is wrong with the tensors of a rival's concept."""
    for name, shape in shapes.items():
        part = name.partition(".")[0]
        if part not in PARTS or not name.isprintable() or len(name) > 300:
            return f"it holds {name[:80]!r}, but its tensors are {', '.join(f'{one}.NAME' for one in PARTS)}"
        if len(shape) not in (1, 2):
            return f"{name[:80]!r} has {len(shape)} axes, but vectors have one and changes of layers two"
        other = shapes.get(name.replace("down.", "up.", 1)) if part == "down" else None
        if part == "down" and (other is None or other[-1] != shape[0]):
            return f"{name[:80]!r} has no partner of its rank: a change of low rank is up.LAYER times down.LAYER"
    return None


PARTS = ("token", "residual", "full", "down", "up")
"""Tensors of a rival's concept: embeddings of its tokens, what is added to text states, and changes of layers."""


def _subjects(text: str) -> str | None:
    """What is expected of the subjects of a combination."""
    expected = "names, each with the class_noun and the references of a subject"
    try:
        told = read_object(text) if len(text) <= LONGEST else {}
    except ValueError:
        told = {}
    fields = {"class_noun": NOUN, "references": shown(4096)}
    good = told and all(
        NAME(name) is None
        and isinstance(one, dict)
        and one.keys() == fields.keys()
        and all(isinstance(one[key], str) and check(one[key]) is None for key, check in fields.items())
        for name, one in told.items()
    )
    return None if good else expected


def subjects_of(metadata: Metadata) -> dict[str, dict[str, str]]:
    """Name of each subject that was learnt together to its ``class_noun`` and ``references``; none of one alone."""
    return json.loads(metadata["subjects"]) if "subjects" in metadata else {}


LEARNT_CONCEPT = FileKind(
    name="a concept of a rival method",
    format="atelier-concept-1",
    required={"method": NAME, "class_noun": NOUN, "backbone_hash": HASH},
    optional={
        "backbone": shown(),
        "backbone_content": HASH,
        "references": shown(4096),
        "subjects": _subjects,
        "seed": number(-(2**63), 2**64 - 1),
        "steps": number(0, 10**12),
        "training": shown(20_000),
    },
    shapes=_parts,
    made_by="; train.py with method=NAME writes one to <run folder>/exports/*.safetensors",
)


def concept_header(path: str) -> dict[str, str]:
    """Read the metadata of a concept of any method; that of a bank has no ``method``.

    Raises:
        RefusedFileError: If the file is neither a bank nor a rival's concept.
    """
    return (LEARNT_CONCEPT if _format(path) == LEARNT_CONCEPT.format else CONCEPT_BANK).read_header(path)


def refuse_other_method(path: str, method: str) -> None:
    """Refuse a file that another method learnt.

    Args:
        path: The file of a concept.
        method: The method that is to draw it, such as ``latexblend``.

    Raises:
        RefusedFileError: If another one learnt it, or the file is neither a bank nor a rival's concept.
    """
    learnt_by = concept_header(path).get("method", "latexblend")
    if learnt_by != method:
        raise RefusedFileError(f"{path} was learnt by {learnt_by}, but {method} is to draw it; add method={learnt_by}")


def _format(path: str) -> str | None:
    """The format that a safetensors file says it has; None where there is no such file, which the reader says."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):
        return None


def _look_at_bank(path: str) -> None:
    refuse_other_method(path, "latexblend")
    CONCEPT_BANK.read(path)


BankFile = Annotated[str, FirstLook(_look_at_bank)]
"""The path of a concept bank, which is small enough to be read as a whole."""
ConceptFile = Annotated[str, FirstLook(concept_header)]
"""The path of a concept that any method learnt."""
