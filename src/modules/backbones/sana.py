"""Sana (Xie et al., arXiv 2410.10629): a linear transformer whose cross-attention reads the states of Gemma 2.

Shapes: B prompts, L tokens, D text width, C latent channels.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from torch import Tensor, nn

from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.noising import FlowMatching
from src.modules.backbones.tensors import Noised

MAX_TOKENS = 300
"""Number of text tokens that the stock pipeline keeps."""
INSTRUCTION: list[str] = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What the stock pipeline puts before every prompt, and not before a negative one."""


class InstructedTokenizer:
    """Gemma's tokenizer, which reads a prompt behind an instruction, and returns the rows that cross-attention keeps.

    These are the token of the beginning and those of the prompt. The instruction ends with a space, whose token is one
    with the prompt's first word: so what is cut off is one token less than the instruction has alone.

    Args:
        own: Gemma's tokenizer.
        instruction: Text before every prompt.
        max_length: Number of rows.

    Attributes:
        before: Token ids of the beginning and the instruction, which are cut off but for the first.
    """

    def __init__(self, own: Any, instruction: str, max_length: int) -> None:
        self.own, self.instruction, self.model_max_length = own, instruction, max_length
        self.before: list[int] = own(instruction).input_ids[:-1]

    def __getattr__(self, name: str) -> Any:
        """Be Gemma's tokenizer in everything else."""
        if name == "own":  # While it is copied.
            raise AttributeError(name)
        return getattr(self.own, name)

    def __call__(self, text: str | list[str], add_special_tokens: bool = True, **options: Any) -> Any:
        """Tokenize prompts, with offsets in the prompt itself; without special tokens, as words inside a sentence.

        Raises:
            ValueError: If the tokenizer joins the start of a prompt with the instruction.
        """
        if not add_special_tokens:
            return self.own(f" {text}", add_special_tokens=False, **options)
        one = isinstance(text, str)
        texts: list[str] = [text] if isinstance(text, str) else text
        room = {"max_length": options.pop("max_length") + len(self.before) - 1} if "max_length" in options else {}
        # The stock pipeline strips prompts; what is left of the start, offsets would miss, see ``as_read``.
        whole = [self.instruction + each.rstrip() for each in texts]
        tensors = options.pop("return_tensors", None)
        found = self.own(whole, **options, **room)
        for ids, prompt in zip(found.input_ids, texts, strict=True):
            if ids[: len(self.before)] != self.before:
                raise ValueError(f"Sana joins the start of {prompt[:40]!r} with its instruction; start with a word")
        kept = {name: [[row[0], *row[len(self.before) :]] for row in rows] for name, rows in found.items()}
        if "offset_mapping" in kept:
            kept["offset_mapping"] = [[self._inside(each) for each in row] for row in kept["offset_mapping"]]
        return type(found)({name: rows[0] if one else rows for name, rows in kept.items()}, tensor_type=tensors)

    def _inside(self, characters: tuple[int, int]) -> tuple[int, int]:
        first, last = (max(at - len(self.instruction), 0) for at in characters)
        return first, last


class SanaBackbone(FlowMatching, Backbone):
    """A Sana pipeline of any size.

    A small network and a norm (``caption_projection``, ``caption_norm``) stand between Gemma and the keys and values
    of cross-attention, which a concept's rows are taken from. Prompts stand behind the pipeline's instruction, as in
    its training; a concept's rows have read it, but it has no rows itself.
    """

    pipelines = (SanaPipeline,)
    option = "sana_600m"

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """Gemma's tokenizer behind the instruction, and its decoder without the last layer's words."""
        self.pipeline.tokenizer.padding_side = "right"
        tokenizer = InstructedTokenizer(self.pipeline.tokenizer, "\n".join(INSTRUCTION), MAX_TOKENS)
        return [(tokenizer, self.pipeline.text_encoder)]

    def training_schedule(self) -> Any:
        """Make the schedule of the checkpoint's own path, whose shift a solver of differential equations keeps."""
        config = self.pipeline.scheduler.config
        shift = config.get("flow_shift", config.get("shift", 1.0))
        return FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, shift=shift)

    @property
    def last_timestep(self) -> float:
        """The timestep of pure noise, as the transformer is told it."""
        return super().last_timestep * self.denoiser.config.timestep_scale

    @property
    def call(self) -> dict[str, Any]:
        """Arguments that keep the pipeline from rewriting prompts and resizing pictures, and name its instruction."""
        return {
            "clean_caption": False,
            "use_resolution_binning": False,
            "complex_human_instruction": INSTRUCTION,
        }

    def as_read(self, prompt: str) -> str:
        """Lower the prompt's case and drop the spaces before it, as Sana does."""
        return prompt.lower().lstrip()

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)`` behind the instruction, keep their own states, and mark which are not padding."""
        tokens = ids[0].to(self.text_encoders[0].device)
        before = tokens.new_tensor(self.tokenizers[0].before[1:]).expand(len(tokens), -1)
        whole = torch.cat([tokens[:, :1], before, tokens[:, 1:]], dim=1)
        mask = (whole != self.tokenizers[0].pad_token_id).long()
        states = self.text_encoders[0](whole, attention_mask=mask)[0]
        at = [0, *range(1 + before.shape[1], whole.shape[1])]
        return Text(states[:, at], mask=mask[:, at])

    def read_text(self, prompt_embeds: Tensor) -> Tensor:
        """Project Gemma's states ``(..., D)`` and norm them, ``(..., width of the transformer)``."""
        return self.denoiser.caption_norm(self.denoiser.caption_projection(prompt_embeds))

    def encoded(self, text: Text) -> dict[str, Any]:
        """Return the arguments of a stock call that reads text states, and which of them are padding."""
        return {"prompt_embeds": text.prompt_embeds, "prompt_attention_mask": text.mask}

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``(B, 3, H, W)`` in [-1, 1] to scaled latents ``(B, C, H/32, W/32)``.

        Raises:
            ValueError: If the sides are no multiples of the latents' cells.
        """
        cell, (height, width) = self.pipeline.vae_scale_factor, pixel_values.shape[-2:]
        if height % cell or width % cell:
            raise ValueError(
                f"{self.name} takes pictures whose sides are multiples of {cell} pixels, and these have {width} x "
                f"{height}; give another data.resolution, such as {max(cell, width // cell * cell)}"
            )
        return super().encode_images(pixel_values)

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict ``noise - x_0``, ``(B, C, h, w)``."""
        return self.denoiser(
            noised.noisy_latents.to(self.dtype),
            encoder_hidden_states=text.prompt_embeds.to(self.dtype),
            encoder_attention_mask=text.mask,
            timestep=noised.timesteps * self.denoiser.config.timestep_scale,
        ).sample
