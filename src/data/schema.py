"""What a file that may come from somebody else must hold: declared once for each kind, and checked before any use.

A file's metadata is text of others: it is compared with a declaration, never formatted, evaluated or looked up.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.data.files import digest, whole_file
from src.data.model_spec import FIELDS, START, model_spec


class RefusedFileError(ValueError):
    """A file that is missing, damaged, of another kind, or holds what its kind may not hold; says so in a sentence."""


Check = Callable[[str], str | None]
"""From the text of one field to what is expected of it, or None if it is so."""
Metadata = Mapping[str, str]
Shapes = Mapping[str, Sequence[int]]
"""Name of a tensor to its shape."""

WIDEST = 2**17
"""Largest length of a row of weights; no published model is a tenth as wide."""
FLOATS = ("F16", "BF16", "F32", "F64")


def matching(pattern: str, expected: str) -> Check:
    """Text that a whole regular expression describes."""
    return lambda text: None if re.fullmatch(pattern, text) else expected


def shown(most: int = 300, fewest: int = 0) -> Check:
    """Text that errors and reports may show: one line without control characters."""

    def check(text: str) -> str | None:
        fits = fewest <= len(text) <= most and text.isprintable()
        return None if fits else f"{fewest} to {most} printable characters on one line"

    return check


def number(low: int, high: int) -> Check:
    """A whole number from ``low`` to ``high``."""
    digits = re.compile(r"-?[0-9]{1,20}")
    return lambda text: None if digits.fullmatch(text) and low <= int(text) <= high else f"{low} to {high}"


def one_of(*choices: str) -> Check:
    """One of some words."""
    return lambda text: None if text in choices else f"one of {', '.join(choices)}"


SHA256 = matching("[0-9a-f]{64}", "a sha256")
NOUN = matching(r"[^\W_][^<>{}\x00-\x1f\x7f]{0,99}", "a plain word or two, such as dog")
NAME = matching(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", "a name of letters, digits, dots and dashes")
HASH = matching(r"[0-9a-f]{1,64}", "a hexadecimal hash")
TEMPLATE = matching(r"[^{}\x00-\x1f\x7f]{0,200}\{\}", "a text that ends with its one slot {}, such as 'photo of {}'")


LONGEST = 20_000
"""Most characters of JSON in a field."""


def of_dataclass(kind: type) -> Check:
    """JSON of the fields of a dataclass; a field that is left out has its default."""

    def check(text: str) -> str | None:
        if len(text) > LONGEST:
            return f"at most {LONGEST} characters"
        try:
            parsed(kind, text)
        except ValueError as error:
            return str(error)
        return None

    return check


def parsed(kind: type, text: str) -> Any:
    """Read a dataclass from JSON.

    Raises:
        ValueError: If the text is no such JSON, or the class refuses its values; the message says what is expected.
    """
    values = read_object(text)
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"no {name!r}, but fields of {', '.join(hints)}")
        if not _is_of(value, hints[name]):
            raise ValueError(f"another type of {name} than {type(value).__name__}")
    return kind(**values)


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object whose numbers are finite.

    Raises:
        ValueError: If it is none; the message says what is expected.
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError("a JSON object of finite numbers and texts")
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a JSON value fits an annotation of plain types, unions and sequences of them."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_of(value, kind) for kind in get_args(annotation))
    if get_origin(annotation) is not None and issubclass(get_origin(annotation), Sequence):
        return isinstance(value, list) and all(_is_of(one, get_args(annotation)[0]) for one in value)
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is (type(None) if annotation is None else annotation)


@dataclass(frozen=True)
class FileKind:
    """A kind of safetensors file: its metadata field by field, and which tensors it holds.

    Attributes:
        name: What errors call it, such as ``a concept bank``.
        format: The metadata's ``format``.
        required: Fields that every file of this kind has; ``format`` and ``sha256`` are added.
        optional: Fields that it may have; there are no others.
        shapes: Says in a sentence what is wrong with the tensors' shapes and the metadata together, or None.
        made_by: Where such files come from, for the error of one that is not there.
    """

    name: str
    format: str
    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)
    shapes: Callable[[Metadata, Shapes], str | None] = lambda metadata, shapes: None
    made_by: str = ""

    def read_header(self, path: str | Path) -> dict[str, str]:
        """Read and check the metadata, and names, shapes and precisions of the tensors, but not the tensors.

        Raises:
            RefusedFileError: If the file is missing, cut short, of another kind, or holds what its kind may not.
        """
        return self._read(Path(path), names_only=True)[0]

    def read(self, path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Read and check the whole file.

        Raises:
            RefusedFileError: As in ``read_header``, or if a weight is not finite or the content not that of the hash.
        """
        metadata, tensors = self._read(Path(path), names_only=False)
        if metadata["sha256"] != digest(tensors):
            raise RefusedFileError(f"{path} was changed after it was written: its content does not match its sha256")
        self._refuse_infinite(path, tensors)
        return metadata, tensors

    def write(self, path: str | Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> Path:
        """Write a file atomically; what could not be read again is not written.

        Raises:
            RefusedFileError: As in ``read``.
        """
        # Tensors are copied, because a view would drag its whole storage into the file.
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        content = digest(whole)
        own = {key: text for key, text in metadata.items() if not key.startswith(START)}
        told = {**own, "format": self.format, "sha256": content, **model_spec(path, self.name, own, content)}
        self.check(path, told)
        self._check_shapes(path, told, {name: tuple(tensor.shape) for name, tensor in whole.items()})
        self._refuse_infinite(path, whole)
        with whole_file(path) as partial:
            save_file(whole, partial, metadata=told)
        return Path(path)

    def check(self, path: str | Path, metadata: Metadata, stamps: Collection[str] = ()) -> None:
        """Check metadata field by field: a training does so at its start, that it can be saved at its end.

        Args:
            path: The file, for errors.
            metadata: All its fields.
            stamps: Which of ``format`` and ``sha256``, that writing adds, must be there already.

        Raises:
            RefusedFileError: If a field is missing, unknown, or of another value than its kind may have.
        """
        spec = {f"{START}{name}": shown(20_000) for name in FIELDS}
        known = {"format": one_of(self.format), "sha256": SHA256, **spec, **self.required, **self.optional}
        missing = [name for name in (*self.required, *sorted(stamps)) if name not in metadata]
        if missing:
            raise RefusedFileError(f"{path} is not {self.name}: its metadata has no {missing[0]}")
        for name, text in metadata.items():
            if name not in known:
                raise RefusedFileError(f"{path} has the field {_shown(name)}, which {self.name} does not have")
            expected = known[name](text)
            if expected:
                raise RefusedFileError(f"{path} has {name}={_shown(text)}, but {self.name} has {expected} there")

    def _read(self, path: Path, names_only: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
        if not path.is_file():
            raise RefusedFileError(f"no file at {path}; give the path of {self.name}{self.made_by}")
        try:
            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                if metadata.get("format") == self.format:
                    self.check(path, metadata, {"format", "sha256"})
                    self._check_shapes(path, metadata, {name: part.get_shape() for name, part in slices.items()})
                    wrong = [name for name, part in slices.items() if part.get_dtype() not in FLOATS]
                    if wrong:
                        raise RefusedFileError(
                            f"{path} is not {self.name}: {_shown(wrong[0])} holds {slices[wrong[0]].get_dtype()}, but "
                            f"weights are of {', '.join(FLOATS)}"
                        )
                tensors = {} if names_only else {name: file.get_tensor(name) for name in slices}
        except (SafetensorError, OSError, UnicodeError, OverflowError) as error:
            raise RefusedFileError(f"{path} cannot be read as {self.name} ({error}); it may be truncated") from error
        if metadata.get("format") != self.format:
            told = _shown(metadata["format"]) if "format" in metadata else None
            raise RefusedFileError(f"{path} is not {self.name}: its format is {told}, expected {self.format!r}")
        return metadata, tensors

    def _check_shapes(self, path: str | Path, metadata: Metadata, shapes: Shapes) -> None:
        if not shapes:
            raise RefusedFileError(f"{path} is not {self.name}: it holds no tensor")
        for name, shape in shapes.items():
            if not all(side <= WIDEST for side in shape):
                raise RefusedFileError(f"{path} holds {_shown(name)} of shape {_shown(shape)}; no {self.name} does")
        fault = self.shapes(metadata, shapes)
        if fault:
            raise RefusedFileError(f"{path} is not {self.name}: {fault}")

    def _refuse_infinite(self, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise RefusedFileError(f"{path} cannot be {self.name}: {_shown(name)} holds values that are not finite")


def _shown(value: object, most: int = 80) -> str:
    """A value of a file as it may stand in a sentence: escaped and cut."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What errors call it, such as ``the manifest``.

    Raises:
        RefusedFileError: If it is missing, not UTF-8, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefusedFileError(f"there is no {path}, which is {what}") from None
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise RefusedFileError(f"{path} cannot be read as {what} ({reason}); it may be truncated") from error
