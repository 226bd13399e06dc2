"""Encode prompts to the block-wise states of a frozen decoder-only language model, and cache these on disk.

Shapes: B prompts, K states of a token, L tokens, D width of the language model.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from rich.progress import track
from torch import Tensor

from src.data.finite import check_finite
from src.data.ranges import BatchSize, Positive
from src.data.store import TensorStore
from src.modules.llmdiff.language_model import Identity, LanguageModel
from src.modules.llmdiff.options import EncodingOptions
from src.modules.llmdiff.states import num_terms, read_states

WIDER = "take llm.dtype=bfloat16 or float32; in drawing, method.encoder.dtype"
"""Advice where a language model overflows in float16."""


class EncodingCache(TensorStore):
    """Stores the states ``(K, L, D)`` of each text, without padding, in a file of its own.

    Args:
        folder: Folder of the files.
        max_gigabytes: Size beyond which old files are removed, see ``Store``.
    """

    pattern = "??/*.safetensors"

    def __init__(self, folder: str | Path, max_gigabytes: Positive = 20.0) -> None:
        super().__init__(folder, "states", max_gigabytes)

    def key(self, identity: Identity, options: EncodingOptions, text: str) -> str:
        """Hash all that an encoding depends on, to the name of its file."""
        record = json.dumps([asdict(identity), asdict(options), text], sort_keys=True)
        digest = hashlib.sha256(record.encode()).hexdigest()
        return f"{digest[:2]}/{digest[2:34]}"


@dataclass
class TextStates:
    """Encoded prompts, padded on the right with zeros.

    Attributes:
        states: Initial c, then the terms that are added to it, ``(B, K, L, D)``; see ``read_states``.
        mask: True at real tokens, ``(B, L)``; every row has at least one.
    """

    states: Tensor
    mask: Tensor

    @classmethod
    def stack(cls, rows: Sequence[Tensor]) -> "TextStates":
        """Join unpadded prompts ``(K, L_i, D)`` to a batch."""
        lengths = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
        number, _, width = rows[0].shape
        states = rows[0].new_zeros(len(rows), number, int(lengths.max()), width)  # (B, K, L, D)
        for padded, row in zip(states, rows, strict=True):
            padded[:, : row.shape[1]] = row
        return cls(states, torch.arange(states.shape[2], device=states.device) < lengths[:, None])

    def to(self, device: torch.device | str) -> "TextStates":
        """Move to a device."""
        return TextStates(self.states.to(device), self.mask.to(device))


class LLMEncoder:
    """Encodes prompts of any length up to the model's context, each text once.

    Args:
        language_model: The model, which is loaded when a prompt is not in the cache.
        options: Which states are read from it.
        cache: Encodings on disk; None to encode every time. They are larger than images: 34 MB for 128 tokens of a 7B
            model in bfloat16.
        batch_size: Number of prompts encoded at a time; it does not change an encoding beyond rounding.
        keep_loaded: Whether the language model stays in memory; else it is freed after every call that needed it.

    Raises:
        ValueError: If the options name a block that the model does not have.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache", "keep_loaded")

    def __init__(
        self,
        language_model: LanguageModel,
        options: EncodingOptions | None = None,
        cache: EncodingCache | None = None,
        batch_size: BatchSize = 16,
        keep_loaded: bool = True,
    ) -> None:
        self.language_model, self.options = language_model, options or EncodingOptions()
        self.cache, self.batch_size, self.keep_loaded = cache, batch_size, keep_loaded
        number = language_model.num_blocks
        if self.options.blocks is not None and max(self.options.blocks) >= number:
            raise ValueError(
                f"encoding.blocks names block {max(self.options.blocks)}, but {self.identity.name} has {number}: "
                f"0 to {number - 1}"
            )

    @property
    def identity(self) -> Identity:
        """Name, revision and precision of the language model."""
        return self.language_model.identity

    @property
    def width(self) -> int:
        """Width D of a state."""
        return self.language_model.width

    @property
    def num_terms(self) -> int:
        """Number of states of a token besides the first, K - 1."""
        return num_terms(self.language_model.num_blocks, self.options)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Count the tokens of every prompt, which does not load the model.

        Raises:
            ValueError: If a prompt is too long; the message names it.
        """
        return [len(ids) for ids in self.language_model.token_ids(prompts, self.options)]

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """Encode a batch of prompts, without gradient, on the language model's device.

        Raises:
            ValueError: If a prompt is too long; nothing was encoded then.
        """
        rows = self._rows(prompts)
        return TextStates.stack([rows[prompt] for prompt in prompts])

    def encode_ahead(self, prompts: Sequence[str]) -> int:
        """Encode the prompts that the cache lacks; afterwards the language model may be freed.

        Returns:
            The number of prompts that were encoded.

        Raises:
            ValueError: If a prompt is too long, or there is no cache.
        """
        if self.cache is None:
            raise ValueError("prompts are encoded ahead into a cache, but there is none; give the encoder a cache")
        missing = [text for text in dict.fromkeys(prompts) if self._key(text) not in self.cache]
        batches = list(self._batches(missing))
        for batch in track(batches, f"encoding {len(missing)} prompts", disable=not missing, transient=True):
            self._encode(batch)
        self._done()
        return len(missing)

    def free(self) -> None:
        """Free the language model's memory; a prompt that is not cached loads it again."""
        self.language_model.free()

    def _done(self) -> None:
        if not self.keep_loaded and self.language_model.is_loaded:
            self.free()

    def _rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the unpadded states ``(K, L, D)`` of every text, from the cache or the model."""
        rows = {text: self._cached(text) for text in dict.fromkeys(prompts)}
        missing = [text for text, row in rows.items() if row is None]
        found = {text: row.to(self.language_model.device) for text, row in rows.items() if row is not None}
        for batch in self._batches(missing):
            found |= self._encode(batch)
        self._done()
        return found

    def _key(self, text: str) -> str:
        assert self.cache is not None
        return self.cache.key(self.identity, self.options, text)

    def _cached(self, text: str) -> Tensor | None:
        return None if self.cache is None else self.cache.read(self._key(text))

    def _batches(self, texts: Sequence[str]) -> Iterator[dict[str, list[int]]]:
        """Yield batches of texts of similar length with their ids; all are checked before the first batch."""
        ids = dict(zip(texts, self.language_model.token_ids(texts, self.options) if texts else [], strict=True))
        ordered = sorted(ids, key=lambda text: len(ids[text]))
        for start in range(0, len(ordered), self.batch_size):
            yield {text: ids[text] for text in ordered[start : start + self.batch_size]}

    def _encode(self, batch: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """Run the model on one batch; padding repeats the last token, and no real position sees it."""
        longest = max(map(len, batch.values()))
        padded = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in batch.values()])  # (B, L)
        # The precision of a training must not change an encoding, which is cached for other uses.
        with torch.autocast(self.language_model.device.type, enabled=False):
            states = read_states(self.language_model.decoder, padded, self.options)
        rows = {text: row[:, : len(batch[text])] for text, row in zip(batch, states, strict=True)}
        for text, row in rows.items():
            check_finite(row, f"the states that {self.identity.name} has of {text[:60]!r}", WIDER)
        if self.cache is not None:
            for text, row in rows.items():
                self.cache.write(self._key(text), row)
        return rows
