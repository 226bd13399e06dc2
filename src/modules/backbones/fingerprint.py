"""Which weights a model or a folder holds, in a few hexadecimal digits."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from src.data.files import digest, tensor_bytes

SAMPLED_VALUES = 64
"""Of each tensor; training changes nearly every value, so another training is seen in a few."""


def sampled_fingerprint(parts: Iterable[object]) -> str:
    """16 hexadecimal digits of names, shapes and evenly spaced values of all tensors of the modules among ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in part.state_dict().items() if isinstance(part, nn.Module) else ():
            flat = tensor.flatten()
            sampled = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float().cpu().numpy()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + sampled.tobytes())
    return digest.hexdigest()[:16]


def autoencoder_hash(autoencoder: Any) -> "hashlib._Hash":
    """What latents depend on besides the images: precision, scaling and every weight; add the images to it."""
    found = hashlib.sha256(f"{autoencoder.dtype} {autoencoder.config.scaling_factor}".encode())
    for parameter in autoencoder.parameters():
        found.update(tensor_bytes(parameter.float()))
    return found


def autoencoder_key(autoencoder: Any) -> str:
    """The same in a name fit for a folder: weights, precision and scaling."""
    weights = digest({name: tensor.cpu().float() for name, tensor in autoencoder.state_dict().items()})
    return f"{weights[:16]}-{str(autoencoder.dtype).removeprefix('torch.')}-{autoencoder.config.scaling_factor:g}"


def text_fingerprint(projections: Mapping[str, nn.Linear]) -> str:
    """16 hexadecimal digits of the projections that read text, whatever precision they work in."""
    found = hashlib.sha256()
    for name, linear in projections.items():
        found.update(name.encode())
        for weights in linear.parameters():
            found.update(weights.detach().half().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


CHUNKS, CHUNK_BYTES = 256, 4096
_WHOLE = (
    "config.json",
    "token*.json",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)


def folder_fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits that change with the weights, the configuration or the tokenizer of a model.

    Of large weight files, the size and evenly spaced chunks are read: training changes nearly every byte. So a model
    that is retrained in place is known for another one within milliseconds.

    Raises:
        ValueError: If the folder holds no ``*.safetensors``.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors; weights in another format are not read")
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _WHOLE for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    for path in weights:
        _add_chunks(digest, path)
    return digest.hexdigest()[:16]


def _add_chunks(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for position in range(0, size, max(size // CHUNKS, CHUNK_BYTES)):
            file.seek(position)
            digest.update(file.read(CHUNK_BYTES))
