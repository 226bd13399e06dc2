"""One HTML page that holds everything itself: text, tables, pictures. No network, no other file."""

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from src.data.files import write_text
from src.eval.results.glossary import GLOSSARY

MAX_BYTES = 9_000_000
"""Of all pictures together, as base64 text."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #646a73; --paper: #fff; --panel: #f5f6f8; --line: #dfe2e6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa2ad; --paper: #15171a; --panel: #1e2125; --line: #33383f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 1.1rem .4rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .35rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: .8rem 1rem;
  overflow-x: auto; font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details > summary { cursor: pointer; font-weight: 600; margin-top: 1.5rem; }
"""


class Report:
    """Parts in the order in which they were added.

    Args:
        title: Heading of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str | tuple[Image.Image, str]] = []
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
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        self.parts.append(f'{_heading(heading)}<div class="scroll">{table}</div>')

    def add_image(self, image: Image.Image, caption: str = "") -> None:
        """A picture with a line below; many large ones are shrunk when the page is written."""
        self.parts.append((image.convert("RGB"), caption))

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
        number = sum(isinstance(part, tuple) for part in self.parts)
        parts = [part if isinstance(part, str) else _figure(*part, MAX_BYTES // number) for part in self.parts]
        body = "\n".join([*parts, _meanings(self.words)])
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
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


def _figure(image: Image.Image, caption: str, max_bytes: int) -> str:
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{_data_uri(image, max_bytes)}"><figcaption>{text}</figcaption></figure>'


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
