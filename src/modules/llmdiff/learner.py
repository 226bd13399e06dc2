"""Training of an LLMDiff adapter (Dong et al., ACM MM 2024, arXiv 2502.04412), in one process or in many."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Generator, Tensor, nn

from src.data.captions.datamodule import EncodedData
from src.data.commands import command
from src.data.ranges import BelowOne, Positive, Sampling, Seed
from src.data.request import Request
from src.modules.backbones.memory import compute_again, weights_fetched_again
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffGenerator
from src.modules.llmdiff.options import AdapterOptions
from src.modules.training.diffusion import min_snr_weights, per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord

SCALARS = ("gain", "rho", "a1", "b1", "a2", "b2")
"""Names of the scalar parameters: g, rho (h = softplus(rho)), and the weights of the two cross-attentions."""
LARGEST_UNFUSED = 16
"""Side of latents up to which a CPU computes attention without the fused kernel, which with so few positions gains
nothing in float32, and in bfloat16 makes the UNet's part of a training step a third longer."""


class LLMDiff(Learner):
    """Trains the adapter to denoise; language model, autoencoder and UNet are frozen and outside of checkpoints.

    All random draws for a sample (dropout of its caption, noise, timestep, noise of its text) depend only on the seed
    and on the sample's number in the training. So two processes, or two accumulated batches, see what one process with
    twice the batch would see, and the mean over equal batches is the mean over all samples.

    Args:
        backbone: The diffusion model whose UNet is trained with the adapter.
        encoder: Gives the states of the language model.
        export_path: File that the adapter is written to.
        options: Choices that the paper leaves open.
        caption_dropout: Share of samples with an empty caption, for classifier-free guidance.
        snr_gamma: Gamma of min-SNR weighting; None for no weighting.
        gradient_checkpointing: Whether to compute the UNet's activations twice instead of keeping them.
        encode_ahead: Whether to encode all captions and images before the first step, and free the language model.
        sampling: Settings of sample grids, see ``LLMDiffGenerator``.
        seed: Seed of all draws and of the initial weights.
    """

    incidental: ClassVar[tuple[str, ...]] = ("export_path", "encode_ahead", "sampling")
    legend: ClassVar[dict[str, str]] = {
        "g": "what each block of the language model counts in the text",
        "h": "how much noise the text gets at each block",
        "original_weight": "a1 e^b1, what the base's own attention to text counts in each layer",
        "additional_weight": "a2 e^b2, what the new attention to text counts in each layer",
        "a1": "see original_weight",
        "b1": "see original_weight",
        "a2": "see additional_weight",
        "b2": "see additional_weight",
    }

    def __init__(
        self,
        backbone: UNetBackbone,
        encoder: LLMEncoder,
        export_path: str,
        options: AdapterOptions | None = None,
        caption_dropout: BelowOne = 0.1,
        snr_gamma: Positive | None = None,
        gradient_checkpointing: bool = False,
        encode_ahead: bool = False,
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        # ``nn.Module`` finds no submodule in a tuple, so the frozen weights stay out of checkpoints and of DDP.
        self._frozen = (backbone, encoder)
        self.export_path, self.caption_dropout, self.snr_gamma = export_path, caption_dropout, snr_gamma
        self.gradient_checkpointing, self.encode_ahead = gradient_checkpointing, encode_ahead
        self.sampling, self.seed = sampling, seed
        torch.manual_seed(seed)
        self.adapter = LLMDiffAdapter.for_backbone(backbone, encoder, options)
        if gradient_checkpointing:
            compute_again(backbone.unet)

    @property
    def backbone(self) -> UNetBackbone:
        """The frozen diffusion model."""
        return self._frozen[0]

    @property
    def encoder(self) -> LLMEncoder:
        """The encoder with the frozen language model."""
        return self._frozen[1]

    def prepare(self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0) -> None:
        """Check the captions, move the frozen parts to their device, and tell the data how images become latents.

        Raises:
            ValueError: If a caption is too long for the language model, or cannot be encoded ahead.
        """
        if self.encode_ahead and not hasattr(data, "captions"):
            raise ValueError(
                "method.learner.encode_ahead needs captions that are known before the training, as those of "
                "data=captioned_folder and data=captioned_hf; set method.learner.encode_ahead=false"
            )
        if hasattr(data, "captions"):
            self.encoder.count_tokens(data.captions)
        self.backbone.to(device)
        self.encoder.language_model.to(device)
        if device.type == "cpu" and self.backbone.unet.config.sample_size <= LARGEST_UNFUSED:
            self.backbone.unet.set_attn_processor(AttnProcessor())
        if isinstance(data, EncodedData):
            data.encode_with(self.backbone.encode_images, self.backbone.autoencoder_identity)
        if self.encode_ahead:
            # Each process encodes its share of the captions.
            self.encoder.encode_ahead(sorted({*data.captions, ""})[rank::world_size])
            self.encoder.free()
            # This waits for the other processes.
            data.encode_ahead()

    def generators(self, batch: dict[str, Any], rank: int, world_size: int) -> list[Generator]:
        """Make one generator for each sample from its number in the training; its position counts over processes."""
        first = int(batch["step"]) * len(batch["caption"]) * world_size
        return [step_generator(self.seed, first + at) for at in batch["position"].tolist()]

    def validation_generators(self, batch: dict[str, Any], batch_idx: int) -> list[Generator]:
        """Make one generator for each sample; no training step uses the same."""
        return [step_generator(self.seed, at, rank=-1) for at in batch["position"].tolist()]

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the denoising error of each sample ``(B,)``; some of them lose their caption."""
        dropped = [float(torch.rand((), generator=one)) < self.caption_dropout for one in generators]
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        return self.denoising_errors(self._latents(batch), captions, generators, batch.get("size_ids"))

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the same error ``(B,)``, every sample with its caption."""
        return self.denoising_errors(self._latents(batch), batch["caption"], generators, batch.get("size_ids"))

    def _latents(self, batch: dict[str, Any]) -> Tensor:
        return batch["latents"] if "latents" in batch else self.backbone.encode_images(batch["pixel_values"])

    def denoising_errors(
        self,
        latents: Tensor,
        captions: Sequence[str],
        generators: list[Generator],
        size_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the denoising error of each sample, ``(B,)``, which does not depend on the rest of the batch.

        Args:
            latents: Latents of the images, ``(B, C, h, w)``.
            captions: Caption of each image.
            generators: One CPU generator for each image.
            size_ids: SDXL's time ids, the size and crop of each image, ``(B, 6)``; None for whole images of this size.
        """
        noised = self.backbone.corrupt(latents, generators)
        text = self.adapter(self.encoder.encode(captions), generators)  # packed, (B, L, W + C + 2)
        with self.installed(), weights_fetched_again(self.backbone.unet):
            prediction = self.backbone.denoise(noised, text, size_ids)
        errors = per_sample_mse(prediction, noised.target)
        if self.snr_gamma is not None:
            errors = errors * min_snr_weights(self.backbone.noise_scheduler, noised.timesteps, self.snr_gamma)
        return errors

    def installed(self) -> AbstractContextManager[Any]:
        """Install the adapter on the UNet; it must stay so during backward, where checkpointed parts run again."""
        return self.adapter.installed(self.backbone.unet)

    def curves(self) -> dict[str, float]:
        """Return g and h of every block, and a e^b, a and b of both branches of every cross-attention, for plots."""
        aggregation, layers = self.adapter.aggregation, self.adapter.layers.values()
        found = {"g": aggregation.gains.tolist(), "h": aggregation.noise_levels.tolist()}
        for name in ("original_weight", "additional_weight", "a1", "b1", "a2", "b2"):
            found[name] = torch.stack([getattr(layer, name) for layer in layers]).tolist()
        return {f"{name}/{at:02d}": value for name, values in found.items() for at, value in enumerate(values)}

    def sample(self, requests: Sequence[Request], steps: int) -> list[Image.Image]:
        """Draw with the adapter in its present state."""
        return LLMDiffGenerator(self.backbone, self.adapter, self.encoder, sampling=self.sampling).sample(requests)

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters: matrices, vectors, scalars. The few scalars g, h, a, b bear a higher learning rate."""
        matrices, vectors, scalars = _by_kind(self.adapter)
        return [
            {"name": "matrices", "params": matrices},
            {"name": "vectors", "params": vectors, "weight_decay": 0.0},
            {"name": "scalars", "params": scalars, "weight_decay": 0.0},
        ]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the adapter, which is all that drawing needs of a training."""
        training = json.dumps(self._training_settings(record))
        path = self.adapter.save(self.export_path, self.encoder, self.backbone, record.steps, training)
        chosen = {"method": "llmdiff", "adapter": str(path), **self.backbone.overrides}
        following = command("generate.py", {**chosen, "prompt": "a red dog on the grass", "seed": 0})
        return {"adapter": str(path), "next": following}

    def _training_settings(self, record: TrainingRecord) -> dict[str, Any]:
        """List what an adapter's file records of its training; names and order are part of the file format."""
        return {
            "learning_rate": record.learning_rate,
            "scalar_learning_rate": record.rates.get("scalars", record.learning_rate),
            "weight_decay": record.weight_decay,
            "schedule": record.schedule,
            "num_warmup_steps": record.num_warmup_steps,
            "caption_dropout": self.caption_dropout,
            "snr_gamma": self.snr_gamma,
            "ema_decay": 0.0 if record.ema_decay is None else record.ema_decay,
            "gradient_checkpointing": self.gradient_checkpointing,
            "encode_ahead": self.encode_ahead,
            "sampling": self.sampling,
            "seed": self.seed,
        }


def _by_kind(adapter: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort parameters into matrices, vectors (with phi's bias, though it has a row for each position) and scalars."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for name, parameter in adapter.named_parameters():
        last = name.rpartition(".")[2]
        kind = 2 if last in SCALARS else 0 if last == "weight" and parameter.ndim > 1 else 1
        kinds[kind].append(parameter)
    return kinds
