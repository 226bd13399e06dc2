"""DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242) with LoRA (arXiv 2106.09685) by peft, as in diffusers."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from src.data.banks import ConceptFile
from src.data.ranges import BatchSize, Rank, Sampling, Seed, Weight
from src.modules.backbones.base import Backbone
from src.modules.backbones.memory import refuse_rounded
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import Changes, RivalConcept
from src.modules.rivals.generator import Names, RivalGenerator
from src.modules.rivals.learner import RivalLearner

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of the denoiser that get a change, in self-attention and cross-attention."""
JOINT_ATTENTION = tuple(f"attn.{name}" for name in (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
"""Layers that do in joint attention, of image and text, as in diffusers' script for SD3, which leaves the second
attention of SD3.5 alone."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Layers of a CLIP text encoder that do."""


def add_lora(module: Any, layers: Sequence[str], rank: int) -> None:
    """Wrap the layers of these names in a module of diffusers or transformers with changes of low rank.

    Raises:
        ValueError: If the weights are kept in fewer bits.
    """
    from peft import LoraConfig  # Seconds, which no other method needs.

    refuse_rounded({name: one for name, one in module.named_modules() if name.endswith(tuple(layers))})
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(layers))
    module.add_adapter(config)


def lora_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of a module's changes."""
    return [weight for name, weight in module.named_parameters() if ".lora_" in name]


def lora_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a module's changes, ``down.<prefix>.<layer>`` ``(r, in)`` and ``up.<prefix>.<layer>`` ``(out, r)``."""
    found = {}
    for path, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            (name,) = layer.lora_A.keys()
            found[f"down.{prefix}.{path}"] = layer.lora_A[name].weight
            found[f"up.{prefix}.{path}"] = layer.lora_B[name].weight * layer.scaling[name]
    return found


@contextlib.contextmanager
def without_lora(modules: Sequence[Any]) -> Iterator[None]:
    """While active, the changes of modules do not act."""
    for module in modules:
        module.disable_adapters()
    try:
        yield
    finally:
        for module in modules:
            module.enable_adapters()


class DreamBoothLoRAGenerator(RivalGenerator):
    """Draws with the LoRAs of all concepts of a prompt at once, as people stack them.

    Args:
        backbone: The stock model.
        banks: As of ``RivalGenerator``.
        sampling: As there.
        scale: Strength of each LoRA where a prompt mentions several concepts.
        batch_size: As there.
        device: As there.
    """

    method = "dreambooth_lora"

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        scale: Weight = 1.0,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        self.scale = scale
        super().__init__(backbone, banks, sampling, batch_size, device)

    def options(self) -> dict[str, Any]:
        """Return the scale."""
        return {"scale": float(self.scale)}

    def combined(self, names: Names) -> Changes:
        """Return the changes of one concept, or the scaled sum of several."""
        scale = self.scale if len(names) > 1 else 1.0
        return {layer: scale * change for layer, change in super().combined(names).items()}


class DreamBoothLoRA(RivalLearner):
    """Learns low-rank changes of all attention layers, with prior images; the identifier V* stays a rare word's.

    Args:
        backbone: As of ``RivalLearner``; its denoiser is wrapped by peft.
        subject: As there.
        cache_dir: As there.
        export_path: As there.
        rank: Rank of the changes.
        prior_loss_weight: As there.
        initializer: The rare word whose embedding the identifier keeps.
        sampling: As there.
        seed: As there.
    """

    method = "dreambooth_lora"
    draws: ClassVar[type[RivalGenerator]] = DreamBoothLoRAGenerator
    needs_cross_attention: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        rank: Rank = 16,
        prior_loss_weight: Weight = 1.0,
        initializer: str = "sks",
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        self.rank = rank
        super().__init__(
            backbone, subject, cache_dir, export_path, prior_loss_weight, initializer, sampling=sampling, seed=seed
        )

    def first_tokens(self) -> list[nn.Parameter]:
        """Return the identifier's embedding, which is not trained."""
        return [nn.Parameter(tokens.data, requires_grad=False) for tokens in super().first_tokens()]

    def add_weights(self) -> None:
        """Wrap the denoiser; a checkpoint holds the changes alone."""
        add_lora(self.backbone.denoiser, JOINT_ATTENTION if self.backbone.joint else ATTENTION, self.rank)
        self.lora = nn.ParameterList(lora_parameters(self.backbone.denoiser))

    def stock(self) -> contextlib.AbstractContextManager[Any]:
        """Switch the changes off."""
        return without_lora([self.backbone.denoiser])

    def learnt(self) -> dict[str, Tensor]:
        """Return the identifier and the changes."""
        return self.learnt_tokens() | lora_tensors(self.backbone.denoiser, "denoiser")
