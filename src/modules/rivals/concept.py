"""What a rival of LaTexBlend keeps of a subject, and how it acts on a stock model: words, text states, weights.

Shapes: B prompts, L tokens, D width of embeddings, T tokens that a concept replaces, r rank of a change.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from src.data.banks import LEARNT_CONCEPT, subjects_of
from src.data.schema import RefusedFileError
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.memory import refuse_rounded
from src.modules.latexblend.token_tables import looked_up, token_tables

Changes = Mapping[str, Tensor]
"""Name of a layer, such as ``denoiser.mid_block...to_k``, to what is added to its weight, ``(out, in)``."""


@dataclass(frozen=True)
class RivalConcept:
    """What a rival method learnt of one subject.

    Attributes:
        tensors: ``token.<i>``, embeddings of the phrase's first T tokens in text encoder i, ``(T, D)``;
            ``residual.<i>``, what is added to the states of the noun's last token, ``(1, D)``; and changes of layers,
            ``full.<layer>`` ``(out, in)``, or ``down.<layer>`` ``(r, in)`` with ``up.<layer>`` ``(out, r)``. Where
            several subjects were learnt together, ``token.<name>.<i>`` belongs to one, and the rest to all.
        metadata: ``method``, ``class_noun``, ``backbone_hash`` and how it was trained.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_noun(self) -> str:
        """The word that stands for the subject in plain prompts."""
        return self.metadata["class_noun"]

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects that were learnt together; none of one that was learnt alone."""
        return list(subjects_of(self.metadata))

    def of(self, name: str) -> "RivalConcept":
        """Return one subject of a combination, with what all share; what was learnt alone stays as it is.

        Raises:
            RefusedFileError: If the combination does not hold the subject.
        """
        told = subjects_of(self.metadata)
        if not told:
            return self
        if name not in told:
            held = " and ".join(told)
            raise RefusedFileError(
                f"bank.{name} is a file of {held}, not of {name}; call each subject as it was learnt"
            )
        own = {
            f"token.{key.rpartition('.')[2]}" if key.startswith("token.") else key: tensor
            for key, tensor in self.tensors.items()
            if not key.startswith("token.") or key.startswith(f"token.{name}.")
        }
        return RivalConcept(own, {**self.metadata, **told[name]})

    @classmethod
    def load(cls, path: str) -> "RivalConcept":
        """Read and verify a file.

        Raises:
            RefusedFileError: If the file is missing, truncated, of another kind, or was changed.
        """
        metadata, tensors = LEARNT_CONCEPT.read(path)
        return cls(tensors, metadata)

    def save(self, path: str) -> str:
        """Write the file atomically, in float16.

        Raises:
            RefusedFileError: If a tensor is not finite in this precision, or the metadata is not that of a concept.
        """
        rounded = {name: tensor.half() for name, tensor in self.tensors.items()}
        return str(LEARNT_CONCEPT.write(path, rounded, self.metadata))

    def check(self, backbone: Backbone, method: str) -> None:
        """Make sure that this method learnt the concept with this backbone.

        Raises:
            RefusedFileError: If not.
        """
        learnt_by = self.metadata["method"]
        if learnt_by != method:
            raise RefusedFileError(f"this concept was learnt by {learnt_by}, not by {method}; add method={learnt_by}")
        if self.metadata["backbone_hash"] != backbone.fingerprint:
            made_for = f"{self.metadata.get('backbone')} ({self.metadata['backbone_hash']})"
            raise RefusedFileError(
                f"this concept was learnt with the backbone {made_for}, but {backbone.name} is {backbone.fingerprint}"
            )

    def part(self, kind: str) -> dict[str, Tensor]:
        """The tensors of one kind, such as ``token``, in float32, by the rest of their names."""
        return {
            name.partition(".")[2]: tensor.float()
            for name, tensor in sorted(self.tensors.items())
            if name.partition(".")[0] == kind
        }

    @property
    def changes(self) -> dict[str, Tensor]:
        """What is added to the weights of layers, ``(out, in)`` each, float32."""
        up = self.part("up")
        return {**self.part("full"), **{layer: up[layer] @ down for layer, down in self.part("down").items()}}


def layer_named(backbone: Backbone, name: str) -> nn.Linear:
    """Find a layer of the denoiser (``denoiser.PATH``) or of a text encoder (``text_encoder.INDEX.PATH``).

    A layer that peft has wrapped is found by its own name, and is the layer inside.
    """
    part, _, path = name.partition(".")
    if part == "text_encoder":
        index, _, path = path.partition(".")
        module = backbone.text_encoders[int(index)].get_submodule(path)
    else:
        module = backbone.denoiser.get_submodule(path)
    return getattr(module, "base_layer", module)


def changed_weights(backbone: Backbone, changes: Changes) -> dict[str, Tensor]:
    """Add changes to the weights of their layers: name of a layer to a new weight, ``(out, in)``.

    Raises:
        RefusedFileError: If a change is of another shape than the weight of its layer.
        ValueError: If the weights are kept in fewer bits.
    """
    layers = {name: layer_named(backbone, name) for name in changes}
    refuse_rounded(layers)
    weights = {name: layer.weight.data for name, layer in layers.items()}
    for name, weight in weights.items():
        if weight.shape != changes[name].shape:
            raise RefusedFileError(
                f"the change of {name} is {tuple(changes[name].shape)}, but the layer is {tuple(weight.shape)}"
            )
    return {name: (own.float() + changes[name].to(own.device)).to(own.dtype) for name, own in weights.items()}


@contextlib.contextmanager
def weighted(backbone: Backbone, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While active, layers have these weights; afterwards they have the very same tensors as before."""
    layers = {name: layer_named(backbone, name) for name in weights}
    own = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight.data = weights[name]
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = own[name]


