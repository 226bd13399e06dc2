"""Infinity against the published code's own tensors: generation, sampling, style, teacher forcing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from src.modules.next_scale.infinity.bits import resized
from src.modules.next_scale.infinity.sampling import InfinityDraw
from src.modules.next_scale.infinity.training import bit_lesson, bit_losses, token_weights
from src.modules.next_scale.loop import Generation, generate
from src.modules.style_svd.blending import StyleBlending, decay_weights, principal_features
from tests.modules.next_scale.golden import AMPLIFIED, close, golden
from tests.modules.next_scale.tiny_infinity import (
    golden_condition,
    golden_schedule,
    golden_tokenizer,
    golden_transformer,
)

SCALES = 7


class Recording(InfinityDraw):
    """Keeps the logits that bits are drawn from, and the bits."""

    def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        codes = super().residual(logits, noise, scale_index)
        self.drawn = {**getattr(self, "drawn", {}), scale_index: (logits.flatten(1), codes > 0)}
        return codes


def draw(guidance: list[float], temperature: float, top_k: int, top_p: float) -> Recording:
    schedule = golden_schedule()
    return Recording(golden_transformer(), schedule, guidance, [temperature] * SCALES, top_k, top_p)


def check_scale(model: Recording, scale_index: int, expected: dict[str, Tensor], prefix: str = "") -> None:
    logits, bits = model.drawn[scale_index]
    key = f"{prefix}s{scale_index}"
    wanted = expected[f"{key}.bits"][-len(bits) :]
    assert torch.equal(bits.permute(0, 2, 3, 1)[:, None].byte(), wanted)
    if f"{key}.logits" in expected:
        close(logits, expected[f"{key}.logits"].flatten(1))


def test_rotations_and_conditions_are_the_references() -> None:
    transformer, inputs, expected = golden_transformer(), golden("infinity_A", "inputs"), golden("infinity_A", "greedy")
    close(torch.stack(transformer.rotation(golden_schedule())), inputs["rope_cos_sin"])
    condition = golden_condition(transformer)
    close(condition["start"][:, 0], expected["cond_BD"] + transformer.start[0])
    shared = condition["ada"][:, 0] - transformer.blocks[0].ada
    close(shared, expected["cond_gss"][:, 0])


def test_greedy_generation_is_the_references() -> None:
    expected = golden("infinity_A", "greedy")
    model = draw([3.0] * SCALES, 1.0, 1, 0.0)
    blocks: list[Tensor] = []
    for block in model.transformer.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))

    def check(scale_index: int, batch: Generation) -> None:
        check_scale(model, scale_index, expected)
        feature = expected.get(f"s{scale_index}.F", expected["F_final"]).view_as(batch.feature)
        close(batch.feature, feature)
        for index, output in enumerate(blocks):
            if (wanted := expected.get(f"s{scale_index}.L{index}.block_out")) is not None:
                close(output, wanted)
        blocks.clear()

    feature = generate(Generation(model, golden_condition(model.transformer), 1), [check])
    image = golden_tokenizer().decode(feature)
    close(image[..., :64, :64], expected["image_pm1_crop64"], AMPLIFIED)
    bgr = ((image + 1) * 127.5).round().flip(1).permute(0, 2, 3, 1)
    assert (bgr - expected["image_u8_bgr"].float()).abs().max() <= 1


def test_sampling_is_the_references_draw_by_draw() -> None:
    expected = golden("infinity_A", "sampled")
    model = draw([4.0] * (SCALES - 1) + [1.0], 0.5, 900, 0.97)
    generator = torch.Generator().manual_seed(123)
    feature = generate(
        Generation(model, golden_condition(model.transformer), 1, generator),
        [lambda scale_index, batch: check_scale(model, scale_index, expected)],
    )
    close(feature, expected["F_final"])


@pytest.mark.parametrize(("case", "correct_from"), [("pfb", None), ("pfb_sac", 3)])
def test_a_style_is_the_references(case: str, correct_from: int | None) -> None:
    expected = golden("infinity_A", "style")
    style = golden("infinity_A", "encode")["s2.F_sty"][:, :, 0]
    model = draw([3.0] * SCALES, 1.0, 1, 0.0)

    weights = decay_weights(1.0, style.shape[1])
    hook = StyleBlending(principal_features(style, weights), weights, correct_from=correct_from)

    def check(scale_index: int, batch: Generation) -> None:
        if scale_index == 2:
            blended, wanted = batch.feature[-1:], expected[f"{case}.F3_gen_after"][:, :, 0]
            close(blended, wanted)
        check_scale(model, scale_index, expected, f"{case}.")

    feature = generate(Generation(model, golden_condition(model.transformer), 1), [hook, check])
    close(feature, expected[f"{case}.F_final"][-len(feature) :])
    for scale_index, name in ((3, "s3_logits"), (SCALES - 1, "last_logits")):
        logits = model.drawn[scale_index][0]
        wanted = expected[f"{case}.{name}"][-len(logits) :].flatten(1)
        close(logits, wanted)
    image = golden_tokenizer().decode(feature[-1:])
    close(image[..., :64, :64], expected[f"{case}.gen_image_pm1_crop64"], AMPLIFIED)


@pytest.mark.parametrize("correct_from", [None, 3])
@pytest.mark.parametrize("place", [0, 1])
def test_a_style_is_the_references_beside_another_prompt_and_another_style(
    place: int, correct_from: int | None
) -> None:
    expected, case = golden("infinity_A", "style"), "pfb" if correct_from is None else "pfb_sac"
    own = golden("infinity_A", "encode")["s2.F_sty"][:, :, 0]
    seeded = torch.Generator().manual_seed(0)
    other, model = torch.randn(own.shape, generator=seeded), draw([3.0] * SCALES, 1.0, 1, 0.0)
    weights = decay_weights(1.0, own.shape[1])
    # Two prompts in two styles each, the styles of a prompt beside each other.
    styles = principal_features(torch.cat([own, other, other, own]), weights)
    text = golden("infinity_A", "inputs")["text.kv_compact"][None]
    prompts = [text, torch.randn(text.shape, generator=seeded)][:: 1 if place == 0 else -1]
    nothing = model.transformer.unconditional[None, : text.shape[1]]
    condition = model.transformer.condition(torch.cat([*prompts, nothing, nothing]))
    hook = StyleBlending(styles, weights, correct_from=correct_from)
    feature = generate(Generation(model, condition, 2), [hook]).unflatten(0, (2, 2))
    wanted = expected[f"{case}.F_final"][-1:]
    close(feature[place, place][None], wanted)
    assert (feature[place, 1 - place] - wanted[0]).abs().max() > 0.1, "another style shows"


def no_flips(features: Tensor, tokens: Tensor) -> list[Tensor]:
    return []


def flips_of(features: Tensor, tokens: Tensor) -> list[Tensor]:
    """Which bits the reference flipped: a flip moves the next scale's input by twice the code, read on both grids."""
    schedule, flips = golden_schedule(), []
    for index, grid in enumerate(schedule.grids[:-1]):
        start, stop = (place - 1 for place in schedule.starts[index + 1 : index + 3])
        moved = (tokens - bit_lesson(features, schedule, False, flips).tokens)[:, start:stop]
        cells = torch.eye(schedule.lengths[index]).view(-1, 1, *grid)
        reading = resized(resized(cells, features.shape[-2:]), schedule.grids[index + 1]).flatten(1).T
        solved = torch.linalg.lstsq(reading.double(), moved[0].double()).solution
        flips.append((solved.abs() > 0.25).T.reshape(1, -1, *grid))
    return flips


@pytest.mark.parametrize(("case", "find_flips"), [("clean", no_flips), ("noise", flips_of)])
def test_lessons_logits_and_losses_are_the_references(
    case: str, find_flips: Callable[[Tensor, Tensor], list[Tensor]]
) -> None:
    expected = {key.removeprefix(f"{case}."): value for key, value in golden("infinity_A", "train").items()}
    features, schedule, transformer = golden("infinity_A", "encode")["h"], golden_schedule(), golden_transformer()
    lesson = bit_lesson(features, schedule, False, find_flips(features, expected["x_BLC_wo_prefix"]))
    close(lesson.tokens, expected["x_BLC_wo_prefix"])
    assert torch.equal(lesson.bits.byte(), expected["gt_bits"])
    logits = transformer(lesson.tokens, golden_condition(transformer, guided=False), schedule)
    close(logits, expected["logits"])
    losses = bit_losses(logits, lesson.bits)
    close(losses, expected["loss_tok"])
    for by_scale, name in ((False, "loss_mean"), (True, "loss_reweighted")):
        close(losses @ token_weights(schedule, by_scale), expected[name])
