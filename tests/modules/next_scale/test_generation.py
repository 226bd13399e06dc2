"""The loop: what else is in the batch does not matter, paths that agree stay equal, rows leave when they may."""

import pytest
import torch
from torch import Tensor

from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.loop import Generation, OnScale, generate
from src.modules.next_scale.sampling import draw, exponential_noise, truncated
from tests.modules.next_scale.tiny_infinity import SCHEDULE, generation

SCALES = len(SCHEDULE.grids)
CLOSE = {"rtol": 0, "atol": 1e-5}


def forked(at: int, count: int = 2, **options: bool) -> OnScale:
    def hook(scale_index: int, batch: Generation) -> None:
        if scale_index == at:
            batch.fork(count, **options)

    return hook


def test_an_image_does_not_depend_on_the_others() -> None:
    together = generate(generation(3))
    for number in (1, 2):
        torch.testing.assert_close(generate(generation(number)), together[:number], **CLOSE)


def test_hooks_see_every_scale_in_order() -> None:
    seen = []
    generate(generation(1), [lambda index, batch: seen.append((index, tuple(batch.feature.shape)))])
    assert seen == [(index, (1, 4, 4, 4)) for index in range(SCALES)]


@pytest.mark.parametrize("at", [0, 2])
def test_copies_with_the_same_noise_stay_equal(at: int) -> None:
    plain, doubled = generate(generation()), generate(generation(), [forked(at)])
    torch.testing.assert_close(doubled.unflatten(0, (2, 2)), plain[:, None].expand(-1, 2, -1, -1, -1), **CLOSE)


