"""Mix-of-Show (Gu et al., NeurIPS 2023, arXiv 2305.18292): ED-LoRA for one concept, gradient fusion for several.

Ours: one embedding of V_rand and V_class for all layers, where the paper has one for each; fusion in closed form, where
the paper runs some iterations of L-BFGS from the stock weights on the same loss; no regionally controllable sampling.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from src.data.banks import ConceptFile
from src.data.prompts import TEMPLATES
from src.data.ranges import BatchSize, Rank, Sampling, Seed, Weight
from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import Changes, RivalConcept, changed_weights, layer_named, weighted
from src.modules.rivals.dreambooth_lora import (
    ATTENTION,
    TEXT_ATTENTION,
    add_lora,
    lora_parameters,
    lora_tensors,
    without_lora,
)
from src.modules.rivals.generator import Names, RivalGenerator
from src.modules.rivals.learner import RivalLearner


def fused(changes: list[Tensor], grams: list[Tensor], ridge: float) -> Tensor:
    """Fuse one layer: ``min sum_i ||(W_0 + dW_i) X_i - W X_i||^2 + r ||W - W_0||^2`` (the paper's Eq. 5, and a ridge).

    What no input spans acts as in the stock model. Without the ridge, what inputs hardly span would be free, too: there
    the solution is many times larger than any dW_i, and the prompt is lost.

    Args:
        changes: dW_i of each concept, ``(out, in)``.
        grams: ``X_i X_i^T`` of its inputs while that concept is drawn, ``(in, in)``, in float64.
        ridge: r as a share of the mean of the diagonal.

    Returns:
        W - W_0, ``(out, in)``.
    """
    total = torch.stack(grams).sum(0)
    total = total + ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=total.device)
    aimed = sum(change.to(gram) @ gram for change, gram in zip(changes, grams, strict=True))
    return torch.linalg.solve(total, aimed.T).T.float()  # type: ignore[union-attr]


def reads_text(layer: str) -> bool:
    """Whether a layer projects text to keys or values of cross-attention."""
    return layer.endswith(("attn2.to_k", "attn2.to_v"))


class MixOfShowGenerator(RivalGenerator):
    """Draws with one ED-LoRA, or with the fusion of several.

    Args:
        backbone: The stock model.
        banks: As of ``RivalGenerator``.
        sampling: As there.
        ridge: Ridge of the fusion, see ``fused``.
        batch_size: As there.
        device: As there.
    """

    method = "mix_of_show"

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        ridge: Weight = 1e-2,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        self.ridge = ridge
        self._seen: dict[str, dict[str, Tensor]] = {}
        super().__init__(backbone, banks, sampling, batch_size, device)

    def options(self) -> dict[str, Any]:
        """Return the ridge."""
        return {"ridge": float(self.ridge)}

    @torch.no_grad()
    def combined(self, names: Names) -> Changes:
        """Return the changes of one concept; of several, those of the fusion: text encoders first, as in the paper."""
        if len(names) == 1:
            return super().combined(names)
        changes = {name: self.concepts[name].changes for name in names}
        grams = [self._grams(name) for name in names]
        found = {
            layer: self._fused([changes[name][layer] for name in names], [one[layer] for one in grams])
            for layer in grams[0]
        }
        text = {layer: change for layer, change in found.items() if layer.startswith("text_encoder.")}
        with weighted(self.backbone, changed_weights(self.backbone, text)):
            states = [self.phrase_states(name).double() for name in names]  # (T, C) each
        for layer in filter(reads_text, changes[names[0]]):
            found[layer] = self._fused([changes[name][layer] for name in names], [one.T @ one for one in states])
        return found

    def _fused(self, changes: list[Tensor], grams: list[Tensor]) -> Tensor:
        return fused(changes, grams, self.ridge)

    def _grams(self, name: str) -> dict[str, Tensor]:
        """``X X^T`` of the layers that do not read text, while templates with this concept are drawn; once for all.

        Inputs of text encoders are the tokens of a prompt without padding; of the denoiser, those of unguided drawing.
        """
        if name in self._seen:
            return self._seen[name]
        found = self._seen[name] = {}
        batch = [self.prepare(Request(one.replace("{}", f"a <{name}>"), seed)) for seed, one in enumerate(TEMPLATES)]
        lengths = [len(self.backbone.tokenizers[0](self.backbone.as_read(one.plain)).input_ids) for one in batch]

        def keep(layer: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0]
            if layer.startswith("text_encoder."):
                rows = torch.cat([prompt[:length] for prompt, length in zip(rows, lengths, strict=True)])
            rows = rows.flatten(0, -2).double()
            found[layer] = found.get(layer, torch.zeros(())).to(rows) + rows.T @ rows

        with contextlib.ExitStack() as stack, self.acting((name,)):
            for layer in self.concepts[name].changes:
                if not reads_text(layer):
                    hook = layer_named(self.backbone, layer).register_forward_pre_hook(partial(keep, layer))
                    stack.callback(hook.remove)
            text = self.read(batch)
            sampling = {**self.sampling, "guidance_scale": 1.0}
            self.backbone.draw([one.plain for one in batch], [one.seed for one in batch], sampling, text)
        return found


class MixOfShow(RivalLearner):
    """Learns an ED-LoRA: V_rand in the place of "a", V_class in that of the noun, changes of denoiser and text encoder.

    Args:
        backbone: As of ``RivalLearner``; peft wraps its denoiser and its text encoders.
        subject: As there.
        cache_dir: As there.
        export_path: As there.
        rank: Rank of the changes.
        prior_loss_weight: As there; the paper has no class images.
        initializer: Word whose embedding V_rand starts from.
        sampling: As there.
        seed: As there.
    """

    method = "mix_of_show"
    draws: ClassVar = MixOfShowGenerator

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        rank: Rank = 4,
        prior_loss_weight: Weight = 0.0,
        initializer: str = "ktn",
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        self.rank = rank
        super().__init__(
            backbone, subject, cache_dir, export_path, prior_loss_weight, initializer, sampling=sampling, seed=seed
        )

    def first_tokens(self) -> list[nn.Parameter]:
        """Return V_rand and V_class, ``(S, D)``: a rare word and the noun's own tokens."""
        tables = [encoder.get_input_embeddings().weight for encoder in self.backbone.text_encoders]
        nouns = [ids[0, self.spans[0]][1:] for ids in self.backbone.token_ids(self.prompts[:1])]
        rare = self.words(self.initializer)
        return [
            nn.Parameter(torch.cat([word[None], table[noun.to(table.device)].detach().float()]))
            for word, table, noun in zip(rare, tables, nouns, strict=True)
        ]

    def add_weights(self) -> None:
        """Wrap denoiser and text encoders; a checkpoint holds the changes alone."""
        add_lora(self.backbone.denoiser, ATTENTION, self.rank)
        for encoder in self.backbone.text_encoders:
            add_lora(encoder, TEXT_ATTENTION, self.rank)
        self.lora = nn.ParameterList(weight for module in self._wrapped for weight in lora_parameters(module))

    @property
    def _wrapped(self) -> list[Any]:
        return [self.backbone.denoiser, *self.backbone.text_encoders]

    @contextlib.contextmanager
    def stock(self) -> Iterator[None]:
        """Switch the changes off."""
        with without_lora(self._wrapped):
            yield

    def learnt(self) -> dict[str, Tensor]:
        """Return V_rand, V_class and the changes."""
        found = self.learnt_tokens() | lora_tensors(self.backbone.denoiser, "denoiser")
        for index, encoder in enumerate(self.backbone.text_encoders):
            found |= lora_tensors(encoder, f"text_encoder.{index}")
        return found
