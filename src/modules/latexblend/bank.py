"""One concept: rows of cross-attention keys and values, kept in a file and put into a stock model by hooks.

Shapes: B prompts, L tokens, C text width, D width of one layer's keys, S rows of one concept.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.data.banks import CONCEPT_BANK
from src.data.prompts import FIXED_TEMPLATE, TEMPLATES
from src.data.schema import RefusedFileError
from src.modules.backbones.base import Backbone
from src.modules.backbones.projections import text_projections


@dataclass(frozen=True)
class ConceptBank:
    """What LaTexBlend keeps of a subject, the paper's ``h_c``.

    Attributes:
        rows: ``k.<layer>`` and ``v.<layer>`` to ``(S, D)``; row 0 belongs to V*, the others to the noun's tokens.
        metadata: ``class_noun``, ``modifier_token``, ``backbone``, ``backbone_hash``, ``templates`` and how it was
            trained.
    """

    rows: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_noun(self) -> str:
        """The word that stands for the subject in plain prompts."""
        return self.metadata["class_noun"]

    @property
    def num_tokens(self) -> int:
        """Number of rows S in each layer: one for V*, one for each token of the noun."""
        return next(iter(self.rows.values())).shape[0]

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write the file atomically; all layers' ``(S, D)`` rows and a header.

        Raises:
            RefusedFileError: If a row is not finite in this precision, or the metadata is not that of a bank.
        """
        rows = {name: row.to(dtype) for name, row in self.rows.items()}
        return CONCEPT_BANK.write(path, rows, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> "ConceptBank":
        """Read and verify a bank.

        Raises:
            RefusedFileError: If the file is missing, truncated, no bank, or its content does not match its hash.
        """
        metadata, rows = CONCEPT_BANK.read(path)
        return (JointBank if metadata.get("attention") == "joint" else ConceptBank)(rows, metadata)

    def check(self, backbone_hash: str, widths: Mapping[str, int], name: str) -> None:
        """Make sure that the bank was made for a backbone.

        Args:
            backbone_hash: Fingerprint of the backbone's cross-attention projections.
            widths: Name of a projection to its output width D.
            name: Name of the backbone, for messages.

        Raises:
            RefusedFileError: If it was made for another backbone.
        """
        self._check_backbone(backbone_hash, name)
        expected = {layer: (self.num_tokens, width) for layer, width in widths.items()}
        actual = {layer: tuple(row.shape) for layer, row in self.rows.items()}
        if expected != actual:
            wrong = sorted(
                layer for layer in expected.keys() | actual.keys() if expected.get(layer) != actual.get(layer)
            )
            raise RefusedFileError(
                f"bank and backbone differ in {len(wrong)} layers, first {wrong[0]}: "
                f"bank {actual.get(wrong[0])}, backbone {expected.get(wrong[0])}"
            )

    def _check_backbone(self, backbone_hash: str, name: str) -> None:
        if self.metadata.get("backbone_hash") != backbone_hash:
            made_for = f"{self.metadata.get('backbone')} ({self.metadata.get('backbone_hash')})"
            raise RefusedFileError(f"this bank was made for the backbone {made_for}, but {name} is {backbone_hash}")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ConceptBank":
        """Move the rows to a device and a precision."""
        return replace(self, rows={name: row.to(device, dtype) for name, row in self.rows.items()})


@dataclass(frozen=True)
class JointBank(ConceptBank):
    """A concept for joint attention, where text has no keys of its own that stay the same (``joint.py``).

    Attributes:
        rows: ``text``, offsets of the concept's S rows where text enters, ``(S, C)``; and for each ``k.<layer>`` and
            ``v.<layer>`` the factors of a change that acts on these rows, ``down.<name>`` ``(r, C_l)`` and
            ``up.<name>`` ``(D, r)``, or rows that are added to theirs, ``add.<name>`` ``(S, D)``.
        metadata: As of ``ConceptBank``, and ``reading``.
    """

    @property
    def num_tokens(self) -> int:
        """Number of rows S of the concept in a prompt."""
        return self.rows["text"].shape[0]

    def check(self, backbone_hash: str, widths: Mapping[str, int], name: str) -> None:
        """Make sure that the bank was made for a backbone, as ``ConceptBank.check`` does."""
        self._check_backbone(backbone_hash, name)
        ends = {"up": 0, "add": 1}  # The axis of each part that is as wide as the layer.
        for key, tensor in self.rows.items():
            part, _, layer = key.partition(".")
            if part in ends and tensor.shape[ends[part]] != widths.get(layer):
                raise RefusedFileError(
                    f"{key} of the bank has shape {tuple(tensor.shape)}, which no layer of {name} has"
                )


def phrases(backbone: Backbone, class_noun: str, templates: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Fill templates with "a noun", and find the rows of this phrase in the text of each prompt.

    Raises:
        ValueError: If the noun has no tokens of its own.
    """
    name = "subject"
    placed = [backbone.place(each.replace("{}", f"a <{name}>"), {name: class_noun}) for each in templates]
    return [marked.plain for marked, _ in placed], [positions for _, ((_, positions),) in placed]


@torch.no_grad()
def concept_offsets(backbone: Backbone, bank: ConceptBank) -> ConceptBank:
    """Subtract from a bank's rows those of "a noun" in the same templates: the change that makes a noun the concept.

    A bank's rows also carry the context that they were extracted from: a phrase alone, at the start, in a photo.
    Offsets are added to a prompt's own rows, which so keep their own context.
    """
    one = [bank.metadata.get("extraction_template", FIXED_TEMPLATE)]
    templates = TEMPLATES if bank.metadata.get("bank_templates") == "all" else one
    prompts, positions = phrases(backbone, bank.class_noun, templates)
    text = backbone.read_text(backbone.encode_text(prompts).prompt_embeds)
    generic = torch.stack([text[row, at] for row, at in enumerate(positions)]).mean(0)  # (S, C)
    projections = backbone.text_layers()
    rows = {name: row - projections[name](generic).to(row) for name, row in bank.rows.items()}
    return ConceptBank(rows, bank.metadata)


Rows = Mapping[str, Tensor]
"""Keys and values of one concept: ``k.<layer>`` and ``v.<layer>`` to ``(S, D)``."""
Forward = Callable[[Tensor], Tensor]
"""Projects ``(B, L, C)`` to ``(B, L, D)``."""
Transform = Callable[[str, Tensor, Tensor], Tensor]
"""Edits one projection: ``(name, encoder_hidden_states (B, L, C), projected (B, L, D)) -> (B, L, D)``."""


def replace_rows(projected: Tensor, concept: Tensor, positions: Sequence[int]) -> Tensor:
    """Replace the token rows of one concept in a prompt's keys (or values), LaTexBlend Eq. 8.

    Args:
        projected: Keys of whole prompts ``h_b``, shape ``(..., L, D)``.
        concept: Rows from a concept bank ``h_c``, shape ``(S, D)`` or one set per prompt, ``(..., S, D)``.
        positions: Token position of each row; they need not be adjacent.

    Returns:
            ``Blend(h_b, h_c)``, a new tensor of shape ``(..., L, D)``.

    Raises:
        ValueError: If there is not one row per position.
    """
    if concept.shape[-2] != len(positions):
        raise ValueError(f"the concept has {concept.shape[-2]} rows, but its phrase takes {len(positions)} tokens")
    index = torch.tensor(list(positions), device=projected.device)
    values = concept.to(projected).expand(*projected.shape[:-2], -1, -1)  # (..., S, D)
    return projected.index_copy(projected.ndim - 2, index, values)


@contextlib.contextmanager
def transformed_projections(unet: nn.Module, transform: Transform, rows: int | None = None) -> Iterator[None]:
    """While active, pass every cross-attention key and value through ``transform``; afterwards hooks are removed.

    Args:
        unet: The denoiser.
        transform: Gets what a layer made, and returns keys or values of all prompts.
        rows: Number of prompts, the first ones, that a layer projects itself; None for all.
    """

    def hooked(name: str):
        return lambda module, inputs, output: transform(name, inputs[0], output)

    def first(module: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0][:rows], *inputs[1:])

    projections = text_projections(unet)
    handles = [linear.register_forward_hook(hooked(name)) for name, linear in projections.items()]
    if rows is not None:
        handles += [linear.register_forward_pre_hook(first) for linear in projections.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ProjectionCache:
    """Computes the keys and values of a text once, as long as the text stays the same from step to step.

    Each layer's entry remembers the tensor object that it was computed from. Another object, or the same one changed in
    place, is computed anew, so the result is always that of the layer.

    Args:
        transform: Edits each projection when it is computed; None for the plain layer.
    """

    def __init__(self, transform: Transform | None = None) -> None:
        self.transform = transform
        self._stored: dict[str, tuple[Tensor, int, Tensor]] = {}

    def __call__(self, name: str, linear: nn.Linear, hidden: Tensor, hooked: Forward | None = None) -> Tensor:
        """Project ``hidden`` ``(B, L, C)`` to ``(B, L, D)``.

        Args:
            name: ``k.<layer>`` or ``v.<layer>``.
            linear: The projection.
            hidden: Text.
            hooked: What hooks of diffusers or accelerate have put in the place of the projection's own forward. It is
                called every time, and nothing is stored: it also fetches weights for the layers that come next.
        """
        if hooked is not None:
            projected = hooked(hidden)
            return projected if self.transform is None else self.transform(name, hidden, projected)
        stored = self._stored.get(name)
        if stored is not None and stored[0] is hidden and stored[1] == hidden._version:
            return stored[2]
        projected = type(linear).forward(linear, hidden)
        if self.transform is not None:
            projected = self.transform(name, hidden, projected)
        # A tensor that was made in inference mode has no version to compare.
        if not hidden.is_inference():
            self._stored[name] = (hidden, hidden._version, projected)
        return projected


@contextlib.contextmanager
def cached_projections(unet: nn.Module, choose: Callable[[], ProjectionCache]) -> Iterator[None]:
    """While active, take cross-attention keys and values from the cache that ``choose`` returns at each call.

    Hooks that move or cast weights (``apply_group_offloading``, ``apply_layerwise_casting``, accelerate's) still act.

    Raises:
        ValueError: If another such context is still open on this UNet.
    """
    projections = text_projections(unet)
    hooked = {name: vars(linear).get("forward") for name, linear in projections.items()}
    if any(isinstance(forward, _FromCache) for forward in hooked.values()):
        raise ValueError("this UNet already has concepts installed; leave that context first")
    for name, linear in projections.items():
        linear.forward = _FromCache(name, linear, choose, hooked[name])  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for name, linear in projections.items():
            former = hooked[name]
            if former is None:
                del linear.forward
            else:
                linear.forward = former  # type: ignore[method-assign]


class _FromCache:
    """Stands in the place of one projection's forward."""

    def __init__(
        self, name: str, linear: nn.Linear, choose: Callable[[], ProjectionCache], hooked: Forward | None
    ) -> None:
        self.name, self.linear, self.choose, self.hooked = name, linear, choose, hooked

    # A compiled block stops here and goes on behind it: a cache is no graph, and another one compiles nothing anew.
    @torch.compiler.disable
    def __call__(self, hidden: Tensor, *args: Any) -> Tensor:
        return self.choose()(self.name, self.linear, hidden, self.hooked)
