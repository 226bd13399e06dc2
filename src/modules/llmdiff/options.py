"""The choices that the paper leaves open, each as a field with a recommended default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from src.data.ranges import Count, Number, Weight

FEATURES = ("llmdiff", "last", "penultimate", "embed", "ln_mean", "sum")


@dataclass(frozen=True)
class EncodingOptions:
    """Which states of the language model are used: all that a cached encoding depends on beside model and text.

    Attributes:
        features: ``llmdiff`` is the paper's block-wise score. The others are baselines for the same adapter: ``last``
            (state after the final norm), ``penultimate``, ``embed`` (no block), ``ln_mean`` (mean of the
            layer-normalised outputs of all blocks), ``sum`` (outputs of all blocks, nothing subtracted).
        stream: Input of a block's context-free term: ``local`` is the block's ordinary input, ``global`` a second
            stream in which no block ever saw the context.
        state: What the score compares: a block's ``output``, the ``update`` that it adds to its input (the same under
            ``local``, since the input cancels), or the output of its ``attention`` (cheap, an approximation).
        context: What the context-free term sees: the token (``self``) or also the first token (``self+first``).
        blocks: Indices of the blocks that are used, 0 is the one after the embedding; None for all.
        append_eos: Whether every prompt ends with the end-of-text token, a position that sees the whole prompt.
        bos: ``always`` puts a first token before every prompt, ``default`` leaves that to the tokenizer.
        max_length: Most tokens of a prompt; None for the model's context. A longer prompt is an error, never cut.

    Raises:
        ValueError: If a field has a value that it cannot have.
    """

    features: str = "llmdiff"
    stream: str = "local"
    state: str = "output"
    context: str = "self"
    blocks: Sequence[Number] | None = None
    append_eos: bool = True
    bos: str = "always"
    max_length: Count | None = None

    def __post_init__(self) -> None:
        """Check the fields, and sort ``blocks`` into a tuple, so that equal choices compare as equal."""
        choose("encoding.features", self.features, FEATURES)
        choose("encoding.stream", self.stream, ("local", "global"))
        choose("encoding.state", self.state, ("output", "update", "attention"))
        choose("encoding.context", self.context, ("self", "self+first"))
        choose("encoding.bos", self.bos, ("always", "default"))
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"encoding.max_length is {self.max_length}; give at least 2 tokens, or null")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(sorted(set(self.blocks))))
            if not self.blocks or min(self.blocks) < 0:
                raise ValueError("encoding.blocks names no block; give a list such as [0,1,2], or null for all")


@dataclass(frozen=True)
class AdapterOptions:
    """How the adapter joins the blocks' states to one text c, and how a UNet takes c.

    Attributes:
        initial: The c_init: ``embed`` (the token's embedding), ``zero``, ``learned``, or ``noise``.
        score: One ``delta`` per block, or the ``difference`` of adjacent blocks' deltas, the paper's second
            approximation. Learnt gains reach the same sums with either.
        gain: The g_i: one learnt ``scalar`` per block, one per ``channel``, or ``fixed``.
        gain_init: Initial value of g_i; None for 1 / sqrt(blocks) with a normalisation, 1 without.
        noise: When sqrt(2 sum h) eps is added: in ``train`` mode, ``always``, or ``off`` (then h does not exist).
        normalisation: The N of each token and block: ``rms``, ``layer_norm`` or ``none``.
        final_norm: Norm of c: ``layer_norm`` (learnt) or ``none``.
        phi_std: Standard deviation of phi's initial weight; 0 makes the start independent of the prompt.
        phi_bias: Initial bias of phi: ``rows`` is the base model's empty prompt position by position, which starts at
            the pretrained model; ``mean`` is one vector, the mean of these rows. Rows also tell the original attention
            the position of each token, so knowledge of word order may come from them, not from the features.
        key_value: What the new keys and values are projected from: ``c``, or ``phi`` of c (fewer parameters).
        bottleneck: Width of a shared projection of c before the new keys and values; None for no projection.
        branch_init: What starts the new branch at nothing: ``zero_output`` projection, or ``zero_weight`` a2.
        pooling: What SDXL's pooled text is projected from: the ``last`` token, or the ``mean`` of all.

    Raises:
        ValueError: If a field has a value that it cannot have.
    """

    initial: str = "embed"
    score: str = "delta"
    gain: str = "scalar"
    gain_init: float | None = None
    noise: str = "train"
    normalisation: str = "rms"
    final_norm: str = "layer_norm"
    phi_std: Weight = 0.0
    phi_bias: str = "rows"
    key_value: str = "c"
    bottleneck: Count | None = None
    branch_init: str = "zero_output"
    pooling: str = "last"

    def __post_init__(self) -> None:
        """Check the fields."""
        choose("adapter.initial", self.initial, ("embed", "zero", "learned", "noise"))
        choose("adapter.score", self.score, ("delta", "difference"))
        choose("adapter.gain", self.gain, ("scalar", "channel", "fixed"))
        choose("adapter.noise", self.noise, ("train", "always", "off"))
        choose("adapter.normalisation", self.normalisation, ("rms", "layer_norm", "none"))
        choose("adapter.final_norm", self.final_norm, ("layer_norm", "none"))
        choose("adapter.phi_bias", self.phi_bias, ("rows", "mean"))
        choose("adapter.key_value", self.key_value, ("c", "phi"))
        choose("adapter.branch_init", self.branch_init, ("zero_output", "zero_weight"))
        choose("adapter.pooling", self.pooling, ("last", "mean"))
        if not 0 <= self.phi_std < math.inf or not math.isfinite(self.gain_init or 0):
            raise ValueError(
                f"adapter.phi_std is {self.phi_std} and adapter.gain_init {self.gain_init}; give a standard deviation "
                "of at least 0, and a finite gain or null"
            )
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"adapter.bottleneck is {self.bottleneck}; give a width, or null for none")
        if self.bottleneck is not None and self.key_value == "phi":
            raise ValueError("adapter.bottleneck narrows c, but adapter.key_value=phi does not use it; set one of them")


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Make sure that ``value`` is one of ``choices``.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
