"""Cones 2 (Liu et al., NeurIPS 2023, arXiv 2305.19327): a subject is a residual of the noun's text state.

A copy of the text encoder is tuned on the photos, held to the stock one on every other token. The residual is the mean
difference at the noun over the templates; drawing adds it to the stock encoder's states, and nothing else.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from src.data.ranges import Sampling, Seed, Weight
from src.modules.backbones.base import Backbone
from src.modules.latexblend.flows import Subject, token_tables
from src.modules.rivals.generator import RivalGenerator
from src.modules.rivals.learner import RivalLearner


class Cones2Generator(RivalGenerator):
    """Draws with the residuals of all concepts of a prompt; the layout guidance of the paper is not here."""

    method = "cones2"


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
        """Copy the text encoders, and tune the copies; what the stock ones say of every template is kept."""
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
