"""What a model is: hashes of all its files, computed once per file, or of its parts in memory."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from src.data.files import tensor_bytes, write_text
from src.data.model_index import read_model_index

KEPT = ".hashes.json"
"""File beside a model that keeps the hashes of its files."""
READ = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that a model's folder is loaded from."""
PICKLED = (".pth", ".pt", ".bin")
"""Suffixes of weights as authors publish them beside, or instead of, safetensors."""
VARIANT = re.compile(r"^[^.]+\..+\.safetensors$")
"""Weights in another precision beside the model's own, such as ``model.fp16.safetensors``, which are not read."""
SETTLED_SECONDS = 2.0
"""A file that changed a shorter time ago may change again without a new time, so its hash is not kept."""
LARGE = 10**9
"""Bytes from which on the log says that files are being hashed."""
PLACES = ("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_diffusers_version")
"""Entries of a configuration that say where a model came from, and nothing of what it does."""


def joined(hashes: Mapping[str, str], digits: int = 16) -> str:
    """Hash names and their hashes, in any order, to hexadecimal digits."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:digits]


def hashed(root: Path, files: Iterable[Path], beside: bool = True) -> dict[str, str]:
    """Hash the content of files; a hash is kept until size or times of its file change.

    Args:
        root: Folder that the files are in, at any depth.
        files: The files.
        beside: Whether hashes are kept in ``root``, if it can be written to; else in the user's cache.

    Returns:
        Path of each file below ``root`` to its sha256, 64 hexadecimal digits.

    Raises:
        OSError: If a file cannot be read.
    """
    paths = {path.relative_to(root).as_posix(): path for path in sorted(files)}
    places = [root / KEPT, _user_place(root)] if beside else [_user_place(root)]
    kept = {name: entry for place in reversed(places) for name, entry in _entries(place).items()}
    stamps = {name: _stamp(path) for name, path in paths.items()}
    missing = [name for name, stamp in stamps.items() if kept.get(name, [])[:-1] != stamp]
    if sum(stamps[name][0] for name in missing) >= LARGE:
        logging.getLogger(__name__).warning("hashing %s, once, to tell it from other models", root)
    with ThreadPoolExecutor() as pool:
        new = dict(zip(missing, pool.map(lambda name: _sha256(paths[name]), missing), strict=True))
    settled = {name: [*stamps[name], new[name]] for name in missing if _is_settled(paths[name], stamps[name])}
    if settled:
        _keep({**kept, **settled}, places)
    return {name: new[name] if name in new else kept[name][-1] for name in paths}


def _user_place(root: Path) -> Path:
    """Return the file in the user's cache that keeps the hashes of a folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "atelier" / "hashes" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]}.json"


def _entries(place: Path) -> dict[str, list[Any]]:
    """Read kept hashes; what cannot be read is computed again."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {name: entry for name, entry in found.items() if isinstance(entry, list) and len(entry) == 4}
    except (OSError, ValueError, AttributeError):
        return {}


def _keep(entries: Mapping[str, list[Any]], places: Sequence[Path]) -> None:
    """Write kept hashes to the first place that takes them; where none does, they are computed every time."""
    for place in places:
        try:
            write_text(place, json.dumps(entries, indent=0) + "\n")
        except OSError:
            continue
        return


def _stamp(path: Path) -> list[int]:
    """Return size, time of the content and time of the entry: a copy that keeps the first time has a new second one."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(path: Path, stamp: list[int]) -> bool:
    return _stamp(path) == stamp and time.time_ns() - max(stamp[1:]) > SETTLED_SECONDS * 1e9


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def projections_hash(projections: Mapping[str, Iterable[Tensor]]) -> str:
    """Hash the weights of the projections that read text to 16 hexadecimal digits, as they are in float16."""
    found = hashlib.sha256()
    for name, tensors in projections.items():
        found.update(name.encode())
        for weights in tensors:
            found.update(weights.detach().half().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def read_tensors(folder: Path, names: Collection[str], variant: str | None = None) -> dict[str, Tensor]:
    """Read some weights of one model by their names, in the precision of its files; the others stay on the disk."""
    found: dict[str, Tensor] = {}
    for path in model_files(folder, variant):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name) for name in set(names).intersection(file.keys())}
    return found


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash names, shapes, precisions and contents to 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor_bytes(tensor))
    return found.hexdigest()[:16]


def is_variant(path: Path, variant: str) -> bool:
    """Tell whether a file holds weights of this variant, such as ``fp16`` in ``model.fp16.safetensors``."""
    return path.suffix == ".safetensors" and path.name.partition(".")[2].startswith((f"{variant}.", f"{variant}-"))


def model_files(folder: Path, variant: str | None = None) -> list[Path]:
    """List what a model is loaded from: weights, configuration and tokenizer, without its subfolders.

    Args:
        folder: The model.
        variant: Weights that are taken before the plain ones, if there are any, such as ``fp16``.

    Raises:
        ValueError: If there are no ``*.safetensors``.
    """
    found = [path for path in sorted(folder.iterdir()) if path.suffix in READ and not path.name.startswith(".")]
    weights = [path for path in found if path.suffix == ".safetensors"]
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors; weights in another format are not read")
    chosen = [path for path in weights if variant is not None and is_variant(path, variant)]
    if chosen:
        return [path for path in found if path in chosen or path not in weights]
    unread = [path for path in weights if VARIANT.match(path.name)]
    # A folder that holds nothing else is read by them.
    return found if len(unread) == len(weights) else [path for path in found if path not in unread]


