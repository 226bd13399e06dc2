"""The two flows of LaTexBlend's training: what is learnt in them, changes to the text projections and V*, and how."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.prompts import FIXED_TEMPLATE, concept_span, initial_vector, tokenize
from src.modules.backbones.base import Backbone, Text


@dataclass(frozen=True)
class Subject:
    """What is learnt.

    Attributes:
        class_noun: What the subject is, such as ``dog``.
        concept: What prompts call it, as ``<name>``.
        references: Folder of its photos, noted in the bank for scoring.
    """

    incidental: ClassVar[tuple[str, ...]] = ("references",)

    class_noun: str
    concept: str = "subject"
    references: str = ""


@dataclass(frozen=True)
class Objective:
    """What is minimised: the flows, their prompts, and how their losses are added.

    Attributes:
        base_flow: False for the ablation: the whole prompt with V* goes through the trained projections.
        templates: ``pool``, drawn independently for the two flows, or ``fixed``.
        prior_loss_weight: Weight of the class images; 0 switches them off.
        faithful: The reference code's scalings instead of ours: the instance loss is summed over latent channels, and
            SDXL's pooled text comes from the prompt with V*.

    Raises:
        ValueError: If there are no such templates.
    """

    base_flow: bool = True
    templates: str = "pool"
    prior_loss_weight: float = 1.0
    faithful: bool = False

    def __post_init__(self) -> None:
        """Check."""
        if self.templates not in ("pool", "fixed"):
            raise ValueError(f"method.learner.objective.templates is {self.templates!r}; choose pool or fixed")


class LowRank(nn.Module):
    """A change of rank r to a ``(D, C)`` weight; zero at the start."""

    def __init__(self, out_features: int, in_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, in_features) / in_features**0.5)
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., D)``."""
        return F.linear(F.linear(hidden, self.down), self.up)


class Full(nn.Module):
    """A change of full rank to a ``(D, C)`` weight; zero at the start."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., D)``."""
        return F.linear(hidden, self.weight)


class ConceptDelta(nn.Module):
    """Float32 changes to every key and value projection, and one V* per text encoder.

    Args:
        projections: ``k.<layer>`` and ``v.<layer>``, as ``cross_attention_projections`` returns them.
        modifier: Initial V* of each text encoder, ``(D,)`` each.
        rank: None for full changes.

    Raises:
        ValueError: If ``rank`` is not positive.
    """

    def __init__(
        self, projections: Mapping[str, nn.Linear], modifier: Sequence[Tensor], rank: int | None = None
    ) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"method.learner.rank is {rank}; give a positive number, or null for full changes")
        # Module names may not contain dots.
        self.changes = nn.ModuleDict(
            {_key(name): _change(linear.out_features, linear.in_features, rank) for name, linear in projections.items()}
        )
        self.modifier = nn.ParameterList([nn.Parameter(vector.clone().float()) for vector in modifier])

    def forward(self, name: str, hidden: Tensor) -> Tensor:
        """What the change adds to one projection of ``hidden`` ``(..., C)``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.changes[_key(name)](hidden.float())


def _change(out_features: int, in_features: int, rank: int | None) -> nn.Module:
    return Full(out_features, in_features) if rank is None else LowRank(out_features, in_features, rank)


def _key(name: str) -> str:
    return name.replace(".", "/")


class DualFlow:
    """What cross-attention sees while a concept is learnt, and what it is extracted from.

    Args:
        backbone: Frozen.
        class_noun: What the subject is.
        templates: With a place for "a noun"; both flows draw from them.
        initializer: Word whose embedding V* starts from; None for the class noun.
        rank: Of the changes; None for full.
        base_flow: False for the ablation: the whole prompt with V* goes through the trained projections.

    Attributes:
        delta: All that is trained.
        prompts: The templates with "a noun".
        spans: Positions of "a noun" in each, which are those of "V* noun".

    Raises:
        ValueError: If the noun has no tokens or the rank is not positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_noun: str,
        templates: Sequence[str],
        initializer: str | None = None,
        rank: int | None = None,
        base_flow: bool = True,
    ) -> None:
        self.backbone, self.base_flow = backbone, base_flow
        filled = [
            concept_span(backbone.tokenizers[0], template, class_noun, backbone.as_read) for template in templates
        ]
        self.prompts, self.spans = [prompt for prompt, _ in filled], [span for _, span in filled]
        self.fixed = self.prompts.index(FIXED_TEMPLATE.format(f"a {class_noun}"))
        self.projections = backbone.text_layers()
        vectors = [
            initial_vector(tokenizer, encoder.get_input_embeddings().weight, initializer or class_noun)
            for tokenizer, encoder in zip(backbone.tokenizers, backbone.text_encoders, strict=True)
        ]
        self.delta = ConceptDelta(self.projections, vectors, rank)

    def concept_text(self, template_indices: Sequence[int]) -> Text:
        """Prompts with V* in the article's place, through the text encoders.

        Each template is encoded once. Text encoders are causal, so the tokens after the span do not matter to it.
        """
        unique = sorted(set(template_indices))
        prompts = [self.backbone.as_read(self.prompts[index]) for index in unique]
        positions = torch.tensor([self.spans[index].start for index in unique])
        ids = [tokenize(tokenizer, prompts) for tokenizer in self.backbone.tokenizers]
        with self.backbone.modifier_embedded(list(self.delta.modifier), positions):
            text = self.backbone.encode_ids(ids)
        return text.rows([unique.index(index) for index in template_indices])

    def transform(
        self, concept: Text, concept_at: Sequence[int], base_at: Sequence[int]
    ) -> Callable[[str, Tensor, Tensor], Tensor]:
        """How a layer's keys or values change: concept rows for the first B samples, the trained projection after them.

        Args:
            concept: Text of the concept flow, one row for each of the first B samples.
            concept_at: Its templates.
            base_at: The templates of the base flow.

        Returns:
            For ``transformed_projections``.
        """
        number = len(concept_at)
        rows = torch.stack([concept.prompt_embeds[b, self.spans[at]] for b, at in enumerate(concept_at)])
        rows = self.backbone.read_text(rows)  # (B, S, C)
        samples = torch.arange(number, device=rows.device)[:, None].expand(-1, rows.shape[1])
        positions = torch.tensor([list(range(self.spans[at].start, self.spans[at].stop)) for at in base_at])
        positions = positions.to(rows.device)
        first = number if self.base_flow else 0

        def changed(name: str, hidden: Tensor, projected: Tensor) -> Tensor:
            trained = projected[first:] + self.delta(name, hidden[first:]).to(projected)
            projected = torch.cat([projected[:first], trained])
            if not self.base_flow:
                return projected
            return projected.index_put((samples, positions), self.project(name, rows).to(projected))

        return changed

    def project(self, name: str, hidden: Tensor) -> Tensor:
        """Text rows ``(..., C)`` through one trained projection, ``(..., D)``."""
        # Not the layer itself, which has a hook while a flow is transformed.
        linear = self.projections[name]
        return F.linear(hidden, linear.weight, linear.bias) + self.delta(name, hidden).to(hidden)

    def concept_rows(self) -> dict[str, Tensor]:
        """Keys and values of "V* noun" in "photo of V* noun", Eq. 3, float32."""
        rows = self.backbone.read_text(self.concept_text([self.fixed]).prompt_embeds[0, self.spans[self.fixed]])
        return {name: self.project(name, rows).float() for name in self.projections}
