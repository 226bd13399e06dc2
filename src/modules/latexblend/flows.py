"""The two flows of LaTexBlend's training, and what is learnt in them: V* and changes of the text projections.

Shapes: B samples, L tokens of a prompt, S tokens of "V* noun", C width of text, D width of one projection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.first_looks import ClassNoun, ConceptName
from src.data.mentions import check_name
from src.data.prompts import FIXED_TEMPLATE, concept_span, initial_vector, tokenize
from src.data.ranges import Weight
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.memory import weights_fetched_again
from src.modules.latexblend.bank import Transform, phrases
from src.modules.latexblend.token_tables import modifier_embedded


@dataclass(frozen=True)
class Subject:
    """The subject that is learnt.

    Attributes:
        class_noun: What the subject is, such as ``dog``.
        concept: What prompts call it, as ``<name>``.
        references: Folder of its photos; the bank records it for scoring.

    Raises:
        ValueError: If no prompt can name the concept, or the noun is empty.
    """

    incidental: ClassVar[tuple[str, ...]] = ("references",)

    class_noun: ClassNoun
    concept: ConceptName = "subject"
    references: str = ""

    def __post_init__(self) -> None:
        """Check the names."""
        check_name(self.concept, "concept")
        if not self.class_noun.strip():
            raise ValueError("class_noun is empty; give what the subject is, such as class_noun=dog")


Reading = Literal["concept", "offsets", "constant", "all"]
"""What a concept is in joint attention, see ``Objective``."""


@dataclass(frozen=True)
class Objective:
    """The loss that is minimised: which flows there are, their prompts, and how their losses are added.

    Attributes:
        base_flow: Whether a generic prompt goes through the original projections. False is the ablation in which the
            whole prompt with V* goes through the trained ones.
        templates: ``pool`` draws a template for each flow independently, ``fixed`` always uses the same.
        prior_loss_weight: Weight of the class images; 0 switches them off.
        faithful: Whether to scale as the reference code does: the instance loss is summed over latent channels, and
            SDXL's pooled text comes from the prompt with V*.
        bank_templates: Whether the bank's rows are those of ``one`` template, as in the reference code, or the mean
            over ``all`` that the training draws from.
        reading: What a concept is where image and text attend together (``joint.py``): offsets and changes of its own
            rows (``concept``), ``offsets`` alone, offsets and ``constant`` rows that are added to its keys and values,
            or, as a LoRA is, changes of ``all`` text rows.

    Raises:
        ValueError: If ``templates`` is neither.
    """

    base_flow: bool = True
    templates: str = "pool"
    prior_loss_weight: Weight = 1.0
    faithful: bool = False
    bank_templates: Literal["one", "all"] = "one"
    reading: Reading = "concept"

    def __post_init__(self) -> None:
        """Check ``templates``."""
        if self.templates not in ("pool", "fixed"):
            raise ValueError(f"method.learner.objective.templates is {self.templates!r}; choose pool or fixed")

    def check_attention(self, joint: bool, name: str) -> None:
        """Refuse what would do nothing with a model.

        Args:
            joint: Whether image and text attend to both together.
            name: Name of the model, for the error.

        Raises:
            ValueError: If something would.
        """
        if self.reading != "concept" and not joint:
            raise ValueError(
                f"method.learner.objective.reading is {self.reading}, but {name} has cross-attention, where a concept "
                "is its keys and values; leave it out"
            )
        if self.bank_templates == "all" and joint:
            raise ValueError(
                f"method.learner.objective.bank_templates is all, but in {name} text and image attend together, and a "
                "concept has no rows to average; leave it out"
            )


class LowRank(nn.Module):
    """A change of rank r to a ``(D, C)`` weight, ``up down``; zero at the start."""

    def __init__(self, out_features: int, in_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, in_features) / in_features**0.5)
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    @property
    def weight(self) -> Tensor:
        """The change itself, ``(D, C)``."""
        return self.up @ self.down

    def forward(self, hidden: Tensor) -> Tensor:
        """Project ``(..., C)`` to ``(..., D)``."""
        return F.linear(F.linear(hidden, self.down), self.up)


class Full(nn.Module):
    """A change of full rank to a ``(D, C)`` weight; zero at the start."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        """Project ``(..., C)`` to ``(..., D)``."""
        return F.linear(hidden, self.weight)


class ConceptDelta(nn.Module):
    """The trained parameters: float32 changes of every key and value projection, and one V* per text encoder.

    Args:
        projections: ``k.<layer>`` and ``v.<layer>`` to the projection, as ``text_projections`` returns.
        modifier: Initial V* of each text encoder, a vector of the width of its embeddings.
        rank: Rank of the changes; None for full ones.

    Raises:
        ValueError: If ``rank`` is not positive.
    """

    def __init__(
        self, projections: Mapping[str, nn.Linear], modifier: Sequence[Tensor], rank: int | None = None
    ) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"method.learner.rank is {rank}; give a positive number, or null for full changes")
        self.rank = rank
        # Module names may not contain dots.
        self.changes = nn.ModuleDict(
            {_key(name): _change(linear.out_features, linear.in_features, rank) for name, linear in projections.items()}
        )
        self.modifier = nn.ParameterList([nn.Parameter(vector.clone().float()) for vector in modifier])

    def forward(self, name: str, hidden: Tensor) -> Tensor:
        """Compute what the change adds to one projection of ``hidden`` ``(..., C)``: ``(..., D)``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.changes[_key(name)](hidden.float())

    def weight(self, name: str) -> Tensor:
        """Return the change of one projection, ``(D, C)``."""
        return self.changes[_key(name)].weight  # type: ignore[return-value]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the factors of a change of rank r, ``(r, C)`` and ``(D, r)``, whose product ``up down`` it is."""
        change = self.changes[_key(name)]
        return change.down, change.up  # type: ignore[return-value]


