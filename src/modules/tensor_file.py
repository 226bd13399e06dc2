"""Named tensors in one safetensors file that says what it is and whether it is whole."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.data.whole_file import whole_file


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write atomically; ``metadata`` gets the hash of the tensors beside what it says, ``format`` among it."""
    # Contiguous copies: a view would drag its whole storage into the file.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        save_file(whole, partial, metadata={**metadata, "sha256": digest(whole)})
    return Path(path)


def read_metadata(path: str | Path, expected: str, what: str) -> dict[str, str]:
    """What a file says about itself, without its tensors.

    Args:
        path: Of the file.
        expected: Its ``format``.
        what: What to call it, such as "an adapter".

    Raises:
        ValueError: If it is missing, unreadable, or in another format.
    """
    return _read(Path(path), expected, what, names_only=True)[0]


def read_tensors(path: str | Path, expected: str, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, verified.

    Raises:
        ValueError: As ``read_metadata``, or if the content does not match its hash.
    """
    metadata, tensors = _read(Path(path), expected, what, names_only=False)
    if metadata.get("sha256") != digest(tensors):
        raise ValueError(f"{path} was changed after it was written: its content does not match its sha256")
    return metadata, tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 of names and contents."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read(path: Path, expected: str, what: str, names_only: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"no file at {path}; give the path of {what}")
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {} if names_only else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as {what} ({error}); it may be truncated") from error
    if metadata.get("format") != expected:
        raise ValueError(f"{path} is not {what}: its format is {metadata.get('format')!r}, expected {expected!r}")
    return metadata, tensors
