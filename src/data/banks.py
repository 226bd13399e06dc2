"""The file of a concept bank: what its metadata and its rows must be, for drawing and for scoring."""

from typing import Annotated

from src.data.first_looks import FirstLook
from src.data.schema import HASH, NOUN, TEMPLATE, FileKind, Metadata, Shapes, matching, number, one_of, shown

MOST_ROWS = 64
"""Most tokens of a concept; text encoders take 77 in all, and a noun has a few."""


def _shapes(metadata: Metadata, shapes: Shapes) -> str | None:
    """What is wrong with the rows."""
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
        "seed": number(-(2**63), 2**64 - 1),
        "steps": number(0, 10**12),
        "training": shown(20_000),
    },
    shapes=_shapes,
    made_by="; training writes one to <run folder>/exports/*.safetensors",
)

BankFile = Annotated[str, FirstLook(CONCEPT_BANK.read)]
"""The path of a concept bank, which is small enough to be read as a whole."""
