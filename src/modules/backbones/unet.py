"""The frozen parts of one diffusers checkpoint: Stable Diffusion 1.x, 2.x or XL, whatever its size."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from src.data.prompts import tokenize
from src.modules.generator import own_sampling

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLING: dict[str, Any] = {"num_inference_steps": 30, "guidance_scale": 5.0, "keep_context": False}
"""How concepts are drawn where neither the backbone nor the call says it."""


@dataclass
class Conditioning:
    """Text as the UNet takes it: ``prompt_embeds`` ``(B, L, D)`` and, for SDXL, ``pooled_prompt_embeds`` ``(B, P)``."""

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The chosen prompts, in the given order."""
        pooled = None if self.pooled_prompt_embeds is None else self.pooled_prompt_embeds[list(indices)]
        return Conditioning(self.prompt_embeds[list(indices)], pooled)


class DiffusionBackbone:
    """A stock pipeline and the few questions that the methods ask it.

    Args:
        pipeline: A Stable Diffusion or SDXL pipeline; its weights are frozen here and never changed.
        name: What it is called in banks and reports.
        sampling: What suits this model where a call leaves it open, if it is not that of ``SAMPLING``.

    Raises:
        ValueError: If ``sampling`` has another key.
    """

    incidental: ClassVar[tuple[str, ...]] = ("sampling",)

    def __init__(
        self,
        pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
        name: str,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.name = pipeline, name
        self.sampling = own_sampling(SAMPLING, sampling)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
        if isinstance(pipeline, StableDiffusionXLPipeline):
            encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
        self.tokenizers, self.text_encoders = zip(*encoders, strict=True)
        for module in (self.unet, self.vae, *self.text_encoders):
            module.requires_grad_(False).eval()
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.cross_attention_hash = _hash(cross_attention_projections(self.unet))
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        dtype: str = "float32",
        local_files_only: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> "DiffusionBackbone":
        """Load a hub id or a local folder in diffusers' layout.

        Raises:
            ValueError: If the folder is missing, or ``dtype`` or a key of ``sampling`` is unknown.
        """
        if dtype not in DTYPES:
            raise ValueError(f"backbone.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
        sampling = own_sampling(SAMPLING, sampling)  # Refused here, before the weights are read.
        looks_local = path.startswith((".", "/", "~", "world")) or Path(path).exists()
        if looks_local and not (Path(path).expanduser() / "model_index.json").exists():
            raise ValueError(f"{path} is no diffusers pipeline folder: it has no model_index.json")
        # bfloat16 loads through float16, so that the hash of the weights does not depend on the working precision.
        loaded = torch.float16 if dtype == "bfloat16" else DTYPES[dtype]
        pipeline = DiffusionPipeline.from_pretrained(
            path, dtype=loaded, local_files_only=local_files_only, use_safetensors=True
        )
        backbone = cls(pipeline, Path(path).name if looks_local else path, sampling)
        if DTYPES[dtype] != loaded:
            pipeline.to(DTYPES[dtype])
        return backbone

    @property
    def overrides(self) -> str:
        """What names it on the command line; whatever configuration it came from, backbones differ in this alone."""
        return f"backbone.path={self.pipeline.name_or_path} backbone.dtype={str(self.dtype).removeprefix('torch.')}"

    @property
    def is_sdxl(self) -> bool:
        """Whether the UNet also takes pooled text and time ids."""
        return len(self.text_encoders) > 1

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the UNet."""
        return self.unet.dtype

    @property
    def resolution(self) -> int:
        """Native image side in pixels."""
        return int(self.unet.config.sample_size * self.pipeline.vae_scale_factor)

    def to(self, device: torch.device | str) -> "DiffusionBackbone":
        """Move every part."""
        self.pipeline.to(device)
        return self

    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Encode plain prompts to ``(B, L, D)`` (and pooled text), without gradient."""
        with torch.no_grad():
            ids = [tokenize(tokenizer, prompts) for tokenizer in self.tokenizers]
            return self.encode_ids(ids)

    def encode_ids(self, ids: Sequence[Tensor]) -> Conditioning:
        """Encode token ids ``(B, L)``, one tensor per text encoder, as the stock pipelines do.

        Stable Diffusion: last hidden state after the final norm. SDXL: the states before the last layer of both
        encoders side by side, and the second encoder's projected pooled state.
        """
        outputs = [
            encoder(tokens.to(encoder.device), output_hidden_states=self.is_sdxl)
            for encoder, tokens in zip(self.text_encoders, ids, strict=True)
        ]
        if not self.is_sdxl:
            return Conditioning(outputs[0].last_hidden_state)
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(hidden, outputs[1].text_embeds)

    @contextlib.contextmanager
    def modifier_embedded(self, vectors: Sequence[Tensor], positions: Tensor) -> Iterator[None]:
        """While active, token ``positions[b]`` of prompt b is embedded as V* in every text encoder.

        Args:
            vectors: One ``(D,)`` vector per text encoder; gradients flow into them.
            positions: Shape ``(B,)``.
        """

        def embed(vector: Tensor):
            def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
                here = torch.zeros(output.shape[:2], dtype=torch.bool, device=output.device)
                here[torch.arange(len(positions), device=output.device), positions.to(output.device)] = True
                return torch.where(here[..., None], vector.to(output), output)

            return hook

        tables = [encoder.get_input_embeddings() for encoder in self.text_encoders]
        handles = [table.register_forward_hook(embed(v)) for table, v in zip(tables, vectors, strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [-1, 1] to scaled latents ``(B, C, H/8, W/8)``: the mean of the posterior."""
        with torch.no_grad():
            latents = self.vae.encode(pixel_values.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return (latents * self.vae.config.scaling_factor).float()

    def added_conditions(self, pooled: Tensor | None, resolution: int) -> dict[str, Tensor] | None:
        """SDXL's ``added_cond_kwargs``: pooled text and size-and-crop ids; None for other backbones."""
        if not self.is_sdxl or pooled is None:
            return None
        ids = torch.tensor([resolution, resolution, 0, 0, resolution, resolution], device=pooled.device)
        return {"text_embeds": pooled, "time_ids": ids.to(pooled.dtype).expand(len(pooled), -1)}


def cross_attention_projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """The text projections of every cross-attention layer: ``k.<layer>`` and ``v.<layer>``, in module order.

    Raises:
        ValueError: If keys and values were fused, which leaves nothing to hook.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            if getattr(module, "fused_projections", False):
                raise ValueError("fuse_qkv_projections() is on; call unet.unfuse_qkv_projections() first")
            found[f"k.{name}"], found[f"v.{name}"] = module.to_k, module.to_v
    return found


def _hash(projections: dict[str, nn.Linear]) -> str:
    digest = hashlib.sha256()
    for name, linear in projections.items():
        digest.update(name.encode())
        digest.update(linear.weight.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
