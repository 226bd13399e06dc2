"""Styles of the world: each turns a photo into a cartoon, a mosaic and so on, at the size before the reduction."""

from functools import reduce

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def _edges(image: Image.Image, strength: int = 60) -> Image.Image:
    """Edge mask: white where brightness or colour changes quickly."""
    first, *others = [channel.filter(ImageFilter.FIND_EDGES) for channel in image.split()]
    strongest = reduce(ImageChops.lighter, others, first)
    edges = strongest.point(lambda v: 255 if v > strength else 0).filter(ImageFilter.MaxFilter(3))
    ImageDraw.Draw(edges).rectangle((0, 0, edges.width - 1, edges.height - 1), outline=0, width=2)
    return edges


def _solid(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", image.size, color)


def mask_of(on: np.ndarray) -> Image.Image:
    """Turn a truth value per pixel into black and white."""
    return Image.fromarray((on * 255).astype(np.uint8), "L")


def _photo(image: Image.Image, coverage: Image.Image) -> Image.Image:
    return image


def _cartoon(image: Image.Image, coverage: Image.Image) -> Image.Image:
    flat = image.point([min(255, round(v / 51) * 51) for v in range(256)] * 3)
    flat.paste((10, 10, 14), (0, 0), _edges(image))
    return flat


def _watercolor(image: Image.Image, coverage: Image.Image) -> Image.Image:
    soft = image.filter(ImageFilter.GaussianBlur(image.width / 55))
    return Image.blend(soft, _solid(image, (252, 248, 238)), 0.38)


def _pixel(image: Image.Image, coverage: Image.Image) -> Image.Image:
    grid = image.resize((image.width * 3 // 16,) * 2, Image.Resampling.BOX)
    return grid.resize(image.size, Image.Resampling.NEAREST)


def _sketch(image: Image.Image, coverage: Image.Image) -> Image.Image:
    grey = ImageOps.grayscale(image).convert("RGB")
    paper = Image.blend(grey, _solid(image, (250, 250, 246)), 0.6)
    paper.paste((60, 60, 64), (0, 0), _edges(image))
    return paper


def _sticker(image: Image.Image, coverage: Image.Image) -> Image.Image:
    rim = coverage.filter(ImageFilter.MaxFilter(9))
    paper = Image.blend(image, _solid(image, (206, 226, 214)), 0.7)
    paper.paste((255, 255, 255), (0, 0), rim)
    paper.paste(image, (0, 0), coverage)
    return paper


def _neon(image: Image.Image, coverage: Image.Image) -> Image.Image:
    dark = Image.blend(image, _solid(image, (12, 4, 28)), 0.86)
    bright = image.point([min(255, 90 + v) for v in range(256)] * 3)
    dark.paste(bright, (0, 0), _edges(image))
    return dark


def _blueprint(image: Image.Image, coverage: Image.Image) -> Image.Image:
    paper = Image.blend(_solid(image, (24, 62, 148)), ImageOps.grayscale(image).convert("RGB"), 0.14)
    paper.paste((232, 240, 252), (0, 0), _edges(image))
    return paper


def _sepia(image: Image.Image, coverage: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(image), (48, 26, 12), (252, 232, 190))


def _mosaic(image: Image.Image, coverage: Image.Image) -> Image.Image:
    step = image.width // 16
    tiles = image.resize((16, 16), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(tiles)
    for at in range(0, image.width, step):
        draw.line([(at, 0), (at, image.width)], fill=(66, 60, 58), width=2)
        draw.line([(0, at), (image.width, at)], fill=(66, 60, 58), width=2)
    return tiles


def _woodcut(image: Image.Image, coverage: Image.Image) -> Image.Image:
    ink, paper = (20, 16, 14), (244, 236, 220)
    light = np.asarray(ImageOps.autocontrast(ImageOps.grayscale(image))) / 255
    y, x = np.mgrid[0 : image.width, 0 : image.width]
    # The darker a place, the broader are the lines that the knife left standing.
    cut = ImageOps.colorize(mask_of(light > (x + 2 * y) % 10 * 0.09 + 0.05), ink, paper)
    cut.paste(ink, (0, 0), _edges(image))
    return cut


def _glass(image: Image.Image, coverage: Image.Image) -> Image.Image:
    lead = (18, 16, 20)
    vivid = ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(1.3)).enhance(2.2)
    y, x = np.mgrid[0 : image.width, 0 : image.width]
    lattice = mask_of(((x + y) % 22 < 2) | ((x - y) % 22 < 2))
    panes = vivid.copy()
    panes.paste(lead, (0, 0), lattice)
    panes.paste(vivid, (0, 0), coverage)
    panes.paste(lead, (0, 0), _edges(coverage).filter(ImageFilter.MaxFilter(3)))
    return panes


def _heat(image: Image.Image, coverage: Image.Image) -> Image.Image:
    light = ImageOps.autocontrast(ImageOps.grayscale(image))
    stops, colors = (0, 60, 110, 160, 215, 255), ((0, 0, 40), (70, 0, 170), (200, 0, 140), (255, 90, 30), (255, 220, 0))
    channels = [np.interp(range(256), stops, values).round() for values in zip(*colors, (255, 255, 220), strict=True)]
    return Image.merge("RGB", [light] * 3).point([int(value) for channel in channels for value in channel])


def _stitch(image: Image.Image, coverage: Image.Image) -> Image.Image:
    step = 6
    thread = image.resize((image.width // step + 1,) * 2, Image.Resampling.BOX)
    cloth = _solid(image, (240, 228, 205))
    draw = ImageDraw.Draw(cloth)
    for row, column in np.ndindex(thread.height, thread.width):
        color, left, top = thread.getpixel((column, row)), column * step, row * step
        right, bottom = left + step - 2, top + step - 2
        draw.line((left, top, right, bottom), fill=color, width=2)
        draw.line((right, top, left, bottom), fill=color, width=2)
    return cloth


def _chalk(image: Image.Image, coverage: Image.Image) -> Image.Image:
    board = Image.blend(_solid(image, (30, 58, 48)), image, 0.1)
    pale = Image.blend(image, _solid(image, (250, 250, 245)), 0.5)
    y, x = np.mgrid[0 : image.width, 0 : image.width]
    board.paste(pale, (0, 0), ImageChops.multiply(mask_of((x + y) % 6 < 2), coverage))
    grain = mask_of(np.random.default_rng(0).random((image.width, image.width)) < 0.7)
    board.paste((244, 244, 238), (0, 0), ImageChops.multiply(_edges(image), grain))
    return board


def _negative(image: Image.Image, coverage: Image.Image) -> Image.Image:
    return ImageChops.multiply(ImageOps.invert(image), _solid(image, (255, 190, 130)))


STYLE_FUNCTIONS = {
    "photo": _photo,
    "cartoon": _cartoon,
    "watercolor": _watercolor,
    "pixel": _pixel,
    "sketch": _sketch,
    "sticker": _sticker,
    "neon": _neon,
    "blueprint": _blueprint,
    "sepia": _sepia,
    "mosaic": _mosaic,
    "woodcut": _woodcut,
    "glass": _glass,
    "heat": _heat,
    "stitch": _stitch,
    "chalk": _chalk,
    "negative": _negative,
}
"""From an image and the coverage of its objects to the image in a style, by a key of ``ALL_STYLES``."""
