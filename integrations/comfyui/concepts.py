"""A node for ComfyUI: a prompt that mentions concepts, ``a <rex> on the beach``, and the banks that they stand in.

ComfyUI calls a patch in the place of a layer's attention, with projected queries, keys and values
(``set_model_attn2_replace`` in ``comfy/model_patcher.py``; ``BasicTransformerBlock.forward`` in
``comfy/ldm/modules/attention.py``). There a bank's rows are written, by the code that ``generate.py`` draws with.

Shapes: B rows of text, L tokens, N cells, D width of one layer.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from src.data.mentions import NAME, check_name, shown
from src.data.prompts import concept_positions
from src.data.schema import RefusedFileError
from src.modules.backbones.original_names import original_name
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import BlendedText, Placement

POSITIVE = 0
"""How ComfyUI marks the rows of a positive prompt in ``cond_or_uncond``."""


def block_of(layer: str) -> tuple[str, int, int]:
    """Find ComfyUI's key of a layer of diffusers: ``("input", 4, 0)`` of ``input_blocks.4.1.transformer_blocks.0``.

    Raises:
        ValueError: If the UNets of Stable Diffusion and SDXL have no such layer.
    """
    side, *places = original_name(layer).split(".")
    kind = side.partition("_")[0]
    return kind, 0 if kind == "middle" else int(places[0]), int(places[-2])


def read_banks(text: str) -> dict[str, ConceptBank]:
    """Read the banks of a node: one path a line, named by its file, or ``rex=PATH``.

    Raises:
        ValueError: If a name is none that a prompt can carry, or a file is no bank.
    """
    banks = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        given, equals, path = line.partition("=")
        name, path = (given, path) if equals and NAME.fullmatch(given) else (Path(line).stem, line)
        check_name(name, f"the name of {path}")
        banks[name] = ConceptBank.load(path)
    return banks


def check_fits(name: str, bank: ConceptBank, unet: nn.Module) -> None:
    """Make sure that a bank has the layers of ComfyUI's UNet, and their widths.

    Raises:
        ValueError: If it was made for a model of another kind.
    """
    theirs = {
        f"{kind}.{layer}": getattr(module, f"to_{kind}").out_features
        for layer, module in unet.named_modules()
        if layer.endswith(".attn2")
        for kind in "kv"
    }
    ours = {f"{row[:2]}{original_name(row[2:])}": tensor.shape[1] for row, tensor in bank.rows.items()}
    if ours != theirs:
        raise RefusedFileError(
            f"the bank of {name} was made for {bank.metadata.get('backbone', 'another model')}, with {len(ours) // 2} "
            f"layers of its own widths; this model has {len(theirs) // 2}: load the model that the bank was learnt with"
        )


@dataclass(frozen=True)
class Blending:
    """What stands in the place of one layer's attention.

    Attributes:
        layer: Name of the layer in diffusers, as banks have it.
        placements: The concepts of the positive prompt.
        length: Tokens L of the positive prompt, padding included.
        below: Noise level sigma below which concepts act; infinite for all of them.
        before: What another node had put here; None for ComfyUI's own attention.
    """

    layer: str
    placements: Sequence[Placement]
    length: int
    below: float = float("inf")
    before: Callable[..., Tensor] | None = None

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Attend with queries ``(B, N, D)`` to keys and values ``(B, L, D)`` in which concepts stand: ``(B, N, D)``."""
        if self.below == float("inf") or float(options["sigmas"].max()) < self.below:
            keys, values = (self.written(*each, options["cond_or_uncond"]) for each in (("k", keys), ("v", values)))
        if self.before is not None:
            return self.before(queries, keys, values, options)
        # There is no ComfyUI where this file is only read.
        from comfy.ldm.modules.attention import optimized_attention

        precision = options.get("attn_precision")
        return optimized_attention(queries, keys, values, options["n_heads"], attn_precision=precision)

    def written(self, kind: str, projected: Tensor, marks: Sequence[int]) -> Tensor:
        """Write concepts into the positive rows of keys or values ``(B, L or a multiple, D)``, a new tensor.

        Args:
            kind: ``k`` or ``v``.
            projected: One part for each mark; a text is repeated where another one beside it is longer.
            marks: ``POSITIVE`` or another number for each part.

        Raises:
            ValueError: If the text is none that the node encoded.
        """
        if projected.shape[1] % self.length:
            raise ValueError(
                f"the prompt has {projected.shape[1]} tokens, but the concepts were placed in {self.length}; connect "
                "the conditioning of this node as it is"
            )
        parts = list(projected.chunk(len(marks)))
        for at in (at for at, mark in enumerate(marks) if mark == POSITIVE):
            texts = parts[at].reshape(-1, self.length, projected.shape[2])  # (B times repeats, L, D)
            blended = BlendedText([self.placements] * len(texts))(f"{kind}.{self.layer}", texts, texts)
            parts[at] = blended.reshape(parts[at].shape)
        return torch.cat(parts)


