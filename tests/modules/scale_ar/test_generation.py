"""The loop: what else is in the batch does not matter, paths that agree stay equal, rows leave when they may."""

import pytest
import torch

from src.modules.scale_ar.cache import KeyValueCache
from src.modules.scale_ar.generation import Generation, generate
from src.modules.scale_ar.sampling import draw, exponential_noise, truncated
from tests.modules.scale_ar.tiny_infinity import SCHEDULE, generation

SCALES = len(SCHEDULE.grids)
CLOSE = {"rtol": 0, "atol": 1e-5}


def forked(at: int, **options: bool):
    def hook(scale_index: int, batch: Generation) -> None:
        if scale_index == at:
            batch.fork(2, **options)

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


def test_copies_with_noise_of_their_own_differ() -> None:
    doubled = generate(generation(1), [forked(1, shared_noise=False)])
    assert (doubled[0] != doubled[1]).any()


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
