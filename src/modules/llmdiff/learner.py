"""Training of an LLMDiff adapter (Dong et al., ACM MM 2024, arXiv 2502.04412), in one process or in many."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor, nn

from src.data.captions.datamodule import EncodedData
from src.data.files import digest
from src.data.request import Request
from src.modules.backbones.unet import DiffusionBackbone
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffGenerator
from src.modules.llmdiff.options import AdapterOptions, choose
from src.modules.training.diffusion import min_snr_weights, per_sample_mse, step_generator
from src.modules.training.ema import AveragedModule

SCALARS = ("gain", "rho", "a1", "b1", "a2", "b2")
"""Names of g, of what h comes from, and of the weights of the two cross-attentions."""
LARGEST_PLAIN = 16
"""Side of latents up to which a CPU computes attention step by step: fused kernels gain nothing from so few positions
in float32, and in bfloat16 they make the UNet's part of a training step a third longer."""
SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}


class LLMDiff(AveragedModule):
    """The adapter learns to denoise; language model, autoencoder and UNet are frozen and outside of checkpoints.

    What is drawn for a sample (dropout of its caption, noise, timestep, noise of its text) depends on the seed and on
    the sample's number in the training. So two processes, or two accumulated batches, see the global batches of one
    process with twice the batch, and the mean over equal batches is the mean over all.

    Args:
        backbone: Whose UNet is driven.
        encoder: Gives the states of the language model.
        export_path: Where ``adapter.safetensors`` goes.
        options: The reading of the paper; see ``AdapterOptions``.
        learning_rate: Peak, of everything but the scalars.
        scalar_learning_rate: Peak of g, h, a and b; few numbers, so that a higher one does no harm.
        weight_decay: Of matrices; biases, gains and scalars have none.
        schedule: After the warm-up: ``constant``, or ``cosine`` decay over ``max_steps``.
        num_warmup_steps: Of linear warm-up.
        caption_dropout: Share of empty captions, for classifier-free guidance.
        snr_gamma: Min-SNR weighting, or None.
        ema_decay: Of the weights that are validated, drawn with and exported; 0 takes the last ones.
        gradient_checkpointing: Compute the UNet's activations twice instead of keeping them.
        encode_ahead: Encode all captions and images before the first step, and free the language model.
        sampling: Of sample grids; see ``LLMDiffGenerator``.
        seed: Of the initial weights and of all that is drawn.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        encoder: LLMEncoder,
        export_path: str,
        options: AdapterOptions | None = None,
        learning_rate: float = 1e-4,
        scalar_learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        schedule: str = "constant",
        num_warmup_steps: int = 500,
        caption_dropout: float = 0.1,
        snr_gamma: float | None = None,
        ema_decay: float = 0.0,
        gradient_checkpointing: bool = False,
        encode_ahead: bool = False,
        sampling: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        choose("method.schedule", schedule, list(SCHEDULES))
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"method.caption_dropout is {caption_dropout}; give a share from 0 to below 1")
        self.save_hyperparameters(ignore=["backbone", "encoder", "options"])
        # In a tuple, so that Lightning sees no submodule: the frozen weights stay out of checkpoints and of DDP.
        self._frozen = (backbone, encoder)
        torch.manual_seed(seed)
        self.adapter = LLMDiffAdapter.for_backbone(backbone, encoder, options)
        self.follow(list(self.adapter.parameters()), ema_decay)
        if gradient_checkpointing:
            backbone.unet.enable_gradient_checkpointing()

    @property
    def backbone(self) -> DiffusionBackbone:
        """The frozen model."""
        return self._frozen[0]

    @property
    def encoder(self) -> LLMEncoder:
        """Of the frozen language model."""
        return self._frozen[1]

    def setup(self, stage: str) -> None:
        """Check the captions, bring the frozen parts to their device, say how images become latents.

        Raises:
            ValueError: If a caption is too long for the language model, or cannot be encoded ahead.
        """
        data, device = self.trainer.datamodule, self.trainer.strategy.root_device
        if self.hparams.encode_ahead and not hasattr(data, "captions"):
            raise ValueError(
                "method.encode_ahead needs captions that are known before the training, as those of "
                "data=captioned_folder and data=captioned_hf; set method.encode_ahead=false"
            )
        if hasattr(data, "captions"):
            self.encoder.count_tokens(data.captions)
        self.backbone.to(device)
        self.encoder.language_model.to(device)
        if device.type == "cpu" and self.backbone.unet.config.sample_size <= LARGEST_PLAIN:
            self.backbone.unet.set_attn_processor(AttnProcessor())
        if isinstance(data, EncodedData):
            data.encode_with(self.backbone.encode_images, _autoencoder_key(self.backbone))
        if self.hparams.encode_ahead:
            self._encode_ahead(data)

    def _encode_ahead(self, data: Any) -> None:
        """Captions and images, each process its share."""
        self.encoder.encode_ahead(sorted({*data.captions, ""})[self.global_rank :: self.trainer.world_size])
        self.encoder.free()
        # It waits for the other processes.
        data.encode_ahead()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of this process's share of a global batch."""
        first = int(batch["step"]) * len(batch["caption"]) * self.trainer.world_size
        generators = [step_generator(self.hparams.seed, first + at) for at in batch["position"].tolist()]
        dropped = [float(torch.rand((), generator=g)) < self.hparams.caption_dropout for g in generators]
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        loss = self.losses(self._latents(batch), captions, generators, batch.get("size_ids")).mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same loss of what would be exported, on fixed noise and timesteps, which no training step has."""
        generators = [step_generator(self.hparams.seed, at, rank=-1) for at in batch["position"].tolist()]
        with self.averaged_weights():
            loss = self.losses(self._latents(batch), batch["caption"], generators, batch.get("size_ids")).mean()
        self.log("val/loss", loss, batch_size=len(generators), prog_bar=True, sync_dist=True)

    def _latents(self, batch: dict[str, Any]) -> Tensor:
        return batch["latents"] if "latents" in batch else self.backbone.encode_images(batch["pixel_values"])

    def losses(
        self,
        latents: Tensor,
        captions: Sequence[str],
        generators: list[torch.Generator],
        size_ids: Tensor | None = None,
    ) -> Tensor:
        """Denoising error of each sample, shape ``(B,)``; it does not depend on the rest of the batch.

        Args:
            latents: ``(B, C, h, w)``.
            captions: One for each.
            generators: On the CPU, one for each.
            size_ids: What SDXL is told of an image's size and cut, ``(B, 6)``; None for whole images of this size.
        """
        noised = self.backbone.corrupt(latents, generators)
        text = self.adapter(self.encoder.encode(captions), generators)
        with self.adapter.installed(self.backbone.unet):
            prediction = self.backbone.denoise(noised, text, size_ids)
        errors = per_sample_mse(prediction, noised.target)
        if self.hparams.snr_gamma is not None:
            errors = errors * min_snr_weights(self.backbone.noise_scheduler, noised.timesteps, self.hparams.snr_gamma)
        return errors

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """With the adapter on the UNet, parts of which run again under gradient checkpointing."""
        with self.adapter.installed(self.backbone.unet):
            super().backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log what ``curves`` gives as often as the loss."""
        if self.global_step % self.trainer.log_every_n_steps == 0:
            for logger in self.loggers:
                logger.log_metrics(self.curves(), step=self.global_step)

    def curves(self) -> dict[str, float]:
        """G and h of every block, a1 e^b1 and a2 e^b2 and their factors of every cross-attention, by their number."""
        aggregation, layers = self.adapter.aggregation, self.adapter.layers.values()
        found = {"g": aggregation.gains.tolist(), "h": aggregation.noise_levels.tolist()}
        for name in ("original_weight", "additional_weight", "a1", "b1", "a2", "b2"):
            found[name] = torch.stack([getattr(layer, name) for layer in layers]).tolist()
        return {f"{name}/{at:02d}": value for name, values in found.items() for at, value in enumerate(values)}

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw with the adapter as it would be exported now."""
        with self.averaged_weights():
            generator = LLMDiffGenerator(self.backbone, self.adapter, self.encoder, sampling=self.hparams.sampling)
            return generator.sample(requests)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up."""
        matrices, vectors, scalars = _by_kind(self.adapter)
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
            {"params": scalars, "weight_decay": 0.0, "lr": self.hparams.scalar_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, self.hparams.learning_rate, weight_decay=self.hparams.weight_decay)
        schedule = get_scheduler(
            SCHEDULES[self.hparams.schedule],
            optimizer,
            num_warmup_steps=self.hparams.num_warmup_steps,
            num_training_steps=self.trainer.max_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the experiment, so that another one's checkpoint is refused."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["llmdiff"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was written for another backbone, language model or reading.

        Raises:
            ValueError: If it was, or if a trained tensor is missing from it.
        """
        found, own = checkpoint.get("llmdiff"), self._identity()
        if found != own:
            raise ValueError(
                f"this checkpoint is of another experiment: it holds {found}, this run is {own}; resume with the "
                "configuration that wrote it, or start without resume=true"
            )
        missing = set(self.state_dict()) - set(checkpoint["state_dict"])
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} trained tensors, first {sorted(missing)[0]}")
        super().on_load_checkpoint(checkpoint)

    def _identity(self) -> dict[str, str]:
        return {
            "backbone": self.backbone.cross_attention_hash,
            "llm": self.encoder.identity.revision,
            "encoding": json.dumps(asdict(self.encoder.options)),
            "adapter": json.dumps(asdict(self.adapter.options)),
        }

    def export(self) -> dict[str, str]:
        """Write the averaged adapter; nothing else of the training is needed to draw."""
        self.ema.copy_to(self.averaged)
        training = {key: value for key, value in self.hparams.items() if not key.endswith("path")}
        steps = self.global_step if self._trainer else 0
        extra = {"training": json.dumps(training)}
        path = self.adapter.save(self.hparams.export_path, self.encoder, self.backbone, steps, extra)
        drawing = """"prompt='a red dog on the grass'" seed=0"""
        command = f"python generate.py method=llmdiff adapter={path} {self.backbone.overrides} {drawing}"
        return {"adapter": str(path), "next": command}


def _by_kind(adapter: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, vectors (phi's bias among them, though it has a row for each position) and scalars."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] = ([], [], [])
    for name, parameter in adapter.named_parameters():
        last = name.rpartition(".")[2]
        kind = 2 if last in SCALARS else 0 if last == "weight" and parameter.ndim > 1 else 1
        kinds[kind].append(parameter)
    return kinds


def _autoencoder_key(backbone: DiffusionBackbone) -> str:
    """Of its weights, precision and scaling."""
    vae = backbone.vae
    weights = digest({name: tensor.cpu().float() for name, tensor in vae.state_dict().items()})
    return f"{weights[:16]}-{str(vae.dtype).removeprefix('torch.')}-{vae.config.scaling_factor:g}"
