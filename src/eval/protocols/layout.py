"""Where a prompt puts its subjects: boxes of an image, and the part of an image inside a box."""

from PIL import Image, ImageOps

from src.data.layout import Box

LEFT, RIGHT, TOP, BOTTOM = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
LAYOUTS = {"left of": (LEFT, RIGHT), "right of": (RIGHT, LEFT), "above": (TOP, BOTTOM), "below": (BOTTOM, TOP)}
"""Where a relation puts the first and the second."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
GREY = (127, 127, 127)


def layout(prompt: str) -> tuple[Box, Box]:
    """Boxes of the first and the second concept, from the relation that the prompt names.

    Raises:
        ValueError: If a slot is missing or no relation fixes the layout.
    """
    if prompt.count("{first}") != 1 or prompt.count("{second}") != 1:
        raise ValueError(f"the prompt {prompt!r} needs {{first}} and {{second}} once each")
    between = prompt.partition("{first}")[2].partition("{second}")[0].split()
    for relation, boxes in LAYOUTS.items():
        if relation in " ".join(between):
            return boxes
    raise ValueError(f"the prompt {prompt!r} has no layout; put one of {', '.join(LAYOUTS)} between the two")


def places(prompt: str) -> list[Box]:
    """Boxes in one of which the subject of a prompt stands, from what follows its ``{}``: by default the whole image.

    Of "next to" nobody knows the side, so there are two.
    """
    after = " ".join(prompt.partition("{}")[2].split())
    known: dict[str, list[Box]] = {relation: [boxes[0]] for relation, boxes in LAYOUTS.items()}
    known["next to"] = [LEFT, RIGHT]
    return next((boxes for relation, boxes in known.items() if after.startswith(relation)), [WHOLE])


def crop(image: Image.Image, box: Box) -> Image.Image:
    """A part of the image, padded to a square: the encoder's centre crop would cut off its ends."""
    width, height = image.size
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
    )
    part = image.crop((left, top, right, bottom))
    return ImageOps.pad(part, (max(part.size),) * 2, color=GREY)


def columns(number: int) -> list[Box]:
    """Equal columns of an image, from left to right."""
    return [(at / number, 0.0, (at + 1) / number, 1.0) for at in range(number)]


def squares(column: Box) -> list[Box]:
    """Squares of a column's width, from its top to its bottom, each half a square below the last."""
    left, _, right, _ = column
    side = right - left
    steps = round(2 * (1 - side) / side)
    tops = [(1 - side) * at / max(steps, 1) for at in range(steps + 1)]
    return [(left, top, right, top + side) for top in tops]
