"""A sweep as one page: figure, tables, prompts by points, worst cases, disagreements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from src.data.images import load_image
from src.data.pictures import image_grid
from src.eval.report import Report
from src.eval.results import Table, provenance
from src.eval.sweep_points import Point
from src.eval.tables import disagreements, worst

GRIDS, SHOWN, LISTED = 3, 10, 8
MIN_SIDE = 128


def comparison_page(
    folder: Path,
    title: str,
    points: Sequence[Point],
    tables: Sequence[Table],
    figure: Image.Image,
    failures: Mapping[str, str],
) -> Report:
    """Put the page together; images come from ``folder/images``."""
    report = Report(title)
    report.add_image(figure, "means with 95% intervals; points are numbered from top to bottom in the frontier")
    for table in tables:
        report.add_table(table.columns, table.rows, table.title)
    for label, sentence in failures.items():
        report.add_text(sentence, f"Failed: {label}")
    for name, grid in prompt_grids(folder / "images", points).items():
        report.add_image(grid, f"{name}: a line per point, numbered as in the frontier; the same seed in every column")
    for path in sorted(points[0].folder.glob("grid_*.png"))[:GRIDS]:
        with Image.open(path) as grid:
            report.add_image(grid, f"{path.stem} of {points[0].label}, beside its references")
    text, image = points[0].scores[0], points[0].scores[-1]
    columns = [*points[0].keys, *points[0].scores]
    for point in points:
        _add_rows(report, worst(point.rows, image, LISTED), columns, f"Lowest {image}: {point.label}")
    for point in points[1:]:
        found = disagreements(points[0].rows, point.rows, point.keys, text, image, LISTED)
        _add_rows(report, found, list(found[0]) if found else [], f"{text} rises and {image} falls: {point.label}")
    report.add_config({key: points[0].metrics[key] for key in ("profile", "encoders", "rules")}, "Profile")
    report.add_config(provenance(), "Provenance")
    return report


def prompt_grids(images: Path, points: Sequence[Point]) -> dict[str, Image.Image]:
    """Points by prompts, of the first members of the last factor, with the first image of each prompt."""
    first = points[0]
    factor = first.keys[-2]
    grids = {}
    for member in list(dict.fromkeys(row[factor] for row in first.rows))[:GRIDS]:
        at = _shown([(index, row["prompt"]) for index, row in enumerate(first.rows) if row[factor] == member])
        shown = [(point.rows[index], number) for number, point in enumerate(points, 1) for index in at]
        cells = [_enlarged(load_image(images / row["file"])) for row, _ in shown]
        captions = [f"{number}. {row['prompt']}" for row, number in shown]
        grids[f"{factor} {member}"] = image_grid(cells, len(at), captions)
    return grids


def _shown(prompts: Sequence[tuple[int, str]]) -> list[int]:
    """The first place of each prompt, evenly over the prompts."""
    places: dict[str, int] = {}
    for place, prompt in prompts:
        places.setdefault(prompt, place)
    return list(places.values())[:: -(-len(places) // SHOWN)]


def _enlarged(image: Image.Image) -> Image.Image:
    scale = max(1, -(-MIN_SIDE // min(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _add_rows(report: Report, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], heading: str) -> None:
    if rows:
        report.add_table(columns, [[_cell(row[column]) for column in columns] for row in rows], heading)


def _cell(value: Any) -> str:
    """Three digits for what is a fraction."""
    try:
        return f"{float(value):.3f}" if "." in str(value) else str(value)
    except ValueError:
        return str(value)
