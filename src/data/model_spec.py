"""Fields by which other programs show a file of weights: ModelSpec 1.0.0, keys that start with ``modelspec.``."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

START = "modelspec."
FIELDS = (
    "sai_model_spec",
    "architecture",
    "implementation",
    "title",
    "description",
    "date",
    "hash_sha256",
    "trigger_phrase",
)
"""Those that we write. A thumbnail is none of them: it would put a photo of the subject into every copy of the file."""


def model_spec(path: str | Path, kind: str, metadata: Mapping[str, str], content: str) -> dict[str, str]:
    """Write the fields of a file.

    Args:
        path: The file, whose name is the title; a concept's name is what prompts call it.
        kind: What the file is, such as ``a concept bank``.
        metadata: Its own metadata, of which ``backbone``, ``class_noun`` and ``references`` are told.
        content: Hash of its tensors, 64 hexadecimal digits.
    """
    title, what = Path(path).stem, kind.removeprefix("a ").removeprefix("an ")
    noun = metadata.get("class_noun")
    told = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{metadata.get('backbone') or 'unknown'}/{what.replace(' ', '-')}",
        "implementation": "atelier",
        "title": title,
        "description": f"{kind}: {noun}, learnt from {metadata.get('references', 'photos')}" if noun else kind,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hash_sha256": f"0x{content}",
        **({"trigger_phrase": f"<{title}>"} if noun and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", title) else {}),
    }
    return {f"{START}{name}": text for name, text in told.items()}
