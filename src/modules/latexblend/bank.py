"""One concept in one file: the key and value rows of "V* noun" in every cross-attention layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from src.data.files import read_tensors, write_tensors

FORMAT = "atelier-concept-bank-1"


@dataclass(frozen=True)
class ConceptBank:
    """What LaTexBlend keeps of a subject, the paper's ``h_c``.

    Attributes:
        rows: ``k.<layer>`` and ``v.<layer>`` to ``(S, D)``; row 0 belongs to V*, the others to the noun's tokens.
        metadata: ``class_noun``, ``modifier_token``, ``backbone``, ``backbone_hash``, ``templates`` and how it was
            trained.
    """

    rows: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_noun(self) -> str:
        """The word that stands for the subject in plain prompts."""
        return self.metadata["class_noun"]

    @property
    def num_tokens(self) -> int:
        """Number of rows S in each layer: one for V*, one for each token of the noun."""
        return next(iter(self.rows.values())).shape[0]

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write the file atomically; all layers' ``(S, D)`` rows and a header."""
        rows = {name: row.to(dtype) for name, row in self.rows.items()}
        return write_tensors(path, rows, {**self.metadata, "format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptBank":
        """Read and verify a bank.

        Raises:
            ValueError: If the file is missing, truncated, no bank, or its content does not match its hash.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no concept bank at {path}; training writes one to <run folder>/exports/*.safetensors")
        metadata, rows = read_tensors(path, FORMAT, "a concept bank", other="no concept bank")
        return cls(rows, metadata)

    def check(self, backbone_hash: str, widths: Mapping[str, int], name: str) -> None:
        """Make sure that the bank was made for a backbone.

        Args:
            backbone_hash: Fingerprint of the backbone's cross-attention projections.
            widths: Name of a projection to its output width D.
            name: Name of the backbone, for messages.

        Raises:
            ValueError: If it was made for another backbone.
        """
        if self.metadata.get("backbone_hash") != backbone_hash:
            made_for = f"{self.metadata.get('backbone')} ({self.metadata.get('backbone_hash')})"
            raise ValueError(f"this bank was made for the backbone {made_for}, but {name} is {backbone_hash}")
        expected = {layer: (self.num_tokens, width) for layer, width in widths.items()}
        actual = {layer: tuple(row.shape) for layer, row in self.rows.items()}
        if expected != actual:
            wrong = sorted(
                layer for layer in expected.keys() | actual.keys() if expected.get(layer) != actual.get(layer)
            )
            raise ValueError(
                f"bank and backbone differ in {len(wrong)} layers, first {wrong[0]}: "
                f"bank {actual.get(wrong[0])}, backbone {expected.get(wrong[0])}"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ConceptBank":
        """Move the rows to a device and a precision."""
        return ConceptBank({name: row.to(device, dtype) for name, row in self.rows.items()}, self.metadata)
