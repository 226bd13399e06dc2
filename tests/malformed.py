"""Safetensors files of any content, written byte by byte: what the library itself would not write, too."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from src.data.files import digest


def written(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], stamp: bool = True) -> Path:
    """A file with these tensors and this metadata; with ``stamp`` the hash of the tensors is right."""
    told = {**metadata, **({"sha256": digest(tensors)} if stamp else {})}
    path.write_bytes(save(dict(tensors), told))
    return path


def header_changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header's JSON and leave the bytes behind it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told + content[8 + length :])


def damaged(path: Path, kind: str) -> None:
    """Damage a file as disks, networks and people do."""
    content = path.read_bytes()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "eight bytes":
            path.write_bytes(content[:8])
        case "cut in the header":
            path.write_bytes(content[:40])
        case "cut before the end":
            path.write_bytes(content[:-3])
        case "longer":
            path.write_bytes(content + b"more")
        case "a bit turned":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "header of 2^63 bytes":
            path.write_bytes(struct.pack("<Q", 2**63) + content[8:])
        case "header of 0 bytes":
            path.write_bytes(struct.pack("<Q", 0) + content[8:])
        case "header is no JSON":
            path.write_bytes(content[:8] + b"x" * (len(content) - 8))
        case "header nested too deep":
            path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
        case "metadata of numbers":
            header_changed(path, lambda header: header["__metadata__"].update(seed=7))
        case "offsets beyond the end":
            header_changed(path, lambda header: _first(header).update(data_offsets=[0, 10**15]))
        case "offsets that run backwards":
            header_changed(path, lambda header: _first(header).update(data_offsets=[8, 0]))
        case "shape of 2^62":
            header_changed(path, lambda header: _first(header).update(shape=[2**62, 2**62]))
        case "negative shape":
            header_changed(path, lambda header: _first(header).update(shape=[-1, 2]))
        case "unknown precision":
            header_changed(path, lambda header: _first(header).update(dtype="Q7"))
        case "text":
            path.write_text("this is not a file of weights, but it is long enough to be one\n" * 10, encoding="utf-8")
        case "a picture":
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
        case "a pickle":
            torch.save({"a": torch.ones(2)}, path)
        case "missing":
            path.unlink()
        case "a folder":
            path.unlink()
            path.mkdir()
        case "a link to nowhere":
            path.unlink()
            path.symlink_to(path.with_name("nowhere"))
        case _:
            raise AssertionError(kind)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in header.items() if name != "__metadata__")


DAMAGE = (
    *("empty", "eight bytes", "cut in the header", "cut before the end", "longer", "a bit turned"),
    *("header of 2^63 bytes", "header of 0 bytes", "header is no JSON", "header nested too deep"),
    *("metadata of numbers", "offsets beyond the end", "offsets that run backwards", "shape of 2^62"),
    *("negative shape", "unknown precision", "text", "a picture", "a pickle", "missing", "a folder"),
    "a link to nowhere",
)


def is_a_sentence(text: str) -> bool:
    """Whether an error is one line that a reader can take in, without control characters."""
    return text.isprintable() and 20 < len(text) < 900


def sha(text: str) -> str:
    """Any sha256."""
    return hashlib.sha256(text.encode()).hexdigest()
