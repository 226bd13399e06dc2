"""Switti's transformer and its draws: the reference's own numbers, and what holds for any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from src.modules.next_scale.loop import Condition, Generation, OnScale, Streams, generate
from src.modules.next_scale.sampling import guided
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.sampling import SwittiDraw, SwittiSampling
from src.modules.next_scale.switti.transformer import SwittiTransformer
from src.modules.style_svd.blending import StyleBlending, decay_weights, principal_features
from tests.modules.next_scale.golden import AMPLIFIED, close, golden
from tests.modules.next_scale.tiny_switti import GOLDEN_SIDES, SIDES, golden_models, tiny_transformer, tiny_vqvae

GREEDY = {"top_k": 1, "top_p": 0.0}


@dataclass
class Record:
    """What one generation saw and did, a tensor for each scale."""

    feature: Tensor
    tokens: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    indices: list[Tensor] = field(default_factory=list)
    mixtures: list[Tensor] = field(default_factory=list)


def recorded(
    models: tuple[SwittiTransformer, VQVAE],
    condition: Condition,
    sampling: SwittiSampling,
    images: int = 1,
    seed: int = 0,
    on_scale: Sequence[OnScale] = (),
) -> Record:
    record = Record(torch.empty(0))

    class Recording(SwittiDraw):
        def next_tokens(self, feature: Tensor, scale_index: int) -> Tensor:
            record.tokens.append(super().next_tokens(feature, scale_index))
            return record.tokens[-1]

        def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
            record.logits.append(logits)
            return super().residual(logits, noise, scale_index)

        def chosen(self, logits: Tensor, noise: Tensor) -> Tensor:
            record.indices.append(super().chosen(logits, noise))
            return record.indices[-1]

        def mixture(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
            record.mixtures.append(super().mixture(logits, noise, scale_index))
            return record.mixtures[-1]

    generator = torch.Generator().manual_seed(seed)
    record.feature = generate(Generation(Recording(*models, sampling), condition, images, generator), on_scale)
    return record


def golden_condition(transformer: SwittiTransformer, rows: slice = slice(None), **crop: object) -> Condition:
    inputs = golden("switti_A", "inputs")
    return transformer.condition(
        inputs["context"][rows], inputs["attn_bias"][rows] == 0, inputs["pooled"][rows], **crop
    )


def random_condition(transformer: SwittiTransformer, rows: int = 2, seed: int = 0, **crop: object) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(rows, 5, 40, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 3])[torch.arange(rows) % 2, None]
    return transformer.condition(text, mask, torch.randn(rows, 24, generator=generator), **crop)


@pytest.mark.parametrize(
    ("case", "seed", "choice"),
    [("greedy", 0, GREEDY), ("sampled", 7, {"top_k": 20, "top_p": 0.95})],
)
def test_draws_are_those_of_the_reference(tmp_path: Path, case: str, seed: int, choice: dict[str, float]) -> None:
    expected, models = golden("switti_A", case), golden_models(tmp_path)
    record = recorded(models, golden_condition(models[0]), SwittiSampling(1.5, **choice), seed=seed)
    for scale_index in range(len(GOLDEN_SIDES)):
        close(record.logits[scale_index], expected[f"s{scale_index}.logits"])
        assert torch.equal(record.indices[scale_index], expected[f"s{scale_index}.idx"].long())
    close(record.feature, expected["F_final"])
    if case == "greedy":
        close((models[1].decode(record.feature) + 1) / 2, expected["image_01"], AMPLIFIED)


def test_every_feature_and_input_of_a_draw_is_that_of_the_reference(tmp_path: Path) -> None:
    expected, models = golden("switti_A", "greedy"), golden_models(tmp_path)
    features: list[Tensor] = []
    record = recorded(
        models,
        golden_condition(models[0]),
        SwittiSampling(1.5, **GREEDY),
        on_scale=[lambda _, generation: features.append(generation.feature)],
    )
    for scale_index in range(len(GOLDEN_SIDES) - 1):
        close(features[scale_index], expected[f"s{scale_index}.F"])
        close(record.tokens[scale_index], expected[f"s{scale_index}.F_down"].flatten(2).mT)


def test_smooth_draws_are_those_of_the_reference(tmp_path: Path) -> None:
    expected, models = golden("switti_A", "smooth"), golden_models(tmp_path)
    sampling = SwittiSampling(1.5, more_smooth=True, smooth_start=1, top_k=20, top_p=0.95)
    record = recorded(models, golden_condition(models[0]), sampling, seed=7)
    assert torch.equal(record.indices[0], expected["s0.idx"].long())
    for scale_index in range(1, len(GOLDEN_SIDES)):
        progress = scale_index / (len(GOLDEN_SIDES) - 1)
        close(record.logits[scale_index] * (1 + progress), expected[f"s{scale_index}.gumbel_logits"])
        close(record.mixtures[scale_index - 1], expected[f"s{scale_index}.gumbel_probs"], AMPLIFIED)
    close(record.feature, expected["F_final"])


def test_teacher_forced_logits_and_loss_are_those_of_the_reference(tmp_path: Path) -> None:
    expected, (transformer, vae) = golden("switti_A", "train"), golden_models(tmp_path)
    # A training image of 512 x 640 pixels, cropped in the middle.
    condition = golden_condition(transformer, slice(1), size_and_crop=(512, 640, 0, 64))
    logits = transformer(expected["x_BLCv_wo_first_l"], condition)
    close(logits, expected["logits"])
    image = golden("switti_A", "encode")["image_u8_rgb"].float() / 127.5 - 1
    found = vae.encode_scales(image, GOLDEN_SIDES)
    model = SwittiDraw(transformer, vae, SwittiSampling())
    inputs = [model.next_tokens(running, index) for index, running in enumerate(found.features[:-1], start=1)]
    close(torch.cat(inputs, dim=1), expected["x_BLCv_wo_first_l"])
    loss = cross_entropy(logits.flatten(0, 1), torch.cat(found.indices, dim=1).flatten())
    close(loss, expected["loss"][0])


@pytest.mark.parametrize(("case", "correct_from"), [("pfb", None), ("pfb_sac", 3)])
def test_styled_draws_are_those_of_the_reference(tmp_path: Path, case: str, correct_from: int | None) -> None:
    expected, models = golden("switti_A", "style"), golden_models(tmp_path)
    image = golden("switti_A", "encode")["image_u8_rgb"].float() / 127.5 - 1
    style = models[1].encode_scales(image, GOLDEN_SIDES, num_scales=3).features[2]

    weights = decay_weights(1.0, style.shape[1])
    hook = StyleBlending(principal_features(style, weights), weights, correct_from=correct_from)

    def check(scale_index: int, generation: Generation) -> None:
        if scale_index == 2:
            close(generation.feature[-1:], expected[f"{case}.F3_gen_after"])

    sampling = SwittiSampling(1.5, **GREEDY)
    record = recorded(models, golden_condition(models[0]), sampling, on_scale=[hook, check])
    content = 0 if correct_from is None else 1
    assert [len(indices) for indices in record.indices] == [1, 1, 1, 1 + content, 1 + content, 1]
    for scale_index, ours in enumerate(record.indices):
        theirs = expected[f"{case}.s{scale_index}.idx"].long()
        assert torch.equal(ours, theirs[:1] if scale_index < 3 else theirs[-len(ours) :])
    paths = len(record.feature)
    close(record.logits[-1], expected[f"{case}.last_logits"][-paths:])
    close(record.feature, expected[f"{case}.F_final"][-paths:])
    close((models[1].decode(record.feature[-1:]) + 1) / 2, expected[f"{case}.gen_image_01"], AMPLIFIED)


@pytest.mark.parametrize("correct_from", [None, 3])
@pytest.mark.parametrize("place", [0, 1])
def test_styled_draws_are_those_of_the_reference_beside_another_prompt_and_another_style(
    tmp_path: Path, place: int, correct_from: int | None
) -> None:
    expected, models = golden("switti_A", "style"), golden_models(tmp_path)
    case = "pfb" if correct_from is None else "pfb_sac"
    image = golden("switti_A", "encode")["image_u8_rgb"].float() / 127.5 - 1
    encoded = models[1].encode_scales(torch.cat([image, -image]), GOLDEN_SIDES, num_scales=3).features[2]
    weights = decay_weights(1.0, encoded.shape[1])
    # Two prompts in two styles each, the styles of a prompt beside each other.
    hook = StyleBlending(principal_features(encoded[[0, 1, 1, 0]], weights), weights, correct_from=correct_from)
    inputs = golden("switti_A", "inputs")
    rows, signs = [0, 0, 1, 1], [1, -1, 1, 1] if place == 0 else [-1, 1, 1, 1]
    text = inputs["context"][rows] * torch.tensor(signs)[:, None, None]
    pooled = inputs["pooled"][rows] * torch.tensor(signs)[:, None]
    condition = models[0].condition(text, (inputs["attn_bias"] == 0)[rows], pooled)
    record = recorded(models, condition, SwittiSampling(1.5, **GREEDY), images=2, on_scale=[hook])
    feature, wanted = record.feature.unflatten(0, (2, 2)), expected[f"{case}.F_final"][-1:]
    close(feature[place, place][None], wanted)
    assert (feature[place, 1 - place] - wanted[0]).abs().max() > 0.1, "another style shows"


@pytest.mark.parametrize("use_ar", [False, True])
def test_drawing_scale_by_scale_is_teacher_forcing(use_ar: bool) -> None:
    models = tiny_transformer(use_ar=use_ar), tiny_vqvae()
    condition = random_condition(models[0])
    record = recorded(models, condition, SwittiSampling(0.0), images=2)
    close(torch.cat(record.logits, dim=1), models[0](torch.cat(record.tokens, dim=1), condition))


@pytest.mark.parametrize("use_ar", [False, True])
def test_a_scale_sees_itself_and_in_the_autoregressive_model_what_came_before(use_ar: bool) -> None:
    transformer = tiny_transformer(use_ar=use_ar)
    condition = random_condition(transformer)
    tokens = torch.randn(2, transformer.num_tokens - 1, 4, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 4] += 1  # the first token of the third scale
    moved = (transformer(changed, condition) - transformer(tokens, condition)).abs().amax((0, 2)) > 0
    per_scale = [part.all().item() for part in moved.split([side**2 for side in SIDES])]
    assert per_scale == [False, False, True, use_ar]
    assert not moved[:5].any()


@pytest.mark.parametrize("use_ar", [False, True])
def test_guidance_is_that_of_two_full_passes_switched_on_and_off(use_ar: bool) -> None:
    models = tiny_transformer(use_ar=use_ar), tiny_vqvae()
    condition = random_condition(models[0])
    record = recorded(models, condition, SwittiSampling(3.0, turn_on=1, turn_off=3, last_scale_temp=0.5, **GREEDY))
    tokens = torch.cat(record.tokens, dim=1).repeat(2, 1, 1)
    both = models[0](tokens, condition).split([side**2 for side in SIDES], dim=1)
    for scale_index, weight in enumerate((1.0, 2.0, 3.0)):
        close(record.logits[scale_index], guided(both[scale_index], weight))
    close(record.logits[3], both[3][:1] / 0.5)


@pytest.mark.parametrize("use_ar", [False, True])
def test_unguided_scales_do_not_carry_unconditional_rows(use_ar: bool) -> None:
    models = tiny_transformer(use_ar=use_ar), tiny_vqvae()
    paired = SwittiDraw(*models, SwittiSampling(3.0, turn_on=2, turn_off=3)).paired
    # Later scales of the autoregressive model look back at the first ones.
    assert [paired(scale_index) for scale_index in range(4)] == [use_ar, use_ar, True, False]
    record = recorded(models, random_condition(models[0], rows=1), SwittiSampling(0.0))
    assert record.feature.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("use_ar", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_a_fork_that_nothing_edits_draws_the_same_twice(use_ar: bool, shares: bool) -> None:
    models = tiny_transformer(use_ar=use_ar), tiny_vqvae()
    condition = random_condition(models[0], rows=4)

    def fork(scale_index: int, generation: Generation) -> None:
        if scale_index == 1:
            generation.fork(2, share_attention=shares)

    plain = recorded(models, condition, SwittiSampling(2.0), images=2, seed=3)
    forked = recorded(models, condition, SwittiSampling(2.0), images=2, seed=3, on_scale=[fork])
    copies = 1 if shares else 2
    close(forked.feature, plain.feature.repeat_interleave(copies, dim=0))


@pytest.mark.parametrize("use_ar", [False, True])
def test_shared_attention_is_that_of_the_content_path(use_ar: bool) -> None:
    models = tiny_transformer(use_ar=use_ar), tiny_vqvae()
    condition = random_condition(models[0], rows=4)
    records: dict[str, Record] = {}
    for how in ("shared", "copied", "apart"):

        def edit(scale_index: int, generation: Generation, how: str = how) -> None:
            if scale_index == 1:
                generation.fork(2, share_attention=how == "shared")
                generation.feature = generation.feature + torch.tensor([0.0, 0.5, 0.0, 0.5])[:, None, None, None]
                if how == "copied":
                    generation.share_attention()

        records[how] = recorded(models, condition, SwittiSampling(2.0, **GREEDY), images=2, on_scale=[edit])
    # One attention map for both paths, or the content path's queries and keys copied to the other.
    shared, copied, apart = (records[how].logits for how in ("shared", "copied", "apart"))
    close(shared[2], copied[2])
    close(shared[3], copied[3][1::2])
    close(shared[2][::2], apart[2][::2])
    assert (shared[2][1::2] - apart[2][1::2]).abs().max() > 1e-3


def test_padding_of_the_text_is_not_seen() -> None:
    transformer = tiny_transformer()
    text, pooled = torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(0)), torch.ones(1, 24)
    mask = torch.tensor([[True, True, True, False, False]])
    changed = text.clone()
    changed[:, 3:] = 7
    logits = [
        transformer.scale_logits(None, 0, transformer.condition(t, mask, pooled), _no_cache(transformer), Streams())
        for t in (text, changed)
    ]
    assert torch.equal(*logits)


def _no_cache(transformer: SwittiTransformer):
    return Generation(SwittiDraw(transformer, tiny_vqvae(), SwittiSampling()), Condition(), 1).cache


def test_the_crop_condition_is_one_for_all_rows_or_one_for_each() -> None:
    transformer = tiny_transformer()
    plain, cropped = random_condition(transformer), random_condition(transformer, size_and_crop=(512, 640, 0, 64))
    assert (plain["ada"] - cropped["ada"]).abs().max() > 1e-2
    rows = torch.tensor([[512.0, 512, 0, 0], [512, 640, 0, 64]])
    each = random_condition(transformer, size_and_crop=rows)["ada"]
    close(each, torch.stack([plain["ada"][0], cropped["ada"][1]]))
    without = tiny_transformer(use_crop_cond=False)
    assert not any("crop" in name for name in without.state_dict())
    tokens = torch.zeros(2, without.num_tokens - 1, 4)
    assert without(tokens, random_condition(without)).isfinite().all()


def test_the_condition_is_all_that_text_costs() -> None:
    condition = random_condition(tiny_transformer(), rows=3)
    assert {len(tensor) for tensor in condition.values()} == {3}
    shapes = {"start": (3, 1, 32), "head_ada": (3, 2, 32), "ada": (3, 2, 6, 32), "keys": (3, 2, 2, 5, 16)}
    assert {name: tuple(condition[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("sides", [(2, 4), (1,), (1, 4, 4)])
def test_an_impossible_schedule_is_said(sides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise from 1"):
        SwittiTransformer(1, 32, 2, sides)


def test_an_impossible_width_is_said() -> None:
    with pytest.raises(ValueError, match="does not split into 3 heads"):
        SwittiTransformer(1, 32, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_on": -1}, "turn_on is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"last_scale_temp": 0.1}, "give a positive temperature, and turn_off"),
        ({"last_scale_temp": 0.0, "turn_off": 3}, "give a positive temperature"),
    ],
)
def test_impossible_draws_are_said(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwittiSampling(**settings)


def test_guidance_may_be_given_for_each_scale() -> None:
    assert SwittiSampling(6.0, turn_on=2, turn_off=3).guidance(4) == [1.0, 1.0, 5.0, 1.0]
    assert SwittiSampling([1, 2, 0, 4], turn_off=3).guidance(4) == [2.0, 3.0, 1.0, 1.0]
    for wrong in ([1.0, 2.0], -1.0):
        with pytest.raises(ValueError, match="4, one for each scale"):
            SwittiSampling(wrong).guidance(4)
