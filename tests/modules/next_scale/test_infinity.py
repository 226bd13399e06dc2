"""The transformer: what the cache, streams, padding, patches and precision may not change, and its official size."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.bits import quantise
from src.modules.next_scale.infinity.convert import tokenizer_state, transformer_config, transformer_state
from src.modules.next_scale.infinity.sampling import cells_of, token_sequence
from src.modules.next_scale.infinity.training import bit_lesson, bit_losses, random_flips, token_weights
from src.modules.next_scale.infinity.transformer import InfinityTransformer, positions
from src.modules.next_scale.loop import Condition, Streams
from src.modules.next_scale.schedule import INFINITY_PREFIXES, ScaleSchedules, infinity_grids
from tests.modules.next_scale.golden import FOLDER
from tests.modules.next_scale.tiny_infinity import BITS, LENGTH, SCHEDULE, TEXT, random_text, tiny_transformer

CLOSE = {"rtol": 0, "atol": 1e-5}


def random_tokens(rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, SCHEDULE.starts[-1] - 1, BITS, generator=torch.Generator().manual_seed(seed))


def scale_by_scale(
    transformer: InfinityTransformer, tokens: Tensor, condition: Condition, streams: Streams, cache: KeyValueCache
) -> list[Tensor]:
    cosines, sines = transformer.rotation(SCHEDULE)
    logits = []
    for index, (start, stop) in enumerate(zip(SCHEDULE.starts[:-1], SCHEDULE.starts[1:], strict=True)):
        given = tokens[:, start - 1 : stop - 1] if index else None
        rotation = cosines[start:stop], sines[start:stop]
        now = replace(streams, last=streams.last and index == len(SCHEDULE.grids) - 1)
        logits.append(transformer.scale_logits(given, index, condition, rotation, cache, now))
    return logits


def empty_cache(transformer: InfinityTransformer) -> KeyValueCache:
    return KeyValueCache(transformer.config.depth, SCHEDULE.starts[-1])


def test_scale_by_scale_is_all_scales_at_once() -> None:
    transformer, tokens = tiny_transformer(), random_tokens()
    condition = transformer.condition(random_text(0))
    steps = scale_by_scale(transformer, tokens, condition, Streams(), empty_cache(transformer))
    torch.testing.assert_close(torch.cat(steps, dim=1), transformer(tokens, condition, SCHEDULE), **CLOSE)


def test_a_scale_sees_itself_and_earlier_ones_only() -> None:
    transformer, tokens = tiny_transformer(), random_tokens()
    condition, changed = transformer.condition(random_text(0)), tokens.clone()
    start = SCHEDULE.starts[2]
    changed[:, start] += 1
    before, after = (transformer(given, condition, SCHEDULE) for given in (tokens, changed))
    assert torch.equal(before[:, :start], after[:, :start])
    assert (before[:, start:] != after[:, start:]).any(-1).all()


def test_padding_changes_nothing() -> None:
    transformer, tokens = tiny_transformer(), random_tokens()
    text = random_text(0)
    padded = torch.cat([text, random_text(9, length=3)], dim=1)
    mask = torch.arange(8).expand(2, -1) < 5
    plain, masked = transformer.condition(text), transformer.condition(padded, mask)
    assert set(masked) - set(plain) == {"mask"}
    torch.testing.assert_close(transformer(tokens, masked, SCHEDULE), transformer(tokens, plain, SCHEDULE), **CLOSE)


def test_rows_do_not_touch_each_other() -> None:
    transformer, tokens = tiny_transformer(), random_tokens()
    condition = transformer.condition(random_text(0))
    together = transformer(tokens, condition, SCHEDULE)
    for row in range(2):
        alone = transformer(tokens[row : row + 1], condition.rows(slice(row, row + 1)), SCHEDULE)
        torch.testing.assert_close(alone, together[row : row + 1], **CLOSE)


def test_a_path_that_leaves_early_leaves_the_others_as_they_are() -> None:
    transformer = tiny_transformer()
    tokens = torch.stack([random_tokens(2, 1), random_tokens(2, 2)], dim=1).flatten(0, 1)
    condition = transformer.condition(random_text(0)).repeated(2)
    results = []
    for last in (False, True):
        cache = empty_cache(transformer)
        cache.fork(2, shared=True)
        results.append(scale_by_scale(transformer, tokens, condition, Streams(2, True, last=last), cache))
    for whole, short in zip(results[0][:-1], results[1][:-1], strict=True):
        torch.testing.assert_close(short, whole, **CLOSE)
    assert len(results[1][-1]) == 2
    torch.testing.assert_close(results[1][-1], results[0][-1][1::2], **CLOSE)


def test_guidance_inside_replaces_both_halves() -> None:
    transformer = tiny_transformer()
    condition, cache = transformer.condition(random_text(0)), empty_cache(transformer)
    rotation = tuple(part[:1] for part in transformer.rotation(SCHEDULE))
    outputs: list[Tensor] = []
    transformer.blocks[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = transformer.scale_logits(None, 0, condition, rotation, cache, Streams(), {1: 3.0})
    conditional, unconditional = outputs[0].chunk(2)
    condition = condition.rows(torch.tensor([0, 0]))
    scale, shift = condition["head_ada"].unsqueeze(2).unbind(1)
    guided = 3 * conditional - 2 * unconditional
    normal = torch.nn.functional.layer_norm(guided, guided.shape[-1:], eps=1e-6)
    torch.testing.assert_close(logits[:1], transformer.head(normal * (1 + scale) + shift)[:1], **CLOSE)


def test_positions_are_measured_on_the_finest_grid_and_round_half_to_even() -> None:
    places = positions((16, 12), (72, 54), torch.device("cpu"))
    assert places.shape == (16 * 12, 2)
    assert places[12 * torch.arange(4), 0].tolist() == [0, 4, 9, 14]
    assert places[:4, 1].tolist() == [0, 4, 9, 14]
    schedules = ScaleSchedules(infinity_grids(), INFINITY_PREFIXES)
    small, large = (tiny_transformer().rotation(schedules.schedule("1.333", budget)) for budget in ("0.06M", "1M"))
    assert torch.equal(large[0][: len(small[0])], small[0])


def test_patches_are_two_by_two_cells() -> None:
    cells = torch.randn(2, 3, 4, 6)
    tokens = token_sequence(cells, patchify=True)
    assert torch.equal(tokens[0, 1], torch.stack([cells[0, c, y, x] for c in range(3) for y in (0, 1) for x in (2, 3)]))
    for patchify, grid in ((True, (2, 3)), (False, (4, 6))):
        assert torch.equal(cells_of(token_sequence(cells, patchify), grid, patchify), cells)


def test_half_precision_keeps_what_must_be_exact(tmp_path) -> None:
    exact = tiny_transformer()
    exact.save_pretrained(tmp_path)
    rounded = InfinityTransformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert {module.weight.dtype for module in (rounded.head, rounded.word_embed, rounded.shared_ada)} == {torch.float32}
    assert torch.equal(rounded.unconditional, exact.unconditional)
    hidden: list[Tensor] = []
    rounded.blocks[0].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    logits = [m(random_tokens(), m.condition(random_text(0)), SCHEDULE) for m in (exact, rounded)]
    assert hidden[0].dtype == logits[1].dtype == torch.float32
    spread = logits[0].std()
    assert 0 < (logits[1] - logits[0]).std() < 0.1 * spread


def test_it_starts_undecided_and_close_to_the_identity() -> None:
    torch.manual_seed(0)
    transformer = InfinityTransformer(4, 64, 4, 8, False, TEXT, LENGTH, 4)
    tokens = torch.randn(2, SCHEDULE.starts[-1] - 1, 8)
    logits = transformer(tokens, transformer.condition(random_text(0)), SCHEDULE)
    losses = bit_losses(logits, torch.rand(2, SCHEDULE.starts[-1], 8) > 0.5)
    assert abs(float(losses.detach().mean()) - math.log(2)) < 0.01
    assert transformer.blocks[0].ada[:2].abs().max() < 1e-4 < transformer.blocks[0].ada[2:].abs().max()


def test_flips_follow_their_generator_and_strength() -> None:
    features = torch.zeros(8, BITS, 4, 4)
    drawn = [random_flips(features, SCHEDULE, False, 0.3, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))
    assert 0 < torch.cat([flip.flatten() for flip in drawn[0]]).float().mean() < 0.4
    assert not any(flip.any() for flip in random_flips(features, SCHEDULE, False, 0.0, torch.Generator()))
    with pytest.raises(ValueError, match=r"strength of bit flips is 1\.5"):
        random_flips(features, SCHEDULE, False, 1.5, torch.Generator())


def test_the_share_of_flips_is_drawn_evenly_up_to_the_strength() -> None:
    features, generator = torch.zeros(512, BITS, 4, 4), torch.Generator().manual_seed(0)
    flips = [flip for _ in range(20) for flip in random_flips(features, SCHEDULE, False, 0.5, generator)]
    shares = torch.stack([flip.float().mean() for flip in flips])
    assert 0.4 < float(shares.max()) < 0.53 and float(shares.min()) < 0.1
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.06)


def test_a_lesson_shows_what_earlier_scales_made_and_asks_for_the_bits_of_each() -> None:
    features = torch.randn(2, BITS, 4, 4, generator=torch.Generator().manual_seed(0))
    flips = random_flips(features, SCHEDULE, False, 0.5, torch.Generator().manual_seed(1))
    lesson, found = bit_lesson(features, SCHEDULE, flips=flips), quantise(features, SCHEDULE.grids, flips)
    shown = [
        interpolate(feature, size=grid, mode="bilinear").flatten(2).mT
        for feature, grid in zip(found.features[:-1], SCHEDULE.grids[1:], strict=True)
    ]
    torch.testing.assert_close(lesson.tokens, torch.cat(shown, dim=1))
    assert torch.equal(lesson.bits, torch.cat([bits.flatten(2).mT for bits in found.bits], dim=1))


def test_a_lesson_with_patches_is_the_plain_one_rearranged() -> None:
    doubled = ScaleSchedules({"1.000": [(2 * h, 2 * w) for h, w in SCHEDULE.grids]}, {"all": 4}).schedule(
        "1.000", "all"
    )
    features = torch.randn(2, BITS, 8, 8)
    plain, patched = bit_lesson(features, doubled), bit_lesson(features, SCHEDULE, patchify=True)
    assert patched.bits.shape == (2, SCHEDULE.starts[-1], 4 * BITS)
    assert patched.bits.sum() == plain.bits.sum()
    last = slice(SCHEDULE.starts[-2], None)
    cells = cells_of(patched.bits[:, last].float(), SCHEDULE.grids[-1], True)
    assert torch.equal(cells > 0, cells_of(plain.bits[:, doubled.starts[-2] :], doubled.grids[-1], False))


def test_weights_of_tokens_sum_to_one_and_favour_early_scales() -> None:
    even, by_scale = (token_weights(SCHEDULE, flag) for flag in (False, True))
    assert float(even.sum()) == pytest.approx(1) == float(by_scale.sum())
    assert float(even[0]) == float(even[-1])
    assert float(by_scale[0] / by_scale[-1]) == pytest.approx(SCHEDULE.lengths[-1] ** 0.5)


@pytest.mark.parametrize(
    ("changes", "message"), [({"width": 30}, "width of 30"), ({"patchify": True, "token_bits": 6}, "has 6 bits")]
)
def test_impossible_sizes_are_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**changes)


def listed(section: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one section of the published list; blocks are those of the first."""
    text = (FOLDER / "infinity_keys.txt").read_text(encoding="utf-8").split(f"== {section}")[1].split("\n== ")[0]
    found = re.findall(r"^(\S+) \[([\d, ]*)\]", text, re.MULTILINE)
    return {name: tuple(int(size) for size in shape.split(",")) for name, shape in found}


