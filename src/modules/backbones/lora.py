"""Changes of low rank that others trained (LoRA, arXiv 2106.09685), put into a model's weights as it is loaded.

Diffusers reads them in its own format and kohya's, and here in peft's, too. ``W + scale * alpha / r * up @ down`` takes
the place of ``W``: whatever acts on the model afterwards, such as concepts, finds the plain layers of a stock model.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from src.data.identity import file_hash, joined
from src.data.schema import read_json
from src.modules.backbones.headers import LORA, described, read_header

_log = logging.getLogger(__name__)
PARTS = ("unet", "text_encoder", "text_encoder_2")
PEFT = "base_model.model."
"""How names start in a file that peft wrote; it holds changes of the UNet."""
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
"""Width of the text that cross-attention reads, which tells models apart."""


@dataclass(frozen=True)
class Lora:
    """One file of changes.

    Attributes:
        path: A ``.safetensors``.
        scale: How strongly it acts.
    """

    path: Path
    scale: float = 1.0

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Self:
        """Read an entry of ``backbone.lora``: a path, or a path and a scale.

        Raises:
            ValueError: If it is neither.
        """
        entry = {"path": given} if isinstance(given, str) else dict(given)
        path, scale = entry.get("path"), entry.get("scale", 1.0)
        numeric = isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale)
        if not isinstance(path, str) or not numeric or entry.keys() - {"path", "scale"}:
            raise ValueError(f"backbone.lora holds {str(given)[:80]}; write each as {{path: FILE, scale: 0.8}}")
        return cls(Path(path).expanduser(), float(scale))

    def check(self, width: int | None = None) -> None:
        """Refuse what is no LoRA, or one of another model, by its header.

        Args:
            width: Width of the text that the model's cross-attention reads; None where it is not known yet.

        Raises:
            ValueError: If it is.
        """
        if not self.path.exists():
            raise ValueError(f"there is no LoRA at {self.path}")
        metadata, shapes = read_header(self.path)
        if not any(name.endswith(LORA) for name in shapes):
            raise ValueError(f"{self.path} holds {described(metadata, shapes)}, but backbone.lora takes LoRAs")
        if any("dora_scale" in name or "lora_magnitude_vector" in name for name in shapes):
            raise ValueError(f"{self.path} is a DoRA, which also scales whole columns; only plain LoRAs are read")
        reads = {
            shape[1] for name, shape in shapes.items() if "attn2" in name and "to_k" in name and name.endswith(LORA)
        }
        if width is not None and reads and reads != {width}:
            (other,) = list(reads)[:1]
            raise ValueError(
                f"{self.path} is a LoRA of {FAMILIES.get(other, 'another model')} (its cross-attention reads text of "
                f"width {other}), but this model reads text of width {width}"
            )

    def apply(self, pipeline: Any) -> None:
        """Put the changes into the weights of a pipeline, in place; how many tensors were applied is logged.

        Raises:
            ValueError: As in ``check``, or if none was.
        """
        self.check(pipeline.unet.config.cross_attention_dim)
        tensors, scale = self._tensors()
        present = [name for name in PARTS if getattr(pipeline, name, None) is not None]
        sdxl = isinstance(pipeline, StableDiffusionXLPipeline)
        try:
            pipeline.load_lora_weights(tensors, adapter_name="lora")
            number = sum(_changes(getattr(pipeline, name)) for name in present)
            pipeline.fuse_lora(components=present, lora_scale=scale)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()
            raise ValueError(
                f"{self.path} does not fit this {'SDXL' if sdxl else 'Stable Diffusion'} ({reason[0][:200]})"
            ) from error
        finally:
            pipeline.unload_lora_weights()
        if not number:
            raise ValueError(f"no tensor of {self.path} fits this model: it was trained for another one")
        there = 2 * sum(name.endswith(LORA) for name in tensors)
        tell = _log.warning if number < there else _log.info
        tell("%d of the %d tensors of %s act, at scale %s", number, there, self.path, self.scale)

    def _tensors(self) -> tuple[dict[str, Tensor], float]:
        """The file's tensors under names that diffusers reads, and the scale."""
        tensors = load_file(self.path)
        if not all(name.startswith(PEFT) for name in tensors):
            return tensors, self.scale
        # Peft writes alpha and rank beside the weights.
        place, scale = self.path.with_name("adapter_config.json"), self.scale
        if place.is_file():
            config = read_json(place, "the configuration of a LoRA")
            rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
            scale *= config["lora_alpha"] / rank
        return {f"unet.{name.removeprefix(PEFT)}": one for name, one in tensors.items()}, scale


def apply_loras(pipeline: DiffusionPipeline, loras: Sequence[Lora]) -> None:
    """Put LoRAs into the weights of a pipeline, one after the other.

    Raises:
        ValueError: As in ``Lora.apply``, or if the pipeline takes none.
    """
    if loras and not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"backbone.lora is for Stable Diffusion and SDXL; a {type(pipeline).__name__} takes none")
    for lora in loras:
        if lora.scale:
            lora.apply(pipeline)


def loras_hash(loras: Sequence[Lora]) -> str:
    """Hash the content and the strength of LoRAs, in their order."""
    return joined({str(number): f"{file_hash(one.path)} {one.scale}" for number, one in enumerate(loras)})


def _changes(module: nn.Module) -> int:
    """Number of low-rank factors in a module."""
    changed: list[Any] = [layer for layer in module.modules() if hasattr(layer, "lora_A")]
    return sum(2 * len(layer.lora_A) for layer in changed)
