"""Blocks and draws of both models against their published formulas, written out in plain torch."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, normalize, silu

from src.modules.next_scale.cache import MaskedAttention
from src.modules.next_scale.infinity.sampling import InfinityDraw
from src.modules.next_scale.infinity.transformer import positions, rotary_frequencies
from src.modules.next_scale.loop import Condition, Streams
from src.modules.next_scale.switti.autoencoder import phi_index
from src.modules.next_scale.switti.sampling import SwittiDraw, SwittiSampling
from tests.modules.next_scale import tiny_infinity, tiny_switti

ROWS, LENGTH, WIDTH, HEADS, WORDS = 2, 5, 32, 2, 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_heads(states: Tensor) -> Tensor:
    return states.view(*states.shape[:2], HEADS, -1).transpose(1, 2)


def turned(states: Tensor, angles: Tensor) -> Tensor:
    """Pairs of channels as complex numbers, each times ``e^(i angle)``."""
    pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def attended(queries: Tensor, keys: Tensor, values: Tensor, scale: float, seen: Tensor | None = None) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) * scale
    scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


def norm(states: Tensor) -> Tensor:
    return layer_norm(states, states.shape[-1:], eps=1e-6)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


ANGLES = 3 * normal(LENGTH, WIDTH // HEADS // 2, seed=5)
EVERYTHING = MaskedAttention(torch.ones(LENGTH, LENGTH, dtype=torch.bool))
PADDED = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]


def test_a_block_of_infinity_is_its_formula() -> None:
    block = tiny_infinity.tiny_transformer().blocks[0]
    hidden, ada = normal(ROWS, LENGTH, WIDTH, seed=1), normal(ROWS, 6, WIDTH, seed=2)
    text = normal(ROWS, WORDS, WIDTH, seed=3)
    keys, values = block.cross_attention.keys_and_values(text)
    condition = Condition(ada=ada, keys=keys, values=values, mask=PADDED)
    ours = block(0, hidden, condition, (ANGLES.cos(), ANGLES.sin()), EVERYTHING, Streams())

    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = (row[:, None] for row in ada.unbind(1))
    own, cross = block.self_attention, block.cross_attention
    given = norm(hidden) * (1 + scale_1) + shift_1
    to_q, to_k = own.to_qk.weight.chunk(2)
    queries = normalize(in_heads(given @ to_q.T + own.q_bias), dim=-1) * own.log_temperature.exp()
    heads = turned(queries, ANGLES), turned(normalize(in_heads(given @ to_k.T), dim=-1), ANGLES)
    hidden = hidden + gate_1 * own.proj(attended(*heads, in_heads(own.to_v(given)), 1.0))
    query = in_heads(cross.to_q(block.cross_norm(hidden)))
    of_text = in_heads(text @ cross.to_k.weight.T), in_heads(cross.to_v(text))
    hidden = hidden + cross.proj(attended(query, *of_text, query.shape[-1] ** -0.5, PADDED))
    inner = block.fc1(norm(hidden) * (1 + scale_2) + shift_2)
    close(ours, hidden + gate_2 * block.fc2(gelu(inner, approximate="tanh")))


def test_a_temperature_of_infinitys_attention_is_at_most_a_hundred() -> None:
    own = tiny_infinity.tiny_transformer().blocks[0].self_attention
    hidden, rotation = normal(ROWS, LENGTH, WIDTH, seed=1), (ANGLES.cos(), ANGLES.sin())
    found = []
    for temperature in (100.0, 1000.0):
        own.log_temperature.fill_(math.log(temperature))
        found.append(own(0, hidden, rotation, EVERYTHING, Streams()))
    close(*found)


def test_a_block_of_switti_is_its_formula() -> None:
    block = tiny_switti.tiny_transformer().blocks[0]
    hidden, pooled = normal(ROWS, LENGTH, WIDTH, seed=1), normal(ROWS, WIDTH, seed=2)
    text, crop = normal(ROWS, WORDS, 40, seed=3), normal(WIDTH, seed=4)
    condition = block.condition(text, pooled, crop) | {"mask": PADDED}
    ours = block(0, hidden, Condition(condition), (ANGLES.cos(), ANGLES.sin()), EVERYTHING, Streams(), None)

    def rms(layer, states: Tensor) -> Tensor:
        return states / (states.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight

    ada = block.ada_lin(silu(pooled + block.crop_cond_scales * crop)).view(ROWS, 6, 1, WIDTH)
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = ada.unbind(1)
    own, cross, width = block.attn, block.cross_attn, (WIDTH // HEADS) ** -0.5
    given = rms(block.self_attention_norm1, hidden) * (1 + scale_1) + shift_1
    queries, keys, values = own.to_qkv(given).chunk(3, dim=-1)
    heads = turned(in_heads(norm(queries)), ANGLES), turned(in_heads(norm(keys)), ANGLES), in_heads(values)
    hidden = hidden + gate_1 * rms(block.self_attention_norm2, own.proj(attended(*heads, width)))
    query = in_heads(norm(cross.to_q(rms(block.cross_attention_norm1, hidden))))
    of_text = cross.to_kv(rms(block.attention_y_norm, text)).chunk(2, dim=-1)
    read = attended(query, in_heads(norm(of_text[0])), in_heads(of_text[1]), width, PADDED)
    hidden = hidden + rms(block.cross_attention_norm2, cross.proj(read))
    given = rms(block.ffn_norm1, hidden) * (1 + scale_2) + shift_2
    feed = block.ffn.down_proj(silu(block.ffn.gate_proj(given)) * block.ffn.up_proj(given))
    close(ours, hidden + gate_2 * rms(block.ffn_norm2, feed))


def test_positions_of_infinity_are_rows_then_columns_of_the_finest_grid() -> None:
    places = positions((2, 4), (8, 12), torch.device("cpu"))
    assert places.tolist() == [[row, column] for row in (0, 4) for column in (0, 3, 6, 9)]
    assert rotary_frequencies(16, torch.device("cpu")).tolist() == pytest.approx([1, 0.1, 0.01, 0.001])


def test_positions_of_switti_end_at_its_rope_size_and_have_columns_first() -> None:
    transformer = tiny_switti.tiny_transformer(rope_size=6, rope_theta=10000.0)
    cosines, sines = transformer._rotation(3)
    frequencies = torch.tensor([1, 0.1, 0.01, 0.001])
    expected = torch.stack(
        [torch.cat([column * frequencies, row * frequencies]) for row in (0, 3, 6) for column in (0, 3, 6)]
    )
    close(cosines, expected.cos())
    close(sines, expected.sin())


@pytest.mark.parametrize("scale_index", [0, 1, 3])
def test_smooth_codes_of_switti_are_a_gumbel_softmax_that_gets_sharper(scale_index: int) -> None:
    """``ratio = s / (S - 1)``, logits times ``1 + ratio``, temperature ``max(0.27 (1 - 0.95 ratio), 0.005)``."""
    model = SwittiDraw(tiny_switti.tiny_transformer(), tiny_switti.tiny_vqvae(), SwittiSampling(more_smooth=True))
    logits, uniform = normal(1, 2, 16, seed=0), torch.rand(1, 2, 16, generator=torch.Generator().manual_seed(1))
    ratio = scale_index / 3
    gumbel = -torch.log(-torch.log(uniform))
    expected = ((logits * (1 + ratio) + gumbel) / max(0.27 * (1 - 0.95 * ratio), 0.005)).softmax(-1)
    close(model.mixture(logits, -torch.log(uniform), scale_index), expected)


def test_switti_adds_codes_that_are_upsampled_and_half_smoothed() -> None:
    quantize = tiny_switti.tiny_vqvae().quantize
    codes = normal(1, 4, 2, 2, seed=0)
    upsampled = interpolate(codes, size=(4, 4), mode="bicubic", align_corners=False)
    phi = quantize.phi[phi_index(1, 4, len(quantize.phi))]
    smoothed = conv2d(upsampled, phi.weight, phi.bias, padding=1)
    close(quantize.contribution(codes, 1, 4, 4), 0.5 * upsampled + 0.5 * smoothed)
    # The ticks of four kernels lie at 1/12, 13/36, 23/36 and 11/12, and those of six scales at fifths.
    assert [phi_index(scale, 6, 4) for scale in range(6)] == [0, 0, 1, 2, 3, 3]


def test_infinity_divides_by_the_temperature_of_its_scale_adds_codes_and_guides_the_last_blocks() -> None:
    transformer, text = tiny_infinity.tiny_transformer(), tiny_infinity.random_text(0, rows=2)
    condition = transformer.condition(text)

    def logits(temperature: list[float]) -> Tensor:
        model = InfinityDraw.planned(transformer, tiny_infinity.SCHEDULE, 1.0, temperature, 0, 0.0, (0,))
        cache = tiny_infinity.generation().cache
        return model.logits(None, 0, condition, cache, Streams())

    close(logits([4.0, 1.0, 1.0, 1.0]) * 4, logits([1.0, 9.0, 9.0, 9.0]))
    model, feature, codes = tiny_infinity.generation().model, normal(1, 4, 4, 4, seed=1), normal(1, 4, 2, 2, seed=2)
    close(model.accumulate(feature, codes, 1), feature + interpolate(codes, size=(4, 4), mode="bilinear"))
    planned = InfinityDraw.planned(
        tiny_infinity.tiny_transformer(depth=4), tiny_infinity.SCHEDULE, [3.0, 1.0, 2.0, 2.0], 1.0, 0, 0.0, (0, -1, -3)
    )
    assert planned.block_guidance == [{3: 3.0, 1: 3.0}, {}, {3: 2.0, 1: 2.0}, {3: 2.0, 1: 2.0}]
    assert planned.guidance == [3.0, 1.0, 2.0, 2.0]