@pytest.mark.parametrize(
    ("section", "chunk", "keys", "parameters", "patchify"),
    [("2B", 4, 694, 2_204_564_032, False), ("8B", 5, 862, 8_375_791_824, True)],
)
def test_every_tensor_of_the_official_transformers(
    section: str, chunk: int, keys: int, parameters: int, patchify: bool
) -> None:
    first = listed(section)
    names = {
        name.replace("block_chunks.0.module.0.", f"block_chunks.{i}.module.{j}."): shape
        for name, shape in first.items()
        for i in range(8)
        for j in range(chunk)
    }
    assert len(names) == keys
    state = transformer_state({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    with torch.device("meta"):
        model = InfinityTransformer(**transformer_config(state, section), patchify=patchify)
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_every_tensor_of_the_official_image_tokenizer() -> None:
    names = listed("VAE d32")
    assert len(names) == 270
    state = tokenizer_state({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    with torch.device("meta"):
        model, small = BSQTokenizer(), BSQTokenizer(14, 128, (1, 2, 4, 4), 2, 8)
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in model.state_dict().items()}
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert sizes == [45_025_696, 65_092_355]
    assert [sum(p.numel() for p in part.parameters()) for part in (small.encoder, small.decoder)] == [
        33_139_598,
        48_484_611,
    ]