class Concepts:
    """The node: encodes a prompt with class nouns for concepts, and blends their banks into the model's attention."""

    CATEGORY: ClassVar[str] = "conditioning"
    FUNCTION: ClassVar[str] = "place"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple]]:  # noqa: N802 (ComfyUI's name)
        """Say what is connected and typed."""
        start = {"default": 0.9, "min": 0.05, "max": 1.0, "step": 0.05}
        texts = {
            "prompt": ("STRING", {"multiline": True, "default": "a <rex> on the beach"}),
            "banks": ("STRING", {"multiline": True, "default": "rex=/home/me/rex.safetensors"}),
        }
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), **texts, "blending_start": ("FLOAT", start)}}

    @classmethod
    def IS_CHANGED(cls, banks: str, **others: Any) -> list[float]:  # noqa: N802 (ComfyUI's name)
        """Return what changes when a bank is learnt anew: the times of the files."""
        paths = [path for line in banks.splitlines() for path in (line.strip(), line.partition("=")[2].strip())]
        return [os.path.getmtime(path) for path in paths if os.path.isfile(path)]

    def place(self, model: Any, clip: Any, prompt: str, banks: str, blending_start: float = 0.9) -> tuple[Any, Any]:
        """Return the model with concepts in it, and the conditioning of the prompt.

        Args:
            model: ComfyUI's ``ModelPatcher`` of Stable Diffusion or SDXL; it stays as it is.
            clip: Its ``CLIP``.
            prompt: Text with mentions, also ``<rex:0.7>``; parentheses are plain characters.
            banks: See ``read_banks``.
            blending_start: Share of the noise schedule below which concepts act; 1 for all of it.

        Raises:
            ValueError: If the prompt or a bank is none that fits the model.
        """
        known = read_banks(banks)
        for name, bank in known.items():
            check_fits(name, bank, model.model.diffusion_model)
        if not hasattr(clip.tokenizer, "clip_l"):
            raise ValueError("this CLIP is not that of Stable Diffusion 1.x or SDXL; connect the one of the checkpoint")
        tokenizer = clip.tokenizer.clip_l.tokenizer
        marked, found = concept_positions(tokenizer, prompt, {name: bank.class_noun for name, bank in known.items()})
        tokens = clip.tokenize(marked.plain.replace("(", r"\(").replace(")", r"\)"))
        ids = list(tokenizer(marked.plain).input_ids)
        for texts in tokens.values():
            read = [one[0] if isinstance(one[0], int) else None for one in texts[0]]
            if len(texts) > 1 or read[: len(ids)] != ids:
                raise ValueError(
                    f"ComfyUI reads {shown(marked.plain)} in {len(texts)} parts or with an embedding, where no concept "
                    "has a place; give a prompt of at most 75 tokens, and no embedding:"
                )
        placements = []
        for (name, positions), mention in zip(found, marked.mentions, strict=True):
            if len(positions) != known[name].num_tokens:
                raise ValueError(
                    f"<{name}> takes {len(positions)} tokens here, but its bank has {known[name].num_tokens}; load the "
                    "model that it was learnt with"
                )
            bank = known[name].to(model.load_device, torch.float32)
            placements.append(Placement(bank, positions, mention.strength))
        patched, conditioning = model.clone(), clip.encode_from_tokens_scheduled(tokens)
        there = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        sampling = patched.get_model_object("model_sampling")
        below = sampling.percent_to_sigma(1 - blending_start) if blending_start < 1 else float("inf")
        for layer in (row[2:] for row in (placements[0].bank.rows if placements else ()) if row.startswith("k.")):
            key = block_of(layer)
            before = there.get(key, there.get(key[:2]))
            blending = Blending(layer, placements, conditioning[0][0].shape[1], below, before)
            patched.set_model_attn2_replace(blending, *key)
        return patched, conditioning
