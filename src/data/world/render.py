"""Draw scenes with Pillow: flat colours at twice the size, then a rendering style, then one reduction."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from src.data.world.drawing_styles import STYLE_FUNCTIONS, mask_of
from src.data.world.scenes import Placed, Scene
from src.data.world.shapes import SHAPES, Part
from src.data.world.vocabulary import ALL_STYLES, COLORS, Look

SUPERSAMPLING = 2
PAINT_SAMPLES = 4
"""By side, samples of a pixel from which ``paint_shares`` counts."""
DARK, LIGHT = (28, 26, 32), (252, 250, 244)


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB image of ``size`` x ``size`` pixels.

    Raises:
        ValueError: If the scene's style is unknown.
    """
    if scene.style not in ALL_STYLES:
        raise ValueError(f"unknown style {scene.style!r}; choose one of {', '.join(ALL_STYLES)}")
    canvas, coverage = _drawn(scene, size * SUPERSAMPLING)
    styled = STYLE_FUNCTIONS[scene.style](canvas, coverage)
    return styled.resize((size, size), Image.Resampling.BOX)


def object_mask(scene: Scene, size: int = 64) -> Image.Image:
    """Draw where the objects of a scene stand: white pixels, which they cover by half at least, on black."""
    _, coverage = _drawn(scene, size * SUPERSAMPLING)
    return coverage.resize((size, size), Image.Resampling.BOX).point(lambda level: 255 if level > 127 else 0)


def _drawn(scene: Scene, side: int) -> tuple[Image.Image, Image.Image]:
    """A scene without its style, and the coverage of its objects."""
    canvas, coverage = _background(scene.background, side).copy(), Image.new("L", (side, side), 0)
    for placed in scene.objects:
        _draw(placed, canvas, coverage, side)
    return canvas, coverage


def object_boxes(scene: Scene, size: int = 64) -> list[tuple[int, int, int, int]]:
    """Return the pixel boxes of the objects in drawing order, clipped to the image."""

    def pixel(share: float) -> int:
        return int(np.clip(round(share * size), 0, size))

    boxes = (placed.box for placed in scene.objects)
    return [(pixel(left), pixel(top), pixel(right), pixel(bottom)) for left, top, right, bottom in boxes]


# Objects


def _draw(placed: Placed, canvas: Image.Image, coverage: Image.Image, side: int) -> None:
    extent = max(8, round(2 * placed.half * side))
    sprite, mask = _sprite(placed.look, extent)
    if placed.flip:
        sprite, mask = ImageOps.mirror(sprite), ImageOps.mirror(mask)
    corner = (round(placed.x * side - extent / 2), round(placed.y * side - extent / 2))
    canvas.paste(sprite, corner, mask)
    coverage.paste(mask, corner, mask)


def _sprite(look: Look, extent: int) -> tuple[Image.Image, Image.Image]:
    """Draw the individual alone: RGB and coverage, with a side of ``extent`` pixels."""
    paints = (COLORS[look.color], COLORS[look.accent], COLORS[look.marking_color], DARK, LIGHT)
    sprite, mask = _painted(look, extent, paints)
    return _shade(sprite), mask


def paint_shares(look: Look, size: int) -> np.ndarray:
    """Return what share of each pixel of the individual alone has which paint, float32 ``(5, size, size)``.

    The paints are main colour, second colour, colour of the marking, dark and light. Their sum is the coverage.
    """
    keys = ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 0, 0))
    sprite, mask = _painted(look, size * PAINT_SAMPLES, keys)
    known, covered = np.asarray(sprite)[..., 0], np.asarray(mask) > 0
    shares = np.stack([(known == key[0]) & covered for key in keys]).astype(np.float32)
    return shares.reshape(len(keys), size, PAINT_SAMPLES, size, PAINT_SAMPLES).mean((2, 4))


def shading(size: int) -> np.ndarray:
    """Return the factor of all paints in each row of an individual alone, ``(size,)``: the light comes from above."""
    return np.linspace(255, 205, size) / 255


Paint = tuple[int, int, int]


def _painted(look: Look, extent: int, paints: Sequence[Paint]) -> tuple[Image.Image, Image.Image]:
    """Draw the individual without shading in given paints: main, second, of the marking, dark and light."""
    shape = SHAPES[look.noun]
    main, accent, marking, dark, light = paints
    sprite = Image.new("RGB", (extent, extent), main)
    mask = Image.new("L", (extent, extent), 0)
    body = Image.new("L", (extent, extent), 0)
    for part in shape.parts:
        _fill(mask, part, 255)
        _fill(body, part, 255 if part.role == "body" else 0)
    sprite.paste(accent, (0, 0), ImageChops.multiply(body, _pattern(look.pattern, extent)))
    fills = {"accent": accent, "dark": dark, "light": light}
    for index, part in enumerate(shape.parts):
        if part.role != "body":
            # A later body part hides what was drawn before it.
            visible = Image.new("L", (extent, extent), 0)
            _fill(visible, part, 255)
            for later in shape.parts[index + 1 :]:
                if later.role == "body":
                    _fill(visible, later, 0)
            sprite.paste(fills[part.role], (0, 0), visible)
    _mark(sprite, look, marking, light, body)
    return sprite, mask