@contextlib.contextmanager
def embedded(text_encoders: Sequence[nn.Module], tokens: Sequence[Tensor], positions: Tensor) -> Iterator[None]:
    """While active, some tokens of every prompt have other embeddings.

    Args:
        text_encoders: Text encoders of transformers.
        tokens: Embeddings in each text encoder, ``(T, D)``; gradients flow into them.
        positions: Where they stand in each prompt, ``(B, T)``, negative, from the end of the padded prompts: what a
            backbone puts before them does not move them.
    """

    def embed(vectors: Tensor):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            at = positions.to(output.device)
            rows = torch.arange(len(at), device=output.device)[:, None].expand_as(at)
            return output.index_put((rows, at), looked_up(module, vectors.to(output)).expand(len(at), -1, -1))

        return hook

    handles = [
        table.register_forward_hook(embed(vectors))
        for encoder, vectors in zip(text_encoders, tokens, strict=True)
        for table in token_tables(encoder)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read(
    backbone: Backbone, ids: Sequence[Tensor], concepts: Sequence[RivalConcept], positions: Sequence[Tensor]
) -> Text:
    """Encode prompts in which concepts stand.

    Args:
        backbone: The model, whose layers have been changed already.
        ids: Token ids for each text encoder, ``(B, L)``.
        concepts: What each mention of every prompt is, in order: all B prompts mention the same.
        positions: Positions of each mention's phrase in every prompt, ``(B, S)``.
    """
    with contextlib.ExitStack() as stack:
        for concept, at in zip(concepts, positions, strict=True):
            tokens = list(concept.part("token").values())
            if tokens:
                stack.enter_context(embedded(backbone.text_encoders, tokens, at[:, : len(tokens[0])] - ids[0].shape[1]))
        text = backbone.encode_ids(ids)
    for concept, at in zip(concepts, positions, strict=True):
        residuals = list(concept.part("residual").values())
        if residuals:
            # The states of several text encoders stand side by side.
            added = torch.cat([one[0] for one in residuals]).to(text.prompt_embeds)
            rows = torch.arange(len(at), device=added.device)
            last = at[:, -1].to(added.device)
            text.prompt_embeds = text.prompt_embeds.index_put((rows, last), added, accumulate=True)
    return text
