"""LaTexBlend (Jin et al., CVPR 2025, arXiv 2503.06956): learn a subject as rows of cross-attention keys and values."""

import contextlib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.banks import CONCEPT_BANK
from src.data.commands import command
from src.data.known_words import warn_of_unknown
from src.data.mentions import parse_prompt
from src.data.prompts import FIXED_TEMPLATE, TEMPLATES
from src.data.ranges import Positive, Rank, Sampling, Seed
from src.data.request import Request
from src.data.store import ImageStore, TensorStore
from src.data.subject import ConceptData, View
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.memory import weights_fetched_again
from src.modules.backbones.noising import FlowMatching
from src.modules.latexblend.bank import ConceptBank, JointBank, transformed_projections
from src.modules.latexblend.exports import Exports, refuse_without_rank
from src.modules.latexblend.flows import DualFlow, Objective, Subject
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.joint import JointFlow
from src.modules.training.diffusion import min_snr_weights, per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord

BLACK = "set backbone.safety_checker=false if it is on, or give images of your own in data.class_dir"
"""Advice where a class image is black, which would be learnt as what the class looks like."""
BLENDING = ("keep_context", "blending_start", "blending_end", "rectification")
"""Settings of sample grids that say how concepts are blended; all others are arguments of the pipeline's call."""


