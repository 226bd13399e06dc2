"""LLMDiff once more, in plain torch from the formulas of the paper: a block's score, the text c, and the loss.

Nothing of the method's own code is called here. What is stock stays stock: the UNet, with cross-attention that is
written out below.

Shapes: B prompts, T terms (one per block), L tokens, D width of the language model, W width of the UNet's text.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaModel


def scores(llama: LlamaModel, row: Sequence[int]) -> list[Tensor]:
    """Embedding of each token of one prompt, then Delta of each block: ``(L, D)`` each.

    ``Delta_i = Block_i(X_i) - Block_i(X_i, every token alone)``. Softmax over a single token is 1, so a token alone
    reads its own value, and the rest of the block is the same.
    """
    hidden = llama.embed_tokens(torch.tensor(row))
    found = [hidden]
    for block in llama.layers:
        normed = block.input_layernorm(hidden)
        values = block.self_attn.v_proj(normed)
        heads, groups = llama.config.num_attention_heads, llama.config.num_key_value_heads
        alone = values.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=1).flatten(1)
        ends = []
        for read in (_attended(llama, block.self_attn, normed, values), alone):
            middle = hidden + block.self_attn.o_proj(read)
            gated = block.post_attention_layernorm(middle)
            mlp = block.mlp
            ends.append(middle + mlp.down_proj(F.silu(mlp.gate_proj(gated)) * mlp.up_proj(gated)))
        found.append(ends[0] - ends[1])
        hidden = ends[0]
    return found


def _attended(llama: LlamaModel, attention: nn.Module, normed: Tensor, values: Tensor) -> Tensor:
    """Causal attention with rotary positions, ``(L, D)``."""
    config, length = llama.config, len(normed)
    width = config.hidden_size // config.num_attention_heads
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies  # (L, width / 2)
    heads = []
    for head in range(config.num_attention_heads):
        group = head // (config.num_attention_heads // config.num_key_value_heads)
        query, key = (
            _rotated(projected[:, at * width : (at + 1) * width], angles)
            for projected, at in ((attention.q_proj(normed), head), (attention.k_proj(normed), group))
        )
        visible = torch.ones(length, length).tril().bool()
        weights = (query @ key.T / width**0.5).masked_fill(~visible, -torch.inf).softmax(-1)
        heads.append(weights @ values[:, group * width : (group + 1) * width])
    return torch.cat(heads, dim=1)


def _rotated(states: Tensor, angles: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=1
    )


class Written:
    """The adapter on one stock pipeline, with its own copies of all weights.

    Args:
        pipeline: Stable Diffusion or SDXL.
        weights: Name to tensor, as the adapter's file has them.
    """

    def __init__(self, pipeline: DiffusionPipeline, weights: Mapping[str, Tensor]) -> None:
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
        self.sdxl = hasattr(pipeline, "text_encoder_2")

    def text(self, terms: Sequence[Tensor], noise: Tensor | None, difference: bool = False) -> Tensor:
        """``c = norm(N(embedding) + sum_i g_i N(Delta_i) + sqrt(2 sum_i h_i) eps)`` of one prompt, ``(L, D)``."""
        embedding, *deltas = terms
        if difference:
            deltas = [
                one - other for one, other in zip(deltas, [*deltas[1:], torch.zeros_like(embedding)], strict=True)
            ]
        joined = _rms(embedding)
        for gain, delta in zip(self.weights["aggregation.gain"], deltas, strict=True):
            joined = joined + gain * _rms(delta)
        if noise is not None:
            levels = (1 + self.weights["aggregation.rho"].exp()).log()  # h_i
            joined = joined + (2 * levels.sum()).sqrt() * noise
        centred = joined - joined.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return normed * self.weights["aggregation.final_norm.weight"] + self.weights["aggregation.final_norm.bias"]

    def predicted(self, noisy: Tensor, timesteps: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """``attn(q', k'(phi(c)), v'(phi(c))) a1 e^b1 + attn(q, k(c), v(c)) a2 e^b2`` in every layer."""
        longest = max(len(self.weights["phi_bias"]), *map(len, texts))
        contexts = torch.stack([F.pad(text, (0, 0, 0, longest - len(text))) for text in texts])  # (B, L, D)
        lengths = torch.tensor([[len(text)] for text in texts])
        real = torch.arange(longest) < lengths  # (B, L)
        seen = real | (torch.arange(longest) < len(self.weights["phi_bias"]))
        last = self.weights["phi_bias"][-1:].expand(longest - len(self.weights["phi_bias"]), -1)
        projected = contexts @ self.weights["phi.weight"].T + torch.cat([self.weights["phi_bias"], last])
        layers = {name: layer for name, layer in self.unet.named_modules() if name.endswith("attn2")}
        before = {layer: layer.processor for layer in layers.values()}
        for name, layer in layers.items():
            layer.set_processor(partial(self._both, name, contexts, real, seen))
        added = None
        if self.sdxl:
            ends = torch.stack([text[-1] for text in texts])
            side = 8.0 * noisy.shape[-1]
            added = {
                "text_embeds": ends @ self.weights["pooled.weight"].T + self.weights["pooled.bias"],
                "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(noisy)),
            }
        try:
            return self.unet(noisy, timesteps, projected, added_cond_kwargs=added).sample
        finally:
            for layer, processor in before.items():
                layer.set_processor(processor)

    def _both(
        self,
        name: str,
        contexts: Tensor,
        real: Tensor,
        seen: Tensor,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        **_: object,
    ) -> Tensor:
        own = {
            key.removeprefix(f"layers.{name.replace('.', '/')}."): tensor
            for key, tensor in self.weights.items()
            if key.startswith(f"layers.{name.replace('.', '/')}.")
        }
        original = _attention(
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
            seen,
            attn.heads,
        )
        additional = _attention(
            hidden_states @ own["to_q.weight"].T,
            contexts @ own["to_k.weight"].T,
            contexts @ own["to_v.weight"].T,
            real,
            attn.heads,
        )
        additional = additional @ own["to_out.weight"].T + own["to_out.bias"]
        return attn.to_out[0](original) * own["a1"] * own["b1"].exp() + additional * own["a2"] * own["b2"].exp()


def _rms(states: Tensor) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + 1e-8).sqrt()


def _attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, heads: int) -> Tensor:
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    logits = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~seen[:, None, None], -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
