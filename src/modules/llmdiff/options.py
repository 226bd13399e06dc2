"""Every reading of the paper that its text leaves open is a field here; the defaults are the recommended ones."""

from collections.abc import Sequence
from dataclasses import dataclass

FEATURES = ("llmdiff", "last", "penultimate", "embed", "ln_mean", "sum")


@dataclass(frozen=True)
class EncodingOptions:
    """What is read off the language model: all that a cached encoding depends on beside the model and the text.

    Attributes:
        features: ``llmdiff``, the block-wise score; or a rival that gets the same adapter: ``last`` (after the final
            norm), ``penultimate``, ``embed`` (no block), ``ln_mean`` (mean of the layer-normalised outputs of all
            blocks), ``sum`` (outputs where the score has contextual minus context-free outputs).
        stream: What enters the context-free term of a block: ``local``, the contextual stream's own input, or
            ``global``, a stream in which no block ever saw the context.
        state: Whose output the score compares: of the block (``output``), what the block adds (``update``; the same
            number under ``local``, as the identity cancels), or of its ``attention`` alone (cheap, an approximation).
        context: What the context-free term sees: the token (``self``) or the token and the first one (``self+first``).
        blocks: Which blocks, 0 is the one after the embedding; None for all.
        append_eos: End every prompt with the end-of-text token, one position that covers the whole prompt.
        bos: ``always`` start with one first token, or do as the tokenizer does (``default``).
        max_length: Most tokens of a prompt; None for the model's context. A longer prompt is an error, never cut.

    Raises:
        ValueError: If a field has a value that it cannot have.
    """

    features: str = "llmdiff"
    stream: str = "local"
    state: str = "output"
    context: str = "self"
    blocks: Sequence[int] | None = None
    append_eos: bool = True
    bos: str = "always"
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Check; a list of blocks becomes a sorted tuple, so that equal options are equal."""
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
    """How the adapter joins the blocks' states to one text, and how a UNet takes that text.

    Attributes:
        initial: c_init: ``embed`` (of the embedding), ``zero``, ``learned``, or ``noise``.
        score: One ``delta`` per block, or the ``difference`` of adjacent blocks' deltas (the paper's second
            approximation; the same family as long as the gains are learnt).
        gain: g_i: one learnt ``scalar`` per block, one per ``channel``, or ``fixed``.
        gain_init: Where g_i starts; None for 1 / sqrt(blocks) with a normalisation, 1 without.
        noise: When sqrt(2 sum h) eps is added: in ``train`` mode, ``always``, or ``off`` (then h does not exist).
        normalisation: N, per token and block: ``rms``, ``layer_norm`` or ``none``.
        final_norm: Of c: ``layer_norm`` (learnt) or ``none``.
        phi_std: Of phi's initial weight; 0 makes the start independent of the prompt.
        phi_bias: phi's initial bias: ``rows``, the base model's empty prompt position by position, so that the start
            is the pretrained model, or its ``mean``, one vector. Rows also tell the original attention the position of
            each token, so that word order is no longer the features' merit alone.
        key_value: What the additional keys and values are projected from: ``c``, or ``phi`` of c (fewer parameters).
        bottleneck: Width of one shared projection of c before them; None for none.
        branch_init: ``zero_output`` projection, or a ``zero_weight`` a2.
        pooling: The position that SDXL's pooled text is projected from: the ``last`` one, or the ``mean`` of all.

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
    phi_std: float = 0.0
    phi_bias: str = "rows"
    key_value: str = "c"
    bottleneck: int | None = None
    branch_init: str = "zero_output"
    pooling: str = "last"

    def __post_init__(self) -> None:
        """Check."""
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
