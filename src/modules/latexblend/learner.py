"""LaTexBlend (Jin et al., CVPR 2025, arXiv 2503.06956): one subject as rows of cross-attention keys and values."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor

from src.data.files import free_disk_or_raise
from src.data.prompts import FIXED_TEMPLATE, TEMPLATES
from src.data.request import Request
from src.data.subject import ConceptData
from src.modules.backbones.base import Backbone, Text
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import DualFlow
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.images import class_images, encoded_views
from src.modules.latexblend.rows import transformed_projections
from src.modules.training.diffusion import min_snr_weights, per_sample_mse, step_generator


class LaTexBlend(L.LightningModule):
    """Dual flow: a generic prompt through the original projections, V* and noun through the trained ones.

    The rows of "V* noun" replace those of "a noun" in every cross-attention layer (Eq. 8) and the diffusion loss
    (Eq. 6) reaches only them. Prior images see the trained projections on their whole prompt.

    Args:
        backbone: What is personalised; stays frozen and outside of checkpoints.
        class_noun: What the subject is.
        concept: What prompts call it, as ``<name>``.
        cache_dir: For class images and latents.
        export_path: Where the bank goes.
        learning_rate: Of the projections' changes.
        modifier_learning_rate: Of V*.
        weight_decay: Of the projections' changes; V* has none.
        initializer: Word whose embedding V* starts from; None for the class noun.
        rank: Of the changes; None for full.
        base_flow: False for the ablation: the whole prompt with V* goes through the trained projections.
        templates: ``pool``, drawn independently for the two flows, or ``fixed``.
        prior_loss_weight: Of the class images; 0 switches them off.
        snr_gamma: Min-SNR weighting, or None.
        faithful: The reference code's scalings instead of ours: the instance loss is summed over latent channels, and
            SDXL's pooled text comes from the prompt with V*.
        references: Folder of the photos, noted in the bank for scoring.
        sampling: Options of ``ConceptGenerator`` for sample grids.
        seed: Of noise, timesteps and templates.

    Raises:
        ValueError: If an option is out of range or the noun has no tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_noun: str,
        cache_dir: str,
        export_path: str,
        learning_rate: float = 2e-5,
        modifier_learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        initializer: str | None = "ktn",
        rank: int | None = None,
        base_flow: bool = True,
        templates: str = "pool",
        prior_loss_weight: float = 1.0,
        snr_gamma: float | None = None,
        faithful: bool = False,
        concept: str = "subject",
        references: str = "",
        sampling: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if templates not in ("pool", "fixed"):
            raise ValueError(f"method.templates is {templates!r}; choose pool or fixed")
        self.save_hyperparameters(ignore=["backbone"])
        self.strict_loading = False
        torch.manual_seed(seed)
        pool = TEMPLATES if templates == "pool" else (FIXED_TEMPLATE,)
        # It is no module, so that Lightning sees none of the frozen weights: they stay out of checkpoints.
        self.flow = DualFlow(backbone, class_noun, pool, initializer, rank, base_flow)
        self.delta = self.flow.delta

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.flow.backbone

    def setup(self, stage: str) -> None:
        """Draw class images, encode every view and the fixed prompts, once."""
        data: ConceptData = self.trainer.datamodule
        self.resolution = data.resolution
        if 2 * data.resolution < self.backbone.resolution:
            raise ValueError(
                f"data.resolution is {data.resolution}, but {self.backbone.name} draws images of "
                f"{self.backbone.resolution} pixels; start from its experiment, such as +experiment=concept_sdxl"
            )
        # Two checkpoints of the weights and AdamW's two moments, in float32.
        trained = sum(parameter.numel() for parameter in self.parameters())
        free_disk_or_raise(self.trainer.default_root_dir, 2 * 3 * 4 * trained)
        self.backbone.to(self.trainer.strategy.root_device)
        cache = self.hparams.cache_dir
        self.instance = encoded_views(self.backbone, data.instance_views(), cache)
        self.prior = None
        if self.hparams.prior_loss_weight > 0:
            images = data.class_photos or class_images(
                self.backbone, self.hparams.class_noun, data.num_class_images, data.resolution, cache
            )
            self.prior = encoded_views(self.backbone, data.class_views(images), cache)
        self.base_text = self.backbone.encode_text(self.flow.prompts)
        self.class_text = self.backbone.encode_text([self.hparams.class_noun])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Instance loss plus weighted prior loss."""
        step, positions = int(batch["step"]), batch["position"].tolist()
        generators = [step_generator(self.hparams.seed, step, 0, position) for position in positions]
        instance, prior = self._losses(batch["index"], generators)
        loss = instance.mean() + self.hparams.prior_loss_weight * prior.mean()
        self.log_dict({"train/loss": loss, "train/instance_loss": instance.mean()}, prog_bar=True)
        return loss

    def validation_step(self, draws: Tensor, batch_idx: int) -> None:
        """The same loss on fixed views, templates, noise and timesteps, which no training step has."""
        generators = [step_generator(self.hparams.seed, draw, rank=-1) for draw in draws.tolist()]
        instance, prior = self._losses(draws, generators)
        losses = {"val/loss": instance + self.hparams.prior_loss_weight * prior, "val/instance_loss": instance}
        means = {name: each.mean() for name, each in losses.items()}
        self.log_dict(means, batch_size=len(generators), prog_bar=True)

    def _losses(self, index: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Per-sample losses of the instance images and of as many prior images, each shape ``(B,)``."""
        number = len(generators)
        # The latents of all views stay on the CPU, and so must what picks from them.
        index = index.cpu()
        flows = [torch.randint(len(self.flow.prompts), (2,), generator=g).tolist() for g in generators]
        concept_at, base_at = [flow[0] for flow in flows], [flow[1] for flow in flows]
        latents, mask = (part[index % len(part)].to(self.device) for part in self.instance)
        text = self.base_text.rows(base_at)
        if self.prior is not None:
            prior_latents, prior_mask = (part[index % len(part)].to(self.device) for part in self.prior)
            latents, mask = torch.cat([latents, prior_latents]), torch.cat([mask, prior_mask])
            text = text.joined(self.class_text.rows([0] * number))
            generators = [*generators, *generators]
        concept = self.flow.concept_text(concept_at)
        transform = self.flow.transform(concept, concept_at, base_at)
        pooled = concept.pooled_prompt_embeds
        if self.hparams.faithful and pooled is not None and text.pooled_prompt_embeds is not None:
            text.pooled_prompt_embeds = torch.cat([pooled, text.pooled_prompt_embeds[number:]])
        if not self.hparams.base_flow:
            text.prompt_embeds = torch.cat([concept.prompt_embeds, text.prompt_embeds[number:]])
            text.mask = (
                None if concept.mask is None or text.mask is None else torch.cat([concept.mask, text.mask[number:]])
            )
        errors = self._denoising_errors(latents, mask, text, transform, generators)
        prior = errors[number:] if self.prior is not None else errors.new_zeros(number)
        # The reference sums the masked error over channels but divides by one channel's cells.
        scale = latents.shape[1] if self.hparams.faithful else 1
        return errors[:number] * scale, prior

    def _denoising_errors(
        self, latents: Tensor, mask: Tensor, text: Text, transform, generators: list[torch.Generator]
    ) -> Tensor:
        noised = self.backbone.corrupt(latents, generators)
        with transformed_projections(self.backbone.denoiser, transform):
            prediction = self.backbone.denoise(noised, text)
        errors = per_sample_mse(prediction, noised.target, mask)
        if self.hparams.snr_gamma is not None:
            errors = errors * min_snr_weights(self.backbone.noise_scheduler, noised.timesteps, self.hparams.snr_gamma)
        return errors

    @torch.no_grad()
    def extract_bank(self) -> ConceptBank:
        """The concept as it stands."""
        metadata = {
            "class_noun": self.hparams.class_noun,
            "modifier_token": "<new1>",
            "backbone": self.backbone.name,
            "backbone_hash": self.backbone.cross_attention_hash,
            "references": self.hparams.references,
            "templates": str(self.hparams.templates),
            "extraction_template": FIXED_TEMPLATE,
            "steps": str(self.global_step if self._trainer else 0),
            "seed": str(self.hparams.seed),
            "training": " ".join(
                f"{key}={value}" for key, value in self.hparams.items() if not key.endswith(("dir", "path"))
            ),
        }
        return ConceptBank(self.flow.concept_rows(), metadata)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw prompts with the concept as it stands; before the first step, with the plain class noun."""
        mention, noun = f"<{self.hparams.concept}>", self.hparams.class_noun
        if self.global_step == 0:
            requests = [Request(request.prompt.replace(mention, noun), request.seed) for request in requests]
        banks = {self.hparams.concept: self.extract_bank()}
        sampling = {"resolution": self.resolution, **(self.hparams.sampling or {})}
        blending = {name: sampling.pop(name) for name in ("keep_context", "blending_start", "bind") if name in sampling}
        return ConceptGenerator(self.backbone, banks, sampling, **blending).sample(requests)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay would pull V* to zero, so it has none."""
        groups = [
            {"params": self.delta.changes.parameters(), "lr": self.hparams.learning_rate},
            {
                "params": self.delta.modifier.parameters(),
                "lr": self.hparams.modifier_learning_rate,
                "weight_decay": 0.0,
            },
        ]
        return torch.optim.AdamW(groups, weight_decay=self.hparams.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the experiment, so that another one's checkpoint is refused."""
        checkpoint["latexblend"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was written for another subject, backbone or rank.

        Raises:
            ValueError: If it was, or if a trained tensor is missing from it.
        """
        found = checkpoint.get("latexblend")
        if found != self._identity():
            raise ValueError(
                f"this checkpoint is of another experiment: it holds {found}, this run is {self._identity()}"
            )
        missing = set(self.state_dict()) - set(checkpoint["state_dict"])
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} trained tensors, first {sorted(missing)[0]}")

    def _identity(self) -> dict[str, Any]:
        return {
            "class_noun": self.hparams.class_noun,
            "backbone_hash": self.backbone.cross_attention_hash,
            "rank": self.hparams.rank,
        }

    def export(self) -> dict[str, str]:
        """Write the bank; nothing else of the training is needed to generate."""
        path = self.extract_bank().save(self.hparams.export_path)
        name = self.hparams.concept
        given = {key: value for key, value in (self.hparams.sampling or {}).items() if value is not None}
        drawn_like = " ".join(f"method.{key}={value}" for key, value in {**self.backbone.sampling, **given}.items())
        command = f"""python generate.py "prompt='a <{name}> on the beach'" bank.{name}={path} num_images=4 seed=0"""
        command = f"{command} {self.backbone.overrides} {drawn_like}".rstrip()
        return {"concept bank": str(path), "next": command}
