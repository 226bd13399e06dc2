"""Textual Inversion (Gal et al., ICLR 2023, arXiv 2208.01618): a new word is learnt, and no weight."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from src.modules.rivals.generator import RivalGenerator
from src.modules.rivals.learner import RivalLearner


class TextualInversionGenerator(RivalGenerator):
    """Draws with learnt words."""

    method = "textual_inversion"


class TextualInversion(RivalLearner):
    """Learns S*, the embeddings that stand for the noun's tokens in "a dog"; they start from the noun's own.

    The paper's one vector is as many here as the noun has tokens, so that prompts keep their length.
    """

    method = "textual_inversion"
    draws: ClassVar = TextualInversionGenerator
    needs_cross_attention: ClassVar[bool] = False

    def first_tokens(self) -> list[nn.Parameter]:
        """Return embeddings of "a" and of the noun's tokens, ``(S, D)``; "a" stays."""
        tables = [encoder.get_input_embeddings().weight for encoder in self.backbone.text_encoders]
        # Template 0 is "{}" alone: the span is that of "a dog".
        ids = [one[0, self.spans[0]] for one in self.backbone.token_ids(self.prompts[:1])]
        return [
            nn.Parameter(table[at.to(table.device)].detach().float()) for table, at in zip(tables, ids, strict=True)
        ]

    def after_step(self) -> None:
        """Take the change of "a" back."""
        for tokens, article in zip(self.tokens, self.words("a"), strict=True):
            with torch.no_grad():
                tokens[0] = article.to(tokens)

    def learnt(self) -> dict[str, Tensor]:
        """Return S*."""
        return self.learnt_tokens()
