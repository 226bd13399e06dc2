"""Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488): V* and all keys and values of cross-attention.

Shapes: C width of text, D width of a projection, R rows of regularisation text, T rows of the concepts' text.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from src.data.banks import ConceptFile
from src.data.combination import Others
from src.data.prompts import TEMPLATES
from src.data.ranges import BatchSize, Sampling, Seed, Weight
from src.modules.backbones.base import Backbone, text_projections
from src.modules.latexblend.bank import transformed_projections
from src.modules.latexblend.flows import ConceptDelta, Subject
from src.modules.rivals.concept import Changes, RivalConcept, layer_named
from src.modules.rivals.generator import Names, RivalGenerator
from src.modules.rivals.joint import JointGenerator, JointLearner, together
from src.modules.rivals.learner import RivalLearner

MERGES = {"constrained": "the paper's closed form", "sum": "the changes are added"}


def layer_of(projection: str) -> str:
    """Name of the layer behind ``k.PATH`` or ``v.PATH``."""
    kind, _, path = projection.partition(".")
    return f"denoiser.{path}.to_{kind}"


def constrained_merge(weight: Tensor, regular: Tensor, text: Tensor, values: Tensor) -> Tensor:
    """Compute the paper's closed form (its Eq. 4 and 5): close to ``weight`` on common text, exact on the concepts'.

    ``min ||(W - W_0) C_reg^T||`` so that ``W C^T = V``, solved by ``W = W_0 + v^T d`` with
    ``d = C (C_reg^T C_reg)^-1`` and ``v^T = (V - W_0 C^T) (d C^T)^-1``. Rows of C that nearly depend on each other are
    met in the least squares (pseudo-inverses with a relative cut-off of 1e-6 in float64).

    Args:
        weight: W_0, ``(D, C)``.
        regular: C_reg, ``(R, C)``.
        text: C, ``(T, C)``.
        values: V, what the concepts' own weights make of C, ``(D, T)``.

    Returns:
        W - W_0, ``(D, C)``.
    """
    weight, regular, text, values = (part.double() for part in (weight, regular, text, values))
    scale = regular.square().mean()
    d = text @ torch.linalg.pinv(regular.T @ regular / scale, rtol=1e-6, hermitian=True)  # (T, C)
    v = (values - weight @ text.T) @ torch.linalg.pinv(d @ text.T, rtol=1e-6)  # (D, T)
    return (v @ d).float()


class CustomDiffusionGenerator(RivalGenerator):
    """Draws with one concept's weights, or with those that were merged for several.

    Args:
        backbone: The stock model.
        banks: As of ``RivalGenerator``.
        sampling: As there.
        merge: One of ``MERGES``.
        batch_size: As there.
        device: As there.

    Raises:
        ValueError: As there, or if there is no such merge.
    """

    method = "custom_diffusion"

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        merge: str = "constrained",
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        if merge not in MERGES:
            raise ValueError(f"method.merge is {merge!r}; choose one of {', '.join(MERGES)}")
        self.merge = merge
        super().__init__(backbone, banks, sampling, batch_size, device)

    def options(self) -> dict[str, Any]:
        """Return the merge."""
        return {"merge": self.merge}

    @torch.no_grad()
    def combined(self, names: Names) -> Changes:
        """Return the changes of one concept; of several, those of the merge."""
        if len(names) == 1 or self.merge == "sum":
            return super().combined(names)
        texts = {name: self.phrase_states(name) for name in names}  # (T_i, C)
        nouns = [self.concepts[name].class_noun for name in names]
        plain = ["", *(template.replace("{}", f"a {noun}") for noun in nouns for template in TEMPLATES)]
        regular = self.backbone.read_text(self.backbone.encode_text(plain).prompt_embeds).flatten(0, 1)
        own = {name: self.concepts[name].changes for name in names}
        merged = {}
        for layer in own[names[0]]:
            weight = layer_named(self.backbone, layer).weight.float()
            values = [(weight + own[name][layer].to(weight.device)) @ texts[name].float().T for name in names]
            merged[layer] = constrained_merge(
                weight, regular.float(), torch.cat(list(texts.values())).float(), torch.cat(values, dim=1)
            )
        return merged


class CustomDiffusion(RivalLearner):
    """Learns V* and full changes of every cross-attention key and value projection, with prior images."""

    method = "custom_diffusion"
    draws: ClassVar[type[RivalGenerator]] = CustomDiffusionGenerator

    def add_weights(self) -> None:
        """Make a change for every projection."""
        self.delta = ConceptDelta(text_projections(self.backbone.denoiser), [])

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Let the changes act."""

        def transform(name: str, hidden: Tensor, projected: Tensor) -> Tensor:
            return projected + self.delta(name, hidden).to(projected)

        with transformed_projections(self.backbone.denoiser, transform):
            yield

    def learnt(self) -> dict[str, Tensor]:
        """Return V* and the changes."""
        changes = {key.replace("/", "."): change for key, change in self.delta.changes.named_parameters()}
        named = {name.removesuffix(".weight"): change for name, change in changes.items()}
        return self.learnt_tokens() | {f"full.{layer_of(name)}": change for name, change in named.items()}


class JointCustomDiffusionGenerator(JointGenerator):
    """Draws with the weights that several subjects share."""

    method = "custom_diffusion_joint"


class JointCustomDiffusion(JointLearner, CustomDiffusion):
    """Learns a V* for each of several subjects, and full changes of all keys and values for all of them together.

    Args:
        backbone: As of ``RivalLearner``.
        subject: The first subject.
        cache_dir: As there.
        export_path: As there.
        others: The further subjects, as of ``CombinationData``.
        prior_loss_weight: As there.
        initializer: As there, of the first subject.
        sampling: As there.
        seed: As there.
    """

    method = "custom_diffusion_joint"
    draws: ClassVar[type[RivalGenerator]] = JointCustomDiffusionGenerator

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        others: Others | None = None,
        prior_loss_weight: Weight = 1.0,
        initializer: str = "ktn",
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        self.subjects = together(subject, others)
        super().__init__(backbone, subject, cache_dir, export_path, prior_loss_weight, initializer, sampling, seed)