def noises(batch: Generation, *hooks: OnScale) -> list[Tensor]:
    """What each pass draws with, ``(images, paths, N, 2)``."""
    seen, residual = [], batch.model.residual

    def watched(logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        seen.append(noise.unflatten(0, (batch.images, -1)))
        return residual(logits, noise, scale_index)

    batch.model.residual = watched
    generate(batch, hooks)
    return seen


@pytest.mark.parametrize("one_for_all", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_paths_with_noise_of_their_own_leave_the_first_its_noise(at: int, one_for_all: bool) -> None:
    def fresh() -> Generation:
        batch = generation(2)
        batch.generators = torch.Generator().manual_seed(5) if one_for_all else batch.generators
        return batch

    plain = noises(fresh())
    tripled, again = (noises(fresh(), forked(at, count=3, shared_noise=False)) for _ in range(2))
    for scale_index in range(at + 1, SCALES):
        first, *further = tripled[scale_index].unbind(1)
        assert torch.equal(first, plain[scale_index][:, 0])
        for other in (first, further[1], further[0].flip(0)):
            assert (further[0] != other).any(-1).all()
        assert torch.equal(tripled[scale_index], again[scale_index])
    content = generate(fresh(), [forked(at, shared_noise=False)]).unflatten(0, (2, 2))
    torch.testing.assert_close(content[:, 0], generate(fresh()), **CLOSE)
    assert (content[:, 1] != content[:, 0]).any()


def test_a_generator_that_goes_on_draws_other_further_noise_the_next_time() -> None:
    batch, last = generation(1), []
    for _ in range(2):
        last.append(
            noises(
                Generation(batch.model, batch.condition, 1, batch.generators), forked(0, count=2, shared_noise=False)
            )[-1]
        )
    assert (last[0][:, 1] != last[1][:, 1]).all()


def test_without_generators_paths_differ_too() -> None:
    batch = generation(1)
    batch.generators = None
    seen = noises(batch, forked(1, shared_noise=False))
    assert (seen[-1][:, 0] != seen[-1][:, 1]).all()


def test_a_copy_that_shares_attention_with_its_equal_is_its_equal_and_the_first_is_not_drawn() -> None:
    plain = generate(generation())
    shared = generate(generation(), [forked(2, share_attention=True)])
    torch.testing.assert_close(shared, plain, **CLOSE)


def test_sharing_later_keeps_own_history_and_both_paths() -> None:
    def share(scale_index: int, batch: Generation) -> None:
        if scale_index == 1:
            batch.fork(2)
        if scale_index == 2:
            batch.share_attention()

    doubled = generate(generation(), [share])
    torch.testing.assert_close(doubled, generate(generation()).repeat_interleave(2, dim=0), **CLOSE)


def test_shared_keys_are_kept_once() -> None:
    sizes = {}
    for shared in (False, True):

        def weigh(index: int, batch: Generation, shared: bool = shared) -> None:
            sizes[shared] = batch.cache.nbytes

        generate(generation(), [forked(1, share_attention=shared), weigh])
    assert sizes[True] == sizes[False] * 3 / 4


def test_images_that_leave_do_not_matter() -> None:
    def leave(scale_index: int, batch: Generation) -> None:
        if scale_index == 1:
            batch.keep_images(2)

    torch.testing.assert_close(generate(generation(3), [leave]), generate(generation(2)), **CLOSE)


def test_scales_drawn_in_patches_are_those_of_teacher_forcing() -> None:
    batch, tokens, logits = generation(2, 1.0, patchify=True, token_bits=12), [], []
    model, next_tokens, residual = batch.model, batch.model.next_tokens, batch.model.residual

    def watched(feature: Tensor, scale_index: int) -> Tensor:
        tokens.append(next_tokens(feature, scale_index))
        return tokens[-1]

    def seen(given: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        logits.append(given.flatten(1).unflatten(1, (SCHEDULE.lengths[scale_index], -1)))
        codes = residual(given, noise, scale_index)
        assert codes.shape[1:] == (3, *(2 * side for side in SCHEDULE.grids[scale_index]))
        return codes

    model.next_tokens, model.residual = watched, seen
    condition = batch.condition.rows(slice(2))
    generate(batch)
    at_once = model.transformer(torch.cat(tokens, dim=1), condition, SCHEDULE)
    torch.testing.assert_close(torch.cat(logits, dim=1), at_once, **CLOSE)


def test_unconditional_rows_leave_after_the_last_guided_scale() -> None:
    rows = []
    batch = generation(guidance=[1.0, 3.0, 1.0, 1.0])
    batch.model.transformer.blocks[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    feature = generate(batch)
    assert rows == [4, 4, 2, 2]
    barely = generate(generation(guidance=[1.0, 3.0, 1.0, 1.0 + 1e-7]))
    torch.testing.assert_close(feature, barely, **CLOSE)


def test_without_guidance_there_are_no_unconditional_rows() -> None:
    assert not any(generation(guidance=1.0).model.paired(index) for index in range(SCALES))


def test_a_scale_that_sees_only_itself_keeps_nothing() -> None:
    cache = KeyValueCache(1, None)
    states = torch.randn(1, 1, 3, 4)
    first = cache.attend(0, states, states, states, 1.0)
    assert torch.equal(cache.attend(0, states, states, states, 1.0), first)
    assert cache.nbytes == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_code_is_drawn_from_logits_that_are_not_finite(bad: float) -> None:
    batch = generation()
    batch.model.transformer.head.weight.data[0, 0] = bad
    with pytest.raises(ValueError, match=r"the logits of scale 0 are not finite \("):
        generate(batch)


def test_draws_are_those_of_multinomial() -> None:
    probabilities = torch.rand(64, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    expected = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    noise = exponential_noise(1, (64, 5), torch.Generator().manual_seed(1), probabilities)[0]
    assert torch.equal(draw(probabilities.log(), noise), expected)


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert truncated(logits, top_k=2).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, top_p=0.75).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, top_p=0.01).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(truncated(logits, top_k=4), logits)


def test_a_wrong_number_of_generators_is_said() -> None:
    with pytest.raises(ValueError, match="1 generators were given for 2 images"):
        exponential_noise(2, (1, 2), [torch.Generator()], torch.zeros(1))