def folder_identity(folder: str | Path) -> str:
    """Hash weights, configuration and tokenizer of one model to 64 hexadecimal digits.

    Raises:
        ValueError: If the folder holds no ``*.safetensors``.
    """
    return joined(hashed(Path(folder), model_files(Path(folder))), digits=64)


def files_digest(files: Iterable[Path]) -> str:
    """Hash what a few files hold in this order, whatever their names are, to 64 hexadecimal digits."""
    return hashlib.sha256(b"".join(bytes.fromhex(_sha256(path)) for path in files)).hexdigest()


def file_hash(file: Path) -> str:
    """Hash the content of one file, whatever it is called, to 64 hexadecimal digits, which the user's cache keeps."""
    (found,) = hashed(file.parent, [file], beside=False).values()
    return found


def place_digest(place: Path) -> str:
    """Hash names and contents of a file, or of all files of a folder at any depth, to 16 hexadecimal digits.

    Hashes of the single files are kept in the user's cache.
    """
    if place.is_file():
        return joined(hashed(place.parent, [place], beside=False))
    files = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return joined(hashed(place, files, beside=False))


def place_identity(path: Path) -> str:
    """Hash one file of weights, or all files of a folder that a model may be loaded from, to 16 hexadecimal digits."""
    if path.is_file():
        return joined(hashed(path.parent, [path]))
    return joined(hashed(path, [one for one in path.iterdir() if one.suffix in (*READ, *PICKLED)]))


def warn_of_another(made_with: Mapping[str, str], content_hash: str, name: str, what: str) -> None:
    """Warn where something that fits a model's cross-attention was trained beside other weights.

    Args:
        made_with: Metadata of what was trained; files of earlier versions have no ``backbone_content``.
        content_hash: Hash of the model that is used.
        name: Name of this model.
        what: What the warning calls the file, such as "the bank of rex".
    """
    if made_with.get("backbone_content", content_hash) != content_hash:
        logging.getLogger(__name__).warning(
            "%s was trained with other files than %s: the same cross-attention, but perhaps another scheduler, "
            "autoencoder, other LoRAs or weights, with which images may differ",
            what,
            name,
        )


def pipeline_parts(folder: str | Path, variant: str | None = None) -> dict[str, str]:
    """Hash each part of a folder in diffusers' layout, such as ``unet`` and ``scheduler``, and its own settings.

    A part that is named and has no folder is left out: whether it may be missing is for diffusers to say.

    Raises:
        ValueError: If there is no such folder.
    """
    folder = Path(folder)
    settings = read_model_index(folder)
    named = [name for name, value in settings.items() if isinstance(value, list) and (folder / name).is_dir()]
    read = {name: _part_files(folder / name, variant) for name in named}
    found = hashed(folder, [path for files in read.values() for path in files])
    parts = {name: joined({key: found[key] for key in found if key.startswith(f"{name}/")}) for name in named}
    return {**parts, "settings": _json_hash(settings)}


def _part_files(folder: Path, variant: str | None) -> list[Path]:
    """List the files of a part; schedulers and tokenizers have no weights."""
    if any(folder.glob("*.safetensors")):
        return model_files(folder, variant)
    return [path for path in folder.iterdir() if path.suffix in READ and not path.name.startswith(".")]


def file_parts(folder: Path, file: Path) -> dict[str, str]:
    """Hash each part of a pipeline whose weights are all in one file.

    Args:
        folder: Folder in diffusers' layout with the configurations and tokenizers; weights in it are left alone.
        file: The weights, whatever the file is called.
    """
    weights = file_hash(file)
    settings = read_model_index(folder)
    parts = {"settings": _json_hash(settings)}
    for name in (name for name, value in settings.items() if isinstance(value, list) and (folder / name).is_dir()):
        files = [one for one in (folder / name).iterdir() if one.suffix in READ and one.suffix != ".safetensors"]
        told = {one.name: _json_hash(_read_json(one)) for one in files if not one.name.endswith(".index.json")}
        parts[name] = joined({**told, **({"weights": weights} if "config.json" in told else {})})
    return parts


def parts_in_memory(pipeline: Any) -> dict[str, str]:
    """Hash each part of a pipeline that was made in memory, with adapters that were loaded into it.

    Args:
        pipeline: A pipeline of diffusers.
    """
    present = {name: part for name, part in pipeline.components.items() if part is not None}
    return {
        **{name: (_module_hash if isinstance(p, nn.Module) else _saved_hash)(p) for name, p in present.items()},
        "settings": _json_hash(dict(pipeline.config)),
    }


def _module_hash(module: nn.Module) -> str:
    """Hash the configuration, every weight, and how strongly the layers of loaded adapters (LoRA) act."""
    config = getattr(module, "config", {})
    found = hashlib.sha256(_json_hash(config.to_dict() if hasattr(config, "to_dict") else dict(config)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor_bytes(tensor))
    for name, layer in module.named_modules():
        if hasattr(layer, "active_adapters") and hasattr(layer, "scaling"):
            found.update(f"{name} {layer.active_adapters} {layer.scaling} {layer.disable_adapters}".encode())
    return found.hexdigest()


def _saved_hash(part: Any) -> str:
    """Hash what a tokenizer, scheduler or image processor writes of itself."""
    with TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return joined({path.name: _json_hash(_read_json(path)) for path in files})


def _read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def _json_hash(settings: Any) -> str:
    if isinstance(settings, dict):
        settings = {key: value for key, value in settings.items() if key not in PLACES}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
