"""Cones 2 (Liu et al., NeurIPS 2023, arXiv 2305.19327): a subject is a residual of the noun's text state.

A copy of the text encoder is tuned on the photos, held to the stock one on every other token. The residual is the mean
difference at the noun over the templates; drawing adds it to the stock encoder's states, and nothing else.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from src.data.banks import ConceptFile
from src.data.layout import Region, covered
from src.data.ranges import BatchSize, Sampling, Seed, Weight
from src.modules.backbones.base import Backbone
from src.modules.backbones.memory import refuse_rounded
from src.modules.latexblend.attention import attention_grid, scores
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.token_tables import token_tables
from src.modules.rivals.concept import RivalConcept
from src.modules.rivals.generator import Mentioned, RivalGenerator
from src.modules.rivals.learner import RivalLearner

MASKED = -1e8
"""M where another subject's region is, as in the paper's code: nothing is read there."""


def layout_map(
    phrases: Sequence[Sequence[int]], regions: Sequence[Region | None], grid: Sequence[int], length: int
) -> Tensor:
    """Compute the layout M of one prompt, ``(N, L)``: what is added to attention of N cells to L tokens.

    A noun's tokens get the share of a cell that their own region covers, ``MASKED`` where only regions of other
    subjects are, and 0 elsewhere; all other tokens, and subjects without a region, get 0.

    Args:
        phrases: Tokens of each subject, its article's first.
        regions: Region of each; None where it may stand anywhere.
        grid: Rows and columns of cells.
        length: Number of tokens L.
    """
    shares = [None if one is None else covered(one, grid[0], grid[1]).flatten() for one in regions]
    found = torch.zeros(grid[0] * grid[1], length)
    for at, (phrase, own) in enumerate(zip(phrases, shares, strict=True)):
        if own is None:
            continue
        rest = [other > 0 for index, other in enumerate(shares) if other is not None and index != at]
        foreign = torch.stack(rest).any(0) & (own == 0) if rest else torch.zeros_like(own, dtype=torch.bool)
        found[:, list(phrase[1:])] = torch.where(foreign, torch.full_like(own, MASKED), own)[:, None]
    return found


class LayoutGuidance:
    """Edits cross-attention by a layout: ``softmax(S + eta(t) M)``, ``eta(t) = weight log(1 + sigma_t^2) std(S)``.

    S are the scores of the conditional prompts before the softmax over tokens, sigma_t the noise level, so that the
    edit fades while an image is drawn (the paper's Eq. 5 and 6, with eta as in its code).

    Args:
        backbone: The stock model, a UNet.
        batch: The prompts of a call, at least one of which has a layout.
        weight: Strength of the edit.
    """

    def __init__(self, backbone: Backbone, batch: Sequence[Mentioned], weight: float) -> None:
        self.backbone, self.batch, self.weight = backbone, batch, weight
        self.fading, self.size = 0.0, (1, 1)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """While active, calls of the pipeline with these prompts follow their layouts."""
        denoiser = self.backbone.denoiser
        handles = [denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, module in denoiser.named_modules():
            if name.endswith("attn2"):
                handles.append(module.register_forward_pre_hook(self._edit, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> None:
        timestep = int(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0])
        signal = float(self.backbone.noise_scheduler.alphas_cumprod[timestep])
        self.fading = math.log1p((1 - signal) / max(signal, torch.finfo(torch.float32).tiny))
        sample = args[0] if args else kwargs["sample"]
        self.size = (sample.shape[-2], sample.shape[-1])

    def _edit(self, layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden, number = args[0], len(self.batch)
        keys = layer.to_k(kwargs["encoder_hidden_states"])[-number:]
        found = scores(layer.to_q(hidden[-number:]), keys, layer.heads)  # (B, H, N, L)
        grid = attention_grid(hidden.shape[1], self.size)
        maps = [layout_map(one.positions, one.regions, grid, keys.shape[1]) for one in self.batch]
        # Each prompt has its own deviation: an image does not depend on what is drawn with it.
        eta = self.weight * self.fading * found.std((1, 2, 3), keepdim=True)
        edit = torch.zeros(len(hidden), *found.shape[1:], dtype=found.dtype, device=found.device)
        edit[-number:] = eta * torch.stack(maps)[:, None].to(found)
        mask = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": (edit if mask is None else edit + mask[:, None]).flatten(0, 1)}


class Cones2Generator(RivalGenerator):
    """Draws with the residuals of all concepts of a prompt, where a layout says if there is one.

    Args:
        backbone: The stock model.
        banks: As of ``RivalGenerator``.
        sampling: As there.
        layout_weight: Strength of the edit of attention by a layout, see ``LayoutGuidance``.
        batch_size: As there.
        device: As there.
    """

    method = "cones2"
    takes_layouts = True

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        layout_weight: Weight = 0.05,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        self.layout_weight = layout_weight
        super().__init__(backbone, banks, sampling, batch_size, device)

    def options(self) -> dict[str, Any]:
        """Return the strength of the edit, where it is not the usual one."""
        return {} if self.layout_weight == 0.05 else {"layout_weight": float(self.layout_weight)}

    def draw(self, batch: Sequence[Mentioned]) -> list[Image.Image]:
        """Draw one batch with a stock call, whose attention a layout may edit."""
        if not any(region is not None for one in batch for region in one.regions):
            return super().draw(batch)
        with LayoutGuidance(self.backbone, batch, self.layout_weight).acting():
            return super().draw(batch)


class Cones2(RivalLearner):
    """Learns the residual of one subject.

    Args:
        backbone: As of ``RivalLearner``.
        subject: As there.
        cache_dir: As there.
        export_path: As there.
        preservation_weight: Weight of the paper's regularisation: the mean square by which states of other tokens move.
        prior_loss_weight: As there; the paper has no class images.
        sampling: As there.
        seed: As there.
    """

    method = "cones2"
    draws: ClassVar = Cones2Generator

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        preservation_weight: Weight = 1.0,
        prior_loss_weight: Weight = 0.0,
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        self.preservation_weight = preservation_weight
        super().__init__(backbone, subject, cache_dir, export_path, prior_loss_weight, sampling=sampling, seed=seed)

    def first_tokens(self) -> list[nn.Parameter]:
        """Return nothing: prompts keep their words."""
        return []

    def add_weights(self) -> None:
        """Copy the text encoders, and tune the copies; what the stock ones say of every template is kept.

        Raises:
            ValueError: If weights of the text encoders are kept in fewer bits.
        """
        parts = [part for encoder in self.backbone.text_encoders for part in encoder.named_modules()]
        refuse_rounded({name: part for name, part in parts if isinstance(part, nn.Linear)})
        self.tuned = nn.ModuleList(copy.deepcopy(encoder).float() for encoder in self.backbone.text_encoders)
        self.tuned.requires_grad_(True)
        for encoder in self.tuned:
            for table in token_tables(encoder):
                table.requires_grad_(False)
        self.stated = self.backbone.encode_text(self.prompts).prompt_embeds

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Read prompts with the tuned text encoders."""
        own = self.backbone.text_encoders
        self.backbone.text_encoders = tuple(self.tuned)
        try:
            yield
        finally:
            self.backbone.text_encoders = own

    def losses(self, batch: dict[str, Tensor], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute denoising errors, and by how much other tokens move, each ``(B,)`` or a scalar."""
        return {**super().losses(batch, generators), "preservation_loss": self.moved()}

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the weighted preservation loss."""
        loss, logged = super().reduce({name: one for name, one in losses.items() if name != "preservation_loss"})
        loss = loss + self.preservation_weight * losses["preservation_loss"]
        return loss, {**logged, "loss": loss, "preservation_loss": losses["preservation_loss"]}

    def moved(self) -> Tensor:
        """Compute the mean square by which the states of all tokens but the noun's last move, over all templates."""
        with self.acting():
            states = self.subject_text(range(len(self.prompts))).prompt_embeds
        kept = torch.ones(states.shape[:2], device=states.device)
        kept[range(len(self.spans)), [span.stop - 1 for span in self.spans]] = 0
        return ((states - self.stated.to(states)).square().mean(-1) * kept).sum() / kept.sum()

    def learnt(self) -> dict[str, Tensor]:
        """Return the residual, ``(1, C)``."""
        with self.acting(), torch.no_grad():
            states = self.subject_text(range(len(self.prompts))).prompt_embeds
        at = [span.stop - 1 for span in self.spans]
        rows = range(len(at))
        return {"residual.0": (states[rows, at] - self.stated.to(states)[rows, at]).mean(0, keepdim=True)}
