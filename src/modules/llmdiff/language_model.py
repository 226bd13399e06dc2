"""A decoder-only language model on disk: its configuration is read at once, its weights when they are first needed."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import is_gguf_available

from src.data.first_looks import LanguageModelPlace, is_gguf, looks_local
from src.data.identity import file_hash, folder_identity
from src.modules.backbones.tensors import DTYPES
from src.modules.llmdiff.decoder import Decoder
from src.modules.llmdiff.options import EncodingOptions

SAMPLED = 16
"""Digits of a revision in adapters of earlier versions, which hashed samples of the files; of all files it has 64."""
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class Identity:
    """Identifies a language model: its name, a hash of its files (``revision``), and its precision."""

    name: str
    revision: str
    dtype: str


class LanguageModel:
    """Configuration and tokenizer of a model, and its weights while they are needed.

    Args:
        place: Folder in the layout of transformers, with safetensors; or a GGUF file, which holds its configuration and
            tokenizer, too. Its quantised weights are read into ``dtype``.
        name: Name of the model in adapters and reports.
        dtype: Precision that it runs in, as torch names it.

    Raises:
        ValueError: If there is no decoder-only model, ``dtype`` is unknown, or GGUF files cannot be read here.
    """

    incidental: ClassVar[tuple[str, ...]] = ("path", "revision", "local_files_only")

    def __init__(self, place: str | Path, name: str, dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"llm.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        place = Path(place)
        is_file = is_gguf(place)
        if is_file and not is_gguf_available():
            raise ValueError(f"{name} is a GGUF file, which needs a package more: pip install -e '.[gguf]'")
        self._read: dict[str, Any] = {"trust_remote_code": False, **({"gguf_file": place.name} if is_file else {})}
        self.folder = place.parent if is_file else place
        try:
            config = AutoConfig.from_pretrained(self.folder, **self._read)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            reason = str(error).partition("\n")[0].partition(" You can inspect")[0]
            raise ValueError(f"{name} cannot be loaded without code of its own: {reason}") from error
        check_decoder_only(config, name)
        self.config = config.get_text_config()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder, **self._read)
        self.identity = Identity(name, file_hash(place) if is_file else folder_identity(place), dtype)
        self.device = torch.device("cpu")
        self._decoder: Decoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: LanguageModelPlace,
        dtype: str = "float32",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> "LanguageModel":
        """Find a local folder or GGUF file, or fetch a hub id; the weights are not loaded into memory.

        Raises:
            ValueError: If there is no such model, or it is not decoder-only.
        """
        place = Path(path).expanduser()
        if is_gguf(place) or (place / "config.json").exists():
            return cls(place, path, dtype)
        if looks_local(path):
            raise ValueError(f"{path} is no language model folder: it has no config.json, and it is no GGUF file")
        try:
            config = AutoConfig.from_pretrained(
                path, revision=revision, local_files_only=local_files_only, trust_remote_code=False
            )
            check_decoder_only(config, path)
            folder = snapshot_download(
                path, revision=revision, allow_patterns=_FILES, local_files_only=local_files_only
            )
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0].partition(" You can inspect")[0].rstrip(".")
            raise ValueError(f"cannot get the language model {path}: {reason}; give a hub id or a folder") from error
        return cls(folder, path, dtype)

    @classmethod
    def content(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash what these arguments of ``from_pretrained`` load, without loading it."""
        names = ("path", "revision", "local_files_only")
        return {"files": cls.from_pretrained(**{k: settings[k] for k in names if k in settings}).identity.revision}

    @property
    def width(self) -> int:
        """Width D of its states."""
        return int(self.config.hidden_size)

    @property
    def num_blocks(self) -> int:
        """Number T of its blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def context_length(self) -> int | None:
        """Most tokens that it takes; None if its positions have no end."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._decoder is not None

    @property
    def decoder(self) -> Decoder:
        """The frozen model, which is loaded if it is not in memory."""
        if self._decoder is None:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=DTYPES[self.identity.dtype], use_safetensors=True, **self._read
            )
            self._decoder = Decoder(model.to(self.device))
        return self._decoder

    def to(self, device: torch.device | str) -> "LanguageModel":
        """Move the model to a device; if it is not in memory, it is loaded there later."""
        self.device = torch.device(device)
        if self._decoder is not None:
            self._decoder.to(self.device)
        return self

    def free(self) -> None:
        """Free the memory of the weights; the next prompt that is not cached loads them again."""
        self._decoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def token_ids(self, prompts: Sequence[str], options: EncodingOptions) -> list[list[int]]:
        """Tokenize every prompt, without padding or truncation; the empty prompt is the first (and the end) token.

        Raises:
            ValueError: If a prompt is longer than the model's context or ``options.max_length``, or has no token.
        """
        limits = [limit for limit in (self.context_length, options.max_length) if limit is not None]
        found = []
        for prompt, ids in zip(prompts, self.tokenizer(list(prompts)).input_ids, strict=True):
            ids = self._framed(list(ids), options)
            if not ids:
                raise ValueError(f"{prompt!r} has no token for {self.identity.name}; use encoding.bos=always")
            if limits and len(ids) > min(limits):
                raise ValueError(
                    f"prompt of {len(ids)} tokens, but {self.identity.name} is to take at most {min(limits)}: "
                    f"shorten {prompt[:60]!r}..."
                )
            found.append(ids)
        return found

    def _framed(self, ids: list[int], options: EncodingOptions) -> list[int]:
        """Add a first token, which models use as an attention sink, and an end token, as the options say."""
        if options.bos == "always" and ids[:1] != [self._first_id]:
            ids = [self._first_id, *ids]
        if options.append_eos and (len(ids) < 2 or ids[-1] != self._end_id):
            ids = [*ids, self._end_id]
        return ids

    @property
    def _first_id(self) -> int:
        return self._special("bos_token_id", "eos_token_id")

    @property
    def _end_id(self) -> int:
        return self._special("eos_token_id", "bos_token_id")

    def _special(self, *names: str) -> int:
        for holder in (self.tokenizer, self.config):
            for name in names:
                value: Any = getattr(holder, name, None)
                if value is not None:
                    return int(value[0] if isinstance(value, list) else value)
        raise ValueError(
            f"the tokenizer of {self.identity.name} has neither a first nor an end token; use encoding.bos=default and "
            "encoding.append_eos=false"
        )


def check_decoder_only(config: PretrainedConfig, name: str) -> None:
    """Refuse, by its configuration, a model that is not a decoder-only language model, before weights are read.

    Raises:
        ValueError: If it is encoder-decoder, encoder-only, or no language model.
    """
    kind = config.model_type
    advice = "LLMDiff needs a decoder-only one, such as Llama, Qwen or Gemma"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} ({kind}) is an encoder-decoder model; {advice}")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ValueError(f"{name} ({kind}) is an encoder-only model; {advice}")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{name} ({kind}) is no causal language model of transformers; {advice}")
