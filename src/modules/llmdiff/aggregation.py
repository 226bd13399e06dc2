"""Join the states of a language model's blocks to one text c by a learnt sum.

Shapes: B prompts, T terms (one per block), L tokens, D width of the language model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.modules.llmdiff.options import AdapterOptions

Generators = Sequence[torch.Generator] | torch.Generator | None
"""One CPU generator for each prompt, one that serves them in turn, or None."""
EPSILON = 1e-8
"""Added to mean squares, so that a state with a root mean square below 1e-4, such as a first Delta, stays small."""


class Aggregation(nn.Module):
    """Computes c = c_init + sum_i g_i N(Delta_i) + sqrt(2 sum_i h_i) eps (LLMDiff, arXiv 2502.04412), then a norm.

    The sum of one Gaussian draw per block has the distribution of the one draw eps. Everything is computed in float32.

    Args:
        width: Width D of the states.
        num_terms: Number of terms T; 0 for features that are a single state.
        options: Choices that the paper leaves open.

    Raises:
        ValueError: If the text would not depend on the prompt.
    """

    def __init__(self, width: int, num_terms: int, options: AdapterOptions) -> None:
        super().__init__()
        if num_terms == 0 and options.initial != "embed":
            raise ValueError(
                f"adapter.initial is {options.initial!r}, but these features are one state, the initial one: nothing "
                "of the prompt would be left; use adapter.initial=embed"
            )
        self.options, self.num_terms = options, num_terms
        if options.initial == "learned":
            self.initial = nn.Parameter(torch.zeros(width))
        start = options.gain_init
        if start is None:
            start = 1.0 if options.normalisation == "none" else max(num_terms, 1) ** -0.5
        gain = torch.full((num_terms, width if options.gain == "channel" else 1), start)  # (T, D) or (T, 1)
        # A parameter without a gradient would stop training on several processes, so this is a buffer.
        if options.gain == "fixed" or num_terms == 0:
            self.register_buffer("gain", gain)
        else:
            self.gain = nn.Parameter(gain)
        if self._has_noise:
            self.rho = nn.Parameter(torch.full((num_terms,), -8.0))  # h_i = softplus(-8), about 3e-4
        self.final_norm = nn.LayerNorm(width) if options.final_norm == "layer_norm" else nn.Identity()

    @property
    def _has_noise(self) -> bool:
        return self.options.noise != "off" and self.num_terms > 0

    @property
    def gains(self) -> Tensor:
        """The gains g_i, ``(T,)``, averaged over channels if there is one for each; for plots."""
        return self.gain.detach().mean(-1)

    @property
    def noise_levels(self) -> Tensor:
        """The noise levels h_i, ``(T,)``; zero if noise is off; for plots."""
        return F.softplus(self.rho.detach()) if self._has_noise else self.gain.new_zeros(self.num_terms)

    @property
    def draws(self) -> bool:
        """Whether a forward pass in the present mode (training or not) needs random numbers."""
        noisy = self._has_noise and (self.training or self.options.noise == "always")
        return noisy or self.options.initial == "noise"

    def forward(self, states: Tensor, mask: Tensor, generators: Generators = None) -> Tensor:
        """Join states to c, ``(B, L, D)`` in float32, which is zero where ``mask`` is False.

        Args:
            states: States from ``LLMEncoder.encode``, ``(B, 1 + T, L, D)``.
            mask: Which tokens are real, from the same, ``(B, L)``.
            generators: One CPU generator for each prompt, so that its draw depends on nothing else; or one for all.

        Raises:
            ValueError: If the states come from another language model or other options, or a generator is missing.
        """
        if states.shape[1] != self.num_terms + 1:
            raise ValueError(
                f"the adapter joins {self.num_terms + 1} states per token, but the encoder gave {states.shape[1]}; use "
                "the encoding options that it was trained with"
            )
        if self.draws and generators is None:
            raise ValueError("this text is noisy (adapter.noise, adapter.initial); pass generators")
        with torch.autocast(states.device.type, enabled=False):
            text = self._start(states, mask, generators)
            if self.num_terms:
                terms = self._normalised(self._terms(states[:, 1:].float()))  # (B, T, L, D)
                text = text + torch.einsum("td,btld->bld", self.gain.float().expand(-1, terms.shape[-1]), terms)
            if self._has_noise and (self.training or self.options.noise == "always"):
                deviation = (2 * F.softplus(self.rho.float()).sum()).sqrt()  # sqrt(2 sum h)
                text = text + deviation * drawn_tokens(mask, text.shape[-1], generators).to(text)
            return self.final_norm(text) * mask[..., None]

    def _start(self, states: Tensor, mask: Tensor, generators: Generators) -> Tensor:
        embedding = self._normalised(states[:, 0].float())  # (B, L, D)
        if self.options.initial == "embed":
            return embedding
        if self.options.initial == "learned":
            return self.initial.float().expand_as(embedding)
        if self.options.initial == "noise":
            return drawn_tokens(mask, embedding.shape[-1], generators).to(embedding)
        return torch.zeros_like(embedding)

    def _terms(self, deltas: Tensor) -> Tensor:
        """Return Deltas ``(B, T, L, D)``, or each minus the next: Delta_t+1 - Delta_t, as the paper's t counts down."""
        if self.options.score == "delta":
            return deltas
        return deltas - F.pad(deltas[:, 1:], (0, 0, 0, 0, 0, 1))

    def _normalised(self, states: Tensor) -> Tensor:
        """Apply N to each token: in large models a few features are a hundred thousand times as large as the others."""
        if self.options.normalisation == "rms":
            return states * (states.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
        if self.options.normalisation == "layer_norm":
            return F.layer_norm(states, states.shape[-1:], eps=EPSILON)
        return states


def drawn_tokens(mask: Tensor, width: int, generators: Generators) -> Tensor:
    """Draw eps ``(B, L, D)`` on the CPU: every prompt draws for its own tokens, so padding changes nothing."""
    assert generators is not None
    lengths = mask.sum(1).tolist()
    chosen = [generators] * len(lengths) if isinstance(generators, torch.Generator) else generators
    noise = torch.zeros(*mask.shape, width)  # (B, L, D)
    for row, length, generator in zip(noise, lengths, chosen, strict=True):
        row[:length] = torch.randn(length, width, generator=generator)
    return noise
