"""MuDI (Jang et al., NeurIPS 2024, arXiv 2404.04243): subjects of one combination are learnt together, and apart.

Some of the images that are learnt show two subjects, cut out and put on one white canvas (Seg-Mix), so that the model
sees which look belongs to which words. Drawing may start from noise that is shifted towards such a canvas.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.combination import Others
from src.data.prompts import concept_positions
from src.data.ranges import BatchSize, Rank, Sampling, Seed, Share, Weight
from src.data.seg_mix import cut_outs, mixed
from src.data.subject import LATENT_CELL, ConceptData, View
from src.modules.backbones.base import Backbone, Text
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.learner import encoded_views
from src.modules.rivals.concept import RivalConcept, read
from src.modules.rivals.dreambooth_lora import DreamBoothLoRA
from src.modules.rivals.generator import Mentioned, RivalGenerator
from src.modules.rivals.joint import Combined, JointGenerator, JointLearner, together
from src.modules.rivals.learner import Examples

MIXED = "a photo of a <first> and a <second>, simple background"
"""What a canvas of two subjects is called, as in the paper's code."""


class MuDIGenerator(JointGenerator):
    """Draws prompts of subjects that were learnt together.

    Args:
        backbone: The stock model.
        banks: As of ``JointGenerator``.
        sampling: As there.
        mean_shift: Factor of the latents of a canvas that are added to the first noise where a prompt names several
            subjects; 0 for none. Their photos and masks have to be where they were when they were learnt.
        batch_size: As there.
        device: As there.
    """

    method = "mudi"

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, Combined] | None = None,
        sampling: Sampling | None = None,
        mean_shift: Weight = 0.0,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        self.mean_shift = mean_shift
        super().__init__(backbone, banks, sampling, batch_size, device)
        if mean_shift:
            self.cut = {name: cut_outs(one.metadata["references"]) for name, one in self.concepts.items()}

    def options(self) -> dict[str, Any]:
        """Return the shift."""
        return {"mean_shift": float(self.mean_shift)}

    def draw(self, batch: Sequence[Mentioned]) -> list[Image.Image]:
        """Draw one batch with a stock call, perhaps from shifted noise."""
        names = batch[0].names
        if not self.mean_shift or len(set(names)) < 2:
            return super().draw(batch)
        prompts, seeds = [one.plain for one in batch], [one.seed for one in batch]
        with self.acting(names):
            return self.backbone.draw(prompts, seeds, self.sampling, self.read(batch), latents=self.noise(batch))

    def noise(self, batch: Sequence[Mentioned]) -> Tensor:
        """Draw the stock pipeline's first noise, and add the latents of a canvas inside of its subjects."""
        shifts = torch.cat([self.canvas(one.names, one.seed) for one in batch])
        generators = [torch.Generator().manual_seed(one.seed) for one in batch]
        noise = randn_tensor(shifts.shape, generator=generators, device=shifts.device, dtype=shifts.dtype)
        return noise + self.mean_shift * shifts

    def canvas(self, names: Sequence[str], seed: int) -> Tensor:
        """Latents of a canvas on which subjects stand from left to right, zero elsewhere, ``(1, C, h, w)``."""
        rng = np.random.default_rng([seed, 13])
        chosen = [self.cut[name][rng.integers(len(self.cut[name]))] for name in names]
        pixels, shown = mixed(chosen, self.sampling["resolution"], rng, ordered=True)
        pixel_values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = self.backbone.encode_images(pixel_values.to(self.backbone.device))
        grid = (latents.shape[-2], latents.shape[-1])
        return latents * F.adaptive_avg_pool2d(torch.from_numpy(shown)[None, None].to(latents), grid)


class MuDI(JointLearner, DreamBoothLoRA):
    """Learns low-rank changes of all attention layers from the photos of several subjects, and from mixtures of two.

    Args:
        backbone: As of ``DreamBoothLoRA``.
        subject: The first subject.
        cache_dir: As there.
        export_path: As there.
        others: The further subjects, as of ``CombinationData``.
        mix_share: Share of the samples that show two subjects.
        rank: As there.
        prior_loss_weight: As there.
        sampling: As there.
        seed: As there.

    Raises:
        ValueError: As there, or if a photo has no mask.
    """

    method = "mudi"
    draws: ClassVar[type[RivalGenerator]] = MuDIGenerator
    needs_cross_attention: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        others: Others | None = None,
        mix_share: Share = 0.3,
        rank: Rank = 16,
        prior_loss_weight: Weight = 1.0,
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        self.subjects, self.mix_share = together(subject, others), mix_share
        self.cut = [cut_outs(one.references) for one in self.subjects]
        super().__init__(
            backbone, subject, cache_dir, export_path, rank, prior_loss_weight, sampling=sampling, seed=seed
        )

    def prepare(
        self, data: ConceptData, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Prepare every subject, and encode the mixtures, as many as a subject has views."""
        super().prepare(data, device, rank, world_size, num_steps)
        self.pairs: list[tuple[int, int]] = []
        if len(self.members) < 2:
            return
        views = []
        for index in range(data.num_views):
            rng = np.random.default_rng([data.seed, index, 12])
            first, second = rng.permutation(len(self.members))[:2].tolist()
            chosen = [self.cut[one][rng.integers(len(self.cut[one]))] for one in (first, second)]
            pixels, _ = mixed(chosen, data.resolution, rng)
            cells = data.resolution // LATENT_CELL
            views.append(View(pixels, np.ones((cells, cells), dtype=np.float32)))
            self.pairs.append((first, second))
        self.mixtures = encoded_views(self.backbone, views, self.cache_dir)

    def photo(self, at: int, generator: Generator) -> Examples:
        """Return one view, or one mixture."""
        mixes = float(torch.rand((), generator=generator)) < self.mix_share
        return self.mixture(at) if mixes and self.pairs else super().photo(at, generator)

    def mixture(self, at: int) -> Examples:
        """Return a canvas of two subjects, and the prompt that names both."""
        at %= len(self.pairs)
        latents, mask = (part[[at]].to(self.device) for part in self.mixtures)
        return Examples(latents, mask, self.mixed_text(*self.pairs[at]))

    def mixed_text(self, first: int, second: int) -> Text:
        """Encode the prompt of a canvas, one row."""
        members = {"first": self.members[first], "second": self.members[second]}
        nouns = {name: one.subject.class_noun for name, one in members.items()}
        marked, rows = concept_positions(self.backbone.tokenizers[0], MIXED, nouns, self.backbone.as_read)
        concepts = [
            RivalConcept({f"token.{i}": each for i, each in enumerate(members[name].tokens)}) for name, _ in rows
        ]
        positions = [torch.tensor([at]) for _, at in rows]
        return read(self.backbone, self.backbone.token_ids([marked.plain]), concepts, positions)
