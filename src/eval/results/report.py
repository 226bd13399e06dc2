"""One HTML page that holds everything itself: text, tables, pictures. No network, no other file."""

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from src.data.files import write_text
from src.data.page import STYLESHEET
from src.eval.grid import Grid
from src.eval.results.glossary import GLOSSARY

MAX_BYTES = 9_000_000
"""Of all pictures together, as base64 text."""

SMALL = 128
"""Pixels of the longer side up to which a picture is a little one, whose pixels stay squares when it is enlarged."""
WIDE = 1000
"""Pixels from which on a plot takes a line of its own."""
_MEAN = re.compile(r"(\S+) (\[.*\])")
"""A number with its interval."""


class Picture(NamedTuple):
    """An image of a page.

    Attributes:
        image: What is shown.
        alt: What it is, for those who do not see it.
        caption: The line below; none if empty.
        kind: Class of the figure in ``page.css``.
    """

    image: Image.Image
    alt: str
    caption: str
    kind: str = ""


class Report:
    """Parts in the order in which they were added.

    Args:
        title: Heading of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str | Picture] = []
        self.words: set[str] = set()

    def add_text(self, text: str, heading: str = "") -> None:
        """A paragraph, under a heading if there is one."""
        self.parts.append(_heading(heading) + (f"<p>{html.escape(text)}</p>" if text else ""))

    def add_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], heading: str = "") -> None:
        """A table whose first column names its rows; columns in which nothing stands are left out."""
        full = [at for at in range(len(columns)) if at == 0 or not rows or any(str(row[at]) for row in rows)]
        columns, rows = [columns[at] for at in full], [[row[at] for at in full] for row in rows]
        self.words |= {str(cell) for line in (columns, *rows) for cell in line}
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in columns)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self.parts.append(f'{_heading(heading)}<div class="scroll" tabindex="0">{table}</div>')

    def add_image(self, image: Image.Image, caption: str = "") -> None:
        """A picture with a line below; many large ones are shrunk when the page is written."""
        self.parts.append(Picture(image.convert("RGB"), caption, caption))

    def add_grid(self, grid: Grid, heading: str = "") -> None:
        """Pictures side by side, each over its caption as text; more columns than fit scroll in place."""
        if len(grid.images) == 1:
            # Alone it has the whole width, as a grid of an older run that cannot be cut.
            self.parts.append(_heading(heading))
            self.add_image(grid.images[0], *grid.captions)
            return
        self.parts += [_heading(heading), f'<div class="grid scroll" tabindex="0" style="--columns: {grid.columns}">']
        captions = grid.captions or [""] * len(grid.images)
        cells = zip(grid.images, captions, strict=True)
        self.parts += [Picture(image.convert("RGB"), text or heading, text) for image, text in cells]
        self.parts.append("</div>")

    def add_plots(self, plots: Mapping[str, Image.Image], captions: Mapping[str, str] | None = None) -> None:
        """Figures drawn dark on white, as many in a line as fit; on a dark page they are turned over.

        Args:
            plots: By name, which is told to those who do not see the figure.
            captions: By name, the line below, where the figure itself does not say enough.
        """
        self.parts.append('<div class="plots">')
        for name, plot in plots.items():
            kind = "wide scroll" if plot.width >= WIDE else ""
            self.parts.append(Picture(plot.convert("RGB"), name, (captions or {}).get(name, ""), kind))
        self.parts.append("</div>")

    @contextmanager
    def folded(self, heading: str) -> Iterator[None]:
        """What is added inside opens at a click on the heading."""
        self.parts.append(f"<details><summary>{html.escape(heading)}</summary>")
        yield
        self.parts.append("</details>")

    def add_config(self, config: Mapping[str, Any] | str, heading: str = "Configuration") -> None:
        """YAML (given as text or as a mapping), folded away."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False, width=110)
        with self.folded(heading):
            self.parts.append(f"<pre>{html.escape(text.rstrip())}</pre>")

    def html(self) -> str:
        """The whole page."""
        number = sum(isinstance(part, Picture) for part in self.parts)
        parts = [part if isinstance(part, str) else _figure(part, MAX_BYTES // number) for part in self.parts]
        body = "\n".join([*parts, _meanings(self.words)])
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
            f"<style>\n{STYLESHEET}</style>\n</head>\n"
            f'<body>\n<main class="report">\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n'
        )

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        write_text(path, self.html())


def _meanings(words: set[str]) -> str:
    """What the columns and lines of all tables mean, folded away."""
    found = "".join(f"<dt>{name}</dt><dd>{told}</dd>" for name, told in GLOSSARY.items() if name in words)
    return f"<details><summary>What the columns mean</summary><dl>{found}</dl></details>" if found else ""


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>" if text else ""


def _cell(text: str) -> str:
    """A number over its interval, so that a table of them is half as wide."""
    found = _MEAN.fullmatch(text)
    return f"{html.escape(found[1])}<small> {html.escape(found[2])}</small>" if found else html.escape(text)


def _figure(picture: Picture, max_bytes: int) -> str:
    small = ' class="small"' if max(picture.image.size) <= SMALL else ""
    image = f'<img{small} alt="{html.escape(picture.alt)}" src="{_data_uri(picture.image, max_bytes)}">'
    below = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    kind = f' class="{picture.kind}"' if picture.kind else ""
    return f"<figure{kind}>{image}{below}</figure>"


def _data_uri(image: Image.Image, max_bytes: int) -> str:
    """PNG if it fits, else JPEG, smaller until it fits."""
    content, kind = _encoded(image, "PNG"), "png"
    while len(content) * 4 / 3 > max_bytes and min(image.size) > 1:
        content, kind = _encoded(image, "JPEG"), "jpeg"
        image = image.reduce(2)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()
