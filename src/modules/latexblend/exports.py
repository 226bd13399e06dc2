"""What a training learnt as files of other programs, beside the bank: W' or its change of low rank, and V*.

There the whole prompt goes through W', as class images do in training; in a bank only "V* noun" does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from src.data.files import digest, whole_file
from src.data.model_spec import model_spec
from src.modules.backbones.base import Backbone
from src.modules.backbones.original_names import LAYER, original_name
from src.modules.latexblend.flows import ConceptDelta

Format = Literal["custom_diffusion", "lora", "kohya"]
"""W' for ``load_attn_procs`` of diffusers; its change for ``load_lora_weights``, and by kohya's names."""

LOW_RANK = ("lora", "kohya")


def refuse_without_rank(formats: Iterable[str], rank: int | None) -> None:
    """Refuse formats of changes of low rank for a training of full ones.

    Raises:
        ValueError: If there is one.
    """
    for name in formats:
        if name in LOW_RANK and rank is None:
            raise ValueError(
                f"method.learner.exports.formats has {name}, which is a change of low rank, and this training learns "
                "full ones; add method.learner.rank=4"
            )


@dataclass(frozen=True)
class Exports:
    """What a training writes at its end.

    Attributes:
        path: File of the bank; the files of other programs are in a folder of its name beside it.
        formats: Formats of other programs.
    """

    path: str
    formats: Sequence[Format] = ()

    @property
    def folder(self) -> Path:
        """Folder of the files of other programs."""
        return Path(self.path).with_suffix("")

    def check(self, rank: int | None, backbone: Backbone) -> None:
        """Make sure, before a training, that what it learns can be written in the formats.

        Raises:
            ValueError: If one needs a rank and there is none, or the backbone is no UNet of Stable Diffusion or SDXL.
        """
        refuse_without_rank(self.formats, rank)
        for name in self.formats:
            if not all(LAYER.fullmatch(layer.partition(".")[2]) for layer in backbone.text_layers()):
                raise ValueError(
                    f"method.learner.exports.formats has {name}, which is for the UNets of Stable Diffusion and SDXL, "
                    f"and {backbone.name} is none; leave it out"
                )

    @torch.no_grad()
    def write(self, concept: str, delta: Any, backbone: Any, metadata: Mapping[str, str]) -> dict[str, str]:
        """Write what was learnt in each format, and V*, which all of them need; nothing for no format.

        Args:
            concept: What prompts call the subject, which names kohya's file.
            delta: What was learnt, a ``ConceptDelta`` where there is a format.
            backbone: The model that it was learnt with, then a ``UNetBackbone``.
            metadata: That of the bank.

        Returns:
            What each file is, and its path.
        """
        told = {key: metadata[key] for key in ("backbone", "class_noun", "references")}
        sizes = dict.fromkeys(("ss_network_dim", "ss_network_alpha"), str(delta.rank))
        files = {
            "custom_diffusion": ("Custom Diffusion", "pytorch_custom_diffusion_weights", _custom_diffusion, {}),
            "lora": ("LoRA", "pytorch_lora_weights", _lora, {}),
            "kohya": (
                "LoRA of kohya's names",
                f"{concept}_kohya",
                _kohya,
                {"ss_network_module": "networks.lora", **sizes},
            ),
        }
        written = {}
        for name in self.formats:
            what, stem, tensors, extra = files[name]
            written[what] = _write(self.folder / f"{stem}.safetensors", what, tensors(delta, backbone), told, extra)
        if self.formats:
            embeds = _embeddings(delta, metadata["modifier_token"])
            written["V* of these"] = _write(
                self.folder / "learned_embeds.safetensors", "an embedding", embeds, told, {}
            )
        return written


def _custom_diffusion(delta: ConceptDelta, backbone: Any) -> dict[str, Tensor]:
    """W' ``(D, C)`` of each layer, in the backbone's precision; a layer that was not trained is an empty tensor."""
    found = {name: torch.empty(0) for name in backbone.unet.attn_processors}
    for name, linear in backbone.text_layers().items():
        kind, _, layer = name.partition(".")
        found.pop(f"{layer}.processor", None)
        # Between two calls a layer's weights may be kept elsewhere, or in fewer bits.
        change = delta.weight(name)
        trained = linear.weight.to(change) + change
        found[f"{layer}.processor.to_{kind}_custom_diffusion.weight"] = trained.to(backbone.dtype)
    return found


def _lora(delta: ConceptDelta, backbone: Any) -> dict[str, Tensor]:
    """Factors ``(r, C)`` and ``(D, r)`` of each change under the names of peft; their scale is 1."""
    found = {}
    for name in backbone.text_layers():
        kind, _, layer = name.partition(".")
        down, up = delta.factors(name)
        found[f"unet.{layer}.to_{kind}.lora_A.weight"], found[f"unet.{layer}.to_{kind}.lora_B.weight"] = down, up
    return found


def _kohya(delta: ConceptDelta, backbone: Any) -> dict[str, Tensor]:
    """The same factors under kohya's names, which are those of the original files for SDXL alone; alpha is the rank."""
    found = {}
    for name in backbone.text_layers():
        kind, _, layer = name.partition(".")
        if backbone.is_sdxl:
            layer = original_name(layer, backbone.unet.config.layers_per_block)
        path = f"lora_unet_{layer.replace('.', '_')}_to_{kind}"
        found[f"{path}.lora_down.weight"], found[f"{path}.lora_up.weight"] = delta.factors(name)
        found[f"{path}.alpha"] = torch.tensor(float(delta.rank or 0))
    return found


def _embeddings(delta: ConceptDelta, token: str) -> dict[str, Tensor]:
    """V* ``(D,)`` under its token, or those of SDXL's two text encoders, ``(1, D)``, under their usual names."""
    if len(delta.modifier) == 1:
        return {token: delta.modifier[0]}
    return {name: vector[None] for name, vector in zip(("clip_l", "clip_g"), delta.modifier, strict=True)}


def _write(
    path: Path, what: str, tensors: Mapping[str, Tensor], told: Mapping[str, str], extra: Mapping[str, str]
) -> str:
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **extra, **model_spec(path, what, told, digest(whole))}
    with whole_file(path) as partial:
        save_file(whole, partial, metadata=metadata)
    return str(path)
