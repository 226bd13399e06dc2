"""What a file of ours is, for which model, from what, and the command that uses it: ``python -m src.run.show FILE``.

A concept bank, a concept of a rival method, an LLMDiff adapter, or a picture. Only headers are read, so a file of any
size is shown at once.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from src.data.banks import CONCEPT_BANK, LEARNT_CONCEPT, subjects_of
from src.data.commands import command
from src.data.mentions import NAME
from src.data.model_spec import START
from src.data.notes import read_note
from src.data.schema import RefusedFileError
from src.modules.llmdiff.adapter_file import LLMDIFF_ADAPTER

KINDS = {kind.format: kind for kind in (CONCEPT_BANK, LEARNT_CONCEPT, LLMDIFF_ADAPTER)}
LEFT_OUT = ("format", "sha256", "modifier_token")
USAGE = "give one file: python -m src.run.show FILE"


def shown(path: str) -> tuple[str, dict[str, str], str]:
    """Read what a file says of itself.

    Args:
        path: A safetensors file or a PNG of ours.

    Returns:
        What it is, its facts by name, and the command that uses it.

    Raises:
        ValueError: If it is none of ours, or damaged.
    """
    if Path(path).suffix.lower() == ".png":
        note = read_note(path)
        facts = {"prompt": note.prompt, "seed": str(note.seed), **note.style, **note.drawn_with, **note.said}
        return "a picture", facts, command("generate.py", {"from": path})
    if not Path(path).is_file():
        raise RefusedFileError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError) as error:
        raise RefusedFileError(f"{path} is neither a safetensors file nor a PNG ({error})") from error
    if told not in KINDS:
        known = ", ".join(kind.name for kind in KINDS.values())
        raise RefusedFileError(f"{path} is a safetensors file, but none of ours: {known}")
    kind = KINDS[told]
    header = kind.read_header(path)
    spec = {key.removeprefix(START): text for key, text in header.items() if key.startswith(START)}
    facts = {key: text for key, text in header.items() if not key.startswith(START) and key not in LEFT_OUT}
    facts |= {key: spec[key] for key in ("date",) if key in spec} | {"bytes": str(Path(path).stat().st_size)}
    return kind.name, dict(sorted(facts.items())), _use(path, header)


def _use(path: str, header: Mapping[str, str]) -> str:
    """The command that draws with a file; which model it needs, its header says."""
    if "llm" in header:
        return command("generate.py", {"prompt": "a dog", "method": "llmdiff", "adapter": path})
    stem = Path(path).stem
    names: Sequence[str] = list(subjects_of(header)) or [stem if NAME.fullmatch(stem) else "rex"]
    method = {"method": header["method"]} if "method" in header else {}
    prompt = f"{' and '.join(f'a <{name}>' for name in names)} on the grass"
    return command("generate.py", {"prompt": prompt, **method, **{f"bank.{name}": path for name in names}})


def main(arguments: Sequence[str]) -> int:
    """Show one file; return the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"error: {USAGE}", file=sys.stderr)
        return 1
    try:
        what, facts, use = shown(arguments[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = Table(title=f"{arguments[0]}: {what}", show_header=False, title_justify="left")
    for name, text in facts.items():
        table.add_row(name, text)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    console.print(use)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
