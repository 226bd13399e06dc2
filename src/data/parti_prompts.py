"""The 190 prompts on which style papers are compared, filtered from PartiPrompts (arXiv 2206.10789)."""

import csv
from pathlib import Path

from src.data.style_prompt import StylePrompt

CHALLENGE = "Basic"
LEFT_OUT = ("Abstract", "Arts", "People", "World Knowledge")
COLUMNS = ("Prompt", "Category", "Challenge")


def style_prompts(tsv_path: str | Path) -> list[StylePrompt]:
    """Basic prompts about things: those of arXiv 2507.04482, recovered by their number.

    Args:
        tsv_path: ``PartiPrompts.tsv`` of google-research/parti.

    Returns:
        190 prompts in the order of the file.

    Raises:
        ValueError: If there is no such file, or it has other columns.
    """
    path = Path(tsv_path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; name the PartiPrompts.tsv of github.com/google-research/parti")
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := set(COLUMNS) - set(rows.fieldnames or []):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; is it PartiPrompts.tsv?")
        return [StylePrompt(row["Prompt"], row["Category"]) for row in rows if _is_basic_thing(row)]


def _is_basic_thing(row: dict[str, str]) -> bool:
    return row["Challenge"] == CHALLENGE and row["Category"] not in LEFT_OUT