class LaTexBlend(Learner):
    """Learns one subject with the dual flow: V* and noun go through trained projections, the rest through frozen ones.

    In every cross-attention layer the rows of "V* noun" replace those of "a noun" in a generic prompt (Eq. 8), so the
    diffusion loss (Eq. 6) trains only these rows. Prior images use the trained projections for their whole prompt.

    Args:
        backbone: The model that is personalised; it stays frozen and outside of checkpoints.
        subject: The subject that is learnt.
        cache_dir: Folder for class images and latents.
        exports: File that the bank is written to, or that and the formats of other programs.
        objective: The loss that is minimised.
        initializer: Word whose embedding V* starts from; None for the class noun. Not read where image and text attend
            together: an offset of rows starts from zero.
        rank: Rank of the projections' changes; None for full ones, or 4 where image and text attend together.
        snr_gamma: Gamma of min-SNR weighting; None for no weighting.
        sampling: Options of ``ConceptGenerator`` for sample grids.
        seed: Seed of noise, timesteps, templates and initial weights.

    Raises:
        ValueError: If the rank is out of range, the noun has no tokens, or a format or the weighting does not fit.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache_dir", "exports", "sampling")

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        exports: Exports | str,
        objective: Objective | None = None,
        initializer: str | None = "ktn",
        rank: Rank | None = None,
        snr_gamma: Positive | None = None,
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.exports = Exports(exports) if isinstance(exports, str) else exports
        self.exports.check(rank, backbone)
        self.subject, self.objective = subject, objective or Objective()
        self.cache_dir, self.sampling = cache_dir, sampling
        self.initializer, self.rank, self.snr_gamma, self.seed = initializer, rank, snr_gamma, seed
        if snr_gamma is not None and isinstance(backbone, FlowMatching):
            raise ValueError(
                f"method.learner.snr_gamma is {snr_gamma}, but {backbone.name} learns by flow matching, which draws "
                "times by their weight; leave it out"
            )
        self.objective.check_attention(bool(backbone.joint), backbone.name)
        # What could not be saved at the end is refused at the start.
        CONCEPT_BANK.check(self.exports.path, self._metadata(backbone))
        torch.manual_seed(seed)
        pool = TEMPLATES if self.objective.templates == "pool" else (FIXED_TEMPLATE,)
        # A flow is no nn.Module, so the frozen weights in it stay out of checkpoints.
        asked = (backbone, subject.class_noun, pool)
        self.flow: DualFlow | JointFlow = (
            JointFlow(*asked, rank, self.objective.base_flow, self.objective.reading)
            if backbone.joint
            else DualFlow(*asked, initializer, rank, self.objective.base_flow)
        )
        self.delta = self.flow.delta

    @classmethod
    def first_look(cls, settings: Mapping[str, Any]) -> None:
        """Refuse formats that need a rank where there is none, before the weights are read."""
        exports = settings.get("exports")
        formats = exports.get("formats") if isinstance(exports, Mapping) else None
        refuse_without_rank(formats or (), settings.get("rank"))

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.flow.backbone

    def prepare(
        self, data: ConceptData, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Draw the class images, and encode every view and every prompt, once.

        Raises:
            ValueError: If the views are much smaller than what the backbone draws.
        """
        self.resolution = data.resolution
        if 2 * data.resolution < self.backbone.resolution:
            raise ValueError(
                f"data.resolution is {data.resolution}, but {self.backbone.name} draws images of "
                f"{self.backbone.resolution} pixels; start from its experiment, such as +experiment=concept_sdxl"
            )
        self.backbone.to(device)
        noun = self.subject.class_noun
        if rank == 0:
            print(data.introduction(self.subject.concept, self.backbone.known_words), file=sys.stderr)
            warn_of_unknown(self.backbone.known_words, [noun])
        self.instance = encoded_views(self.backbone, data.instance_views(), self.cache_dir)
        self.prior = None
        if self.objective.prior_loss_weight > 0:
            images = data.class_photos or class_images(
                self.backbone, noun, data.num_class_images, data.resolution, self.cache_dir
            )
            self.prior = encoded_views(self.backbone, data.class_views(images), self.cache_dir)
        self.base_text = self.backbone.encode_text(self.flow.prompts)
        self.class_text = self.backbone.encode_text([noun])

    def generators(self, batch: dict[str, Tensor], rank: int, world_size: int) -> list[Generator]:
        """Make one generator for each sample; its position counts over all processes."""
        step = int(batch["step"])
        return [step_generator(self.seed, step, 0, position) for position in batch["position"].tolist()]

    def validation_generators(self, batch: Tensor, batch_idx: int) -> list[Generator]:
        """Make one generator for each draw; no training step uses the same."""
        return [step_generator(self.seed, draw, rank=-1) for draw in batch.tolist()]

    def losses(self, batch: dict[str, Tensor], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute denoising errors of the instance images and of as many prior images, each ``(B,)``."""
        instance, prior = self._losses(batch["index"], generators)
        return {"instance_loss": instance, "prior_loss": prior}

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the instance loss and the weighted prior loss."""
        instance = losses["instance_loss"].mean()
        loss = instance + self.objective.prior_loss_weight * losses["prior_loss"].mean()
        return loss, {"loss": loss, "instance_loss": instance}

    def validate(self, batch: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the same losses on fixed views and templates; the batch holds the numbers of draws ``(B,)``."""
        instance, prior = self._losses(batch, generators)
        return {"loss": instance + self.objective.prior_loss_weight * prior, "instance_loss": instance}

    def _losses(self, index: Tensor, generators: list[Generator]) -> tuple[Tensor, Tensor]:
        """Compute per-sample losses of the instance images and of as many prior images, each shape ``(B,)``."""
        number = len(generators)
        # The latents of all views stay on the CPU, so their index must be there too.
        index = index.cpu()
        flows = [torch.randint(len(self.flow.prompts), (2,), generator=g).tolist() for g in generators]
        concept_at, base_at = [flow[0] for flow in flows], [flow[1] for flow in flows]
        latents, mask = (
            part[index % len(part)].to(self.device) for part in self.instance
        )  # (B, C, h, w), (B, 1, h, w)
        text = self.base_text.rows(base_at)  # (B, L, C)
        if self.prior is not None:
            prior_latents, prior_mask = (part[index % len(part)].to(self.device) for part in self.prior)
            latents, mask = torch.cat([latents, prior_latents]), torch.cat([mask, prior_mask])
            text = text.joined(self.class_text.rows([0] * number))
            generators = [*generators, *generators]
        text, transform = self.flow.read(text, concept_at, base_at, self.objective.faithful)
        self._acting = (transform, self.flow.projected_prompts(number, len(latents) - number))
        errors = self._denoising_errors(latents, mask, text, generators)
        prior = errors[number:] if self.prior is not None else errors.new_zeros(number)
        # The reference code sums the masked error over channels but divides by the cells of one channel.
        scale = latents.shape[1] if self.objective.faithful else 1
        return errors[:number] * scale, prior

    def _denoising_errors(self, latents: Tensor, mask: Tensor, text: Text, generators: list[Generator]) -> Tensor:
        noised = self.backbone.corrupt(latents, generators)  # x_t and target, (B, C, h, w)
        with self.installed(), weights_fetched_again(self.backbone.denoiser):
            prediction = self.backbone.denoise(noised, text)
        errors = per_sample_mse(prediction, noised.target, mask)  # (B,)
        if self.snr_gamma is not None:
            errors = errors * min_snr_weights(self.backbone.noise_scheduler, noised.timesteps, self.snr_gamma)
        return errors

    def installed(self) -> contextlib.AbstractContextManager[Any]:
        """Transform keys and values in the backward pass as well, where checkpointed parts run again."""
        return transformed_projections(self.backbone.denoiser, *self._acting)

    @torch.no_grad()
    def extract_bank(self, record: TrainingRecord | None = None) -> ConceptBank:
        """Extract the concept in its present state; ``record`` adds how it was trained."""
        metadata = self._metadata(self.backbone)
        if record is not None:
            settings = " ".join(f"{key}={value}" for key, value in self._training_settings(record).items())
            metadata |= {"steps": str(record.steps), "training": settings}
        kind = JointBank if self.backbone.joint else ConceptBank
        return kind(self.flow.concept_rows(self._averaged), metadata)

    @property
    def _averaged(self) -> bool:
        return self.objective.bank_templates == "all" and self.objective.templates == "pool"

    def _metadata(self, backbone: Backbone) -> dict[str, str]:
        return {
            "class_noun": self.subject.class_noun,
            "modifier_token": "<new1>",
            "backbone": backbone.name,
            "backbone_hash": backbone.fingerprint,
            "backbone_content": backbone.content_hash,
            "references": self.subject.references,
            "templates": self.objective.templates,
            "extraction_template": FIXED_TEMPLATE,
            **({"bank_templates": "all"} if self._averaged else {}),
            **({"attention": "joint", "reading": self.objective.reading} if backbone.joint else {}),
            "seed": str(self.seed),
        }

    def _training_settings(self, record: TrainingRecord) -> dict[str, Any]:
        """List what a bank's file records of its training; names and order are part of the file format."""
        return {
            "class_noun": self.subject.class_noun,
            "learning_rate": record.learning_rate,
            "modifier_learning_rate": record.rates.get("modifier", record.learning_rate),
            "weight_decay": record.weight_decay,
            "initializer": self.initializer,
            "rank": self.rank,
            "base_flow": self.objective.base_flow,
            "templates": self.objective.templates,
            "prior_loss_weight": self.objective.prior_loss_weight,
            "snr_gamma": self.snr_gamma,
            "faithful": self.objective.faithful,
            "concept": self.subject.concept,
            "references": self.subject.references,
            "sampling": self.sampling,
            "seed": self.seed,
        }

    def sample(self, requests: Sequence[Request], steps: int) -> list[Image.Image]:
        """Draw prompts with the concept in its present state; before the first step, with the plain class noun."""
        concept = self.subject.concept
        if steps == 0:
            nouns = {concept: self.subject.class_noun}
            requests = [Request(parse_prompt(request.prompt, nouns).plain, request.seed) for request in requests]
        sampling = {"resolution": self.resolution, **(self.sampling or {})}
        given = {name: sampling.pop(name) for name in BLENDING if name in sampling}
        blending = {name: value for name, value in given.items() if value is not None}
        generator = ConceptGenerator(self.backbone, {concept: self.extract_bank()}, sampling, **blending)
        return generator.sample(requests)

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters: changes of the projections, and V* without weight decay, which would shrink it."""
        return [
            {"name": "changes", "params": list(self.delta.changes.parameters())},
            {"name": "modifier", "params": list(self.delta.modifier.parameters()), "weight_decay": 0.0},
        ]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the bank, which is all that generation needs of a training, and files of other programs."""
        bank, name = self.extract_bank(record), self.subject.concept
        path = bank.save(self.exports.path)
        others = self.exports.write(name, self.delta, self.backbone, bank.metadata)
        given = {key: value for key, value in (self.sampling or {}).items() if value is not None}
        settings = {**self.backbone.sampling, **given}
        drawn_like = {f"method.{'' if key in BLENDING else 'sampling.'}{key}": value for key, value in settings.items()}
        drawing = {"prompt": f"a <{name}> on the beach", f"bank.{name}": str(path), "num_images": 4, "seed": 0}
        following = command("generate.py", {**drawing, **self.backbone.overrides, **drawn_like})
        return {"concept bank": str(path), **others, "next": following}


def class_images(
    backbone: Backbone, class_noun: str, number: int, resolution: int, cache_dir: str | Path
) -> list[Image.Image]:
    """Draw "a photo of a <noun>" with seeds 0, 1, ... as drawing does; images that are already stored are read instead.

    Raises:
        ValueError: If ``number`` is not positive, or an image is black.
    """
    if number < 1:
        raise ValueError(
            f"data.num_class_images is {number}; give at least 1, or method.learner.objective.prior_loss_weight=0"
        )
    prompt, generator = f"a photo of a {class_noun}", ConceptGenerator(backbone, sampling={"resolution": resolution})
    key = repr((prompt, sorted(generator.identity(prompt).items())))
    folder = Path(cache_dir) / "class_images" / hashlib.sha256(key.encode()).hexdigest()[:16]
    store = ImageStore(folder)
    images = {seed: store.read(f"{seed:04d}") for seed in range(number)}
    # What is drawn anew stands in the batch that it stood in: not even rounding differs.
    batches = [range(number)[at] for at in generator.slices(number)]
    batches = [seeds for seeds in batches if any(images[seed] is None for seed in seeds)]
    for seeds in track(batches, "drawing class images", disable=not batches, transient=True):
        for seed, image in zip(seeds, generator.sample([Request(prompt, seed) for seed in seeds]), strict=True):
            if not image.getbbox():
                raise ValueError(f"class image {seed} of a {class_noun} is black; {BLACK}")
            image.info = {"prompt": prompt, "seed": str(seed)}
            if images[seed] is None:
                store.write(f"{seed:04d}", image)
                images[seed] = image
    return [image for image in images.values() if image is not None]


def encoded_views(backbone: Backbone, views: Sequence[View], cache_dir: str | Path) -> tuple[Tensor, Tensor]:
    """Encode views to latents ``(N, C, h, w)`` and masks ``(N, 1, h, w)``, on the CPU.

    Where a cell of the latents is larger than those that masks are drawn in, it counts if all of these do. The key of
    the stored latents covers pixels, autoencoder and precision, so the cache never needs to be cleared.
    """
    masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
    key = hashlib.sha256(backbone.autoencoder_identity.encode())
    for view in views:
        key.update(view.pixels.tobytes())
    store = TensorStore(Path(cache_dir) / "latents", "latents")
    latents = store.get(key.hexdigest()[:32], lambda: _encode(backbone, views))
    return latents, -F.adaptive_max_pool2d(-masks, latents.shape[-2:])


def _encode(backbone: Backbone, views: Sequence[View]) -> Tensor:
    chunks = []
    for start in track(range(0, len(views), 8), "encoding views", transient=True):
        pixels = np.stack([view.pixels for view in views[start : start + 8]])
        pixel_values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        chunks.append(backbone.encode_images(pixel_values).cpu())
    return torch.cat(chunks)