def _change(out_features: int, in_features: int, rank: int | None) -> nn.Module:
    return Full(out_features, in_features) if rank is None else LowRank(out_features, in_features, rank)


def _key(name: str) -> str:
    return name.replace(".", "/")


class DualFlow:
    """The keys and values that cross-attention sees while a concept is learnt, and those that a bank keeps of it.

    The concept flow encodes a prompt with "V* noun" and projects it with the trained ``W'``. The base flow encodes one
    with "a noun" and projects it with the original ``W_0``. ``F(h_c) = Blend(h_b, h_c)`` (Eq. 8) joins them.

    Args:
        backbone: The frozen model.
        class_noun: What the subject is, such as ``dog``.
        templates: Prompts with a place for "a noun"; both flows draw from them.
        initializer: Word whose embedding V* starts from; None for the class noun.
        rank: Rank of the changes; None for full ones.
        base_flow: Whether there is a base flow, see ``Objective``.

    Attributes:
        delta: All trained parameters.
        prompts: The templates, filled with "a noun".
        positions: Rows of "a noun" in the text of each prompt, ``(templates, S)``; "V* noun" takes the same.
        starts: Position of V* in the tokens of each text encoder, ``(templates,)`` each.

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
        asked = [
            [concept_span(tokenizer, each, class_noun, backbone.as_read) for each in templates]
            for tokenizer in backbone.tokenizers
        ]
        self.prompts = [prompt for prompt, _ in asked[0]]
        self.starts = [torch.tensor([span.start for _, span in each]) for each in asked]
        self.positions = torch.tensor(phrases(backbone, class_noun, templates)[1])
        self.fixed = self.prompts.index(FIXED_TEMPLATE.replace("{}", f"a {class_noun}"))
        self.projections = backbone.text_layers()
        vectors = [
            initial_vector(tokenizer, encoder.get_input_embeddings().weight, initializer or class_noun)
            for tokenizer, encoder in zip(backbone.tokenizers, backbone.text_encoders, strict=True)
        ]
        self.delta = ConceptDelta(self.projections, vectors, rank)

    def concept_text(self, template_indices: Sequence[int]) -> Text:
        """Encode prompts with V* in the place of the article, one row for each index.

        Each template is encoded once. Text encoders are causal, so tokens after the span do not change it.
        """
        unique = sorted(set(template_indices))
        prompts = [self.backbone.as_read(self.prompts[index]) for index in unique]
        ids = [tokenize(tokenizer, prompts) for tokenizer in self.backbone.tokenizers]
        # (B,), V* of each prompt
        positions = [starts[unique] - each.shape[1] for starts, each in zip(self.starts, ids, strict=True)]
        encoders, modifier = self.backbone.text_encoders, list(self.delta.modifier)
        with modifier_embedded(encoders, modifier, positions), weights_fetched_again(*encoders):
            text = self.backbone.encode_ids(ids)
        return text.rows([unique.index(index) for index in template_indices])

    def read(
        self, text: Text, concept_at: Sequence[int], base_at: Sequence[int], faithful: bool = False
    ) -> tuple[Text, Transform]:
        """Return what the denoiser reads in a training step, and the transform of its keys and values.

        Args:
            text: Generic prompts of the first B samples, and after them those of prior images.
            concept_at: Index of each sample's template in the concept flow, B of them.
            base_at: Index of each sample's template in the base flow.
            faithful: Whether SDXL's pooled text comes from the prompt with V*, as in the reference code.
        """
        concept = self.concept_text(concept_at)
        num_prior = len(text.prompt_embeds) - len(concept_at)
        transform = self.transform(concept, concept_at, base_at, num_prior)
        whole = concept.joined(text.rows(range(len(concept_at), len(text.prompt_embeds))))
        if faithful:
            text = replace(text, pooled_prompt_embeds=whole.pooled_prompt_embeds)
        if not self.base_flow:
            text = replace(text, prompt_embeds=whole.prompt_embeds, mask=whole.mask)
        return text, transform

    def transform(
        self, concept: Text, concept_at: Sequence[int], base_at: Sequence[int], num_prior: int = 0
    ) -> Transform:
        """Make the transform of keys and values: ``Blend`` for the first B samples, trained projections for the rest.

        Args:
            concept: Text of the concept flow, one row for each of the first B samples.
            concept_at: Index of each sample's template in the concept flow.
            base_at: Index of each sample's template in the base flow.
            num_prior: Number of class images. They share one prompt, so that is projected once.

        Returns:
            A transform for ``transformed_projections``. With a base flow it takes ``projected_prompts`` rows, the base
            prompts and the one of the class images, and returns a row for each sample; without one it takes all.
        """
        number = len(concept_at)
        read = self.backbone.read_text(concept.prompt_embeds)  # (B, L, C)
        own, positions = (self.positions[list(at)].to(read.device) for at in (concept_at, base_at))  # (B, S)
        samples = torch.arange(number, device=read.device)[:, None].expand_as(own)  # (B, S)
        rows = read[samples, own]  # (B, S, C)
        flat = rows.flatten(0, 1)  # (B * S, C)

        def blended(name: str, hidden: Tensor, projected: Tensor) -> Tensor:
            # W' e = W_0 e + (W' - W_0) e. The change is computed in one product, of the concept's rows and of the
            # prompt that class images share; gradients of these are added up before they reach it.
            changed = self.delta(name, torch.cat([flat, *hidden[number:]])).to(projected)
            concept_rows = self.original(name, rows) + changed[: len(flat)].unflatten(0, samples.shape)  # (B, S, D)
            instance = projected[:number].index_put((samples, positions), concept_rows.to(projected))  # (B, L, D)
            if not num_prior:
                return instance
            prior = projected[number:] + changed[len(flat) :]  # (1, L, D)
            return torch.cat([instance, prior.expand(num_prior, -1, -1)])  # (B + prior, L, D)

        def trained(name: str, hidden: Tensor, projected: Tensor) -> Tensor:
            return projected + self.delta(name, hidden).to(projected)

        return blended if self.base_flow else trained

    def projected_prompts(self, number: int, num_prior: int) -> int | None:
        """Return how many prompts the layers project for so many photos and class images; None for one of each."""
        return number + min(num_prior, 1) if self.base_flow else None

    def project(self, name: str, hidden: Tensor) -> Tensor:
        """Project text rows ``(..., C)`` with one trained projection ``W'``: ``(..., D)``."""
        return self.original(name, hidden) + self.delta(name, hidden).to(hidden)

    def original(self, name: str, hidden: Tensor) -> Tensor:
        """Project text rows ``(..., C)`` with one projection as it is in the model, ``W_0``: ``(..., D)``."""
        # The layer itself is not called, because it has a hook while a flow is transformed. Between two calls its
        # weights may be kept elsewhere, or in fewer bits.
        linear = self.projections[name]
        weight, bias = (None if one is None else one.to(hidden) for one in (linear.weight, linear.bias))
        return F.linear(hidden, weight, bias)

    def concept_rows(self, average: bool = False) -> dict[str, Tensor]:
        """Compute ``h_c``, the keys and values of "V* noun" in "photo of V* noun" (Eq. 3), ``(S, D)`` each, float32.

        Args:
            average: Whether to take the mean over all templates instead.
        """
        templates = range(len(self.prompts)) if average else [self.fixed]
        text = self.backbone.read_text(self.concept_text(templates).prompt_embeds)
        spans = torch.stack([text[row, self.positions[at]] for row, at in enumerate(templates)])
        rows = spans.mean(0)  # projections are linear, so the mean may come first
        return {name: self.project(name, rows).float() for name in self.projections}