def _fill(image: Image.Image, part: Part, value: int | tuple[int, int, int]) -> None:
    half = image.width / 2
    points = [(half + half * x, half + half * y) for x, y in part.points]
    draw = ImageDraw.Draw(image)
    {"ellipse": draw.ellipse, "box": draw.rectangle, "polygon": draw.polygon}[part.kind](points, fill=value)


def _mark(sprite: Image.Image, look: Look, color: Paint, light: Paint, body: Image.Image) -> None:
    shape = SHAPES[look.noun]
    if look.marking == "collar":
        _fill(sprite, Part("box", "accent", shape.collar), color)
    elif look.marking == "patch":
        x, y = shape.chest
        spot = Image.new("L", sprite.size, 0)
        _fill(spot, Part("ellipse", "accent", ((x - 0.38, y - 0.32), (x + 0.38, y + 0.32))), 255)
        sprite.paste(color, (0, 0), ImageChops.multiply(spot, body))
    elif look.marking == "badge":
        x, y = shape.chest
        _fill(sprite, Part("polygon", "accent", ((x, y - 0.3), (x + 0.3, y), (x, y + 0.3), (x - 0.3, y))), light)
        _fill(sprite, Part("polygon", "accent", ((x, y - 0.2), (x + 0.2, y), (x, y + 0.2), (x - 0.2, y))), color)


@cache
def _pattern(name: str, extent: int) -> Image.Image:
    """Return the mask of the second colour: about five bands, dots or squares across a body."""
    y, x = np.mgrid[0:extent, 0:extent] / extent
    if name == "striped":
        on = (x * 4.5) % 1 < 0.4
    elif name == "spotted":
        row = np.floor(y * 4.5)
        on = ((x * 4.5 + 0.5 * (row % 2)) % 1 - 0.5) ** 2 + ((y * 4.5) % 1 - 0.5) ** 2 < 0.32**2
    elif name == "checkered":
        on = (np.floor(x * 5.5) + np.floor(y * 5.5)) % 2 == 0
    else:
        on = np.zeros_like(x, dtype=bool)
    return mask_of(on)


@cache
def _light(extent: int) -> Image.Image:
    levels = np.linspace(255, 205, extent).astype(np.uint8)[:, None].repeat(extent, 1)
    return Image.merge("RGB", [Image.fromarray(levels, "L")] * 3)


def _shade(sprite: Image.Image) -> Image.Image:
    return ImageChops.multiply(sprite, _light(sprite.width))


# Backgrounds


@cache
def _background(name: str, side: int) -> Image.Image:
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    upper, lower, horizon = {
        "grass": (((150, 205, 245), (205, 232, 250)), ((120, 190, 84), (84, 156, 60)), 0.45),
        "beach": (((120, 200, 240), (190, 228, 246)), ((240, 220, 160), (222, 194, 128)), 0.5),
        "snow": (((168, 180, 200), (206, 214, 226)), ((250, 251, 254), (226, 232, 244)), 0.42),
        "room": (((230, 206, 180), (222, 192, 164)), ((158, 108, 70), (134, 90, 58)), 0.62),
        "night": (((14, 16, 52), (36, 34, 88)), ((30, 50, 56), (20, 34, 42)), 0.55),
        "forest": (((40, 84, 52), (60, 108, 64)), ((92, 76, 50), (70, 58, 40)), 0.6),
    }[name]
    split = round(horizon * side)
    for row in range(side):
        (top, bottom), start, end = (upper, 0, split) if row < split else (lower, split, side)
        share = (row - start) / max(1, end - start - 1)
        color = tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True))
        draw.line([(0, row), (side, row)], fill=color)
    _scenery(name, draw, side, split)
    return image


def _scenery(name: str, draw: ImageDraw.ImageDraw, side: int, split: int) -> None:
    s = side
    if name == "grass":
        draw.ellipse((-0.2 * s, 0.32 * s, 0.5 * s, 0.75 * s), fill=(120, 190, 84))
        draw.ellipse((0.78 * s, 0.06 * s, 0.94 * s, 0.22 * s), fill=(252, 238, 150))
    elif name == "beach":
        draw.rectangle((0, 0.38 * s, s, split), fill=(48, 130, 190))
    elif name == "snow":
        draw.polygon([(0, split), (0.3 * s, 0.14 * s), (0.62 * s, split)], fill=(136, 150, 176))
        draw.polygon([(0.2 * s, 0.25 * s), (0.3 * s, 0.14 * s), (0.4 * s, 0.25 * s)], fill=(246, 248, 252))
    elif name == "room":
        draw.rectangle((0.62 * s, 0.08 * s, 0.92 * s, 0.36 * s), fill=(150, 206, 240), outline=(120, 80, 52), width=3)
        draw.rectangle((0, split - 3, s, split + 2), fill=(112, 74, 48))
    elif name == "night":
        draw.ellipse((0.1 * s, 0.08 * s, 0.28 * s, 0.26 * s), fill=(246, 240, 206))
        for x, y in ((0.45, 0.12), (0.6, 0.28), (0.75, 0.1), (0.88, 0.3), (0.38, 0.34)):
            draw.rectangle((x * s - 1, y * s - 1, x * s + 1, y * s + 1), fill=(246, 240, 206))
    else:
        for x in (0.08, 0.34, 0.66, 0.9):
            draw.rectangle(((x - 0.045) * s, 0, (x + 0.045) * s, split + 0.04 * s), fill=(72, 48, 32))
