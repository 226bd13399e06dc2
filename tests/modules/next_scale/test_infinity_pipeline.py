"""The pipeline: its arguments, what an image depends on, sizes, and a round trip through a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.modules.next_scale.infinity.bits import quantise
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from tests.modules.next_scale.tiny_infinity import BITS, GRIDS, PREFIXES, tiny_pipeline, tiny_transformer, tiny_vae

PROMPTS = ["a red dog", "a blue cat on the grass", "two cars"]
OWN = {"guidance_scale": 2.0, "temperature": 1.0}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> InfinityPipeline:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latent(pipeline: InfinityPipeline, prompt: str | list[str], *seeds: int, **arguments: object) -> torch.Tensor:
    return pipeline(prompt, generator=seeded(*seeds), output_type="latent", **arguments).images


def test_prompts_become_rgb_images(pipeline: InfinityPipeline) -> None:
    images = pipeline(PROMPTS, generator=seeded(0, 1, 2)).images
    assert [image.size for image in images] == [(8, 8)] * 3
    assert images[0].mode == "RGB"
    assert pipeline("a dog", output_type="np", return_dict=False)[0].shape == (1, 8, 8, 3)


def test_output_types_are_one_image(pipeline: InfinityPipeline) -> None:
    feature = latent(pipeline, "a dog", 5)
    tensor = pipeline("a dog", generator=seeded(5), output_type="pt").images
    torch.testing.assert_close(tensor, pipeline.decode(feature) / 2 + 0.5)
    picture = np.asarray(pipeline("a dog", generator=seeded(5)).images[0])
    assert np.array_equal(picture, (tensor[0].permute(1, 2, 0) * 255).round().byte().numpy())


def test_an_image_does_not_depend_on_what_else_is_in_the_batch(pipeline: InfinityPipeline) -> None:
    for negatives in (None, ["", "a car on the beach at night", "a dog"]):
        together = latent(pipeline, PROMPTS, 0, 1, 2, negative_prompt=negatives)
        for index, prompt in enumerate(PROMPTS):
            alone = latent(pipeline, prompt, index, negative_prompt=(negatives and negatives[index]) or None)
            torch.testing.assert_close(alone, together[index : index + 1], rtol=0, atol=1e-5)


def test_a_guidance_of_nothing_draws_the_negative_prompts(pipeline: InfinityPipeline) -> None:
    longer = ["a car on the beach at night", "a dog", "a red cat on the grass"]
    drawn = latent(pipeline, PROMPTS, 0, 1, 2, negative_prompt=longer, guidance_scale=0.0)
    expected = latent(pipeline, longer, 0, 1, 2, guidance_scale=1.0)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_no_negative_prompt_is_the_learnt_state_of_no_text(pipeline: InfinityPipeline) -> None:
    before = latent(pipeline, "a dog", 3)
    own = latent(pipeline, "a dog", 3, negative_prompt="a cat")
    learnt = pipeline.transformer.unconditional.data
    kept = learnt.clone()
    learnt.mul_(-3)
    moved = latent(pipeline, "a dog", 3, negative_prompt="")
    assert (moved != before).any() and torch.equal(latent(pipeline, "a dog", 3, negative_prompt="a cat"), own)
    learnt.copy_(kept)


def test_images_of_one_prompt_stand_beside_each_other(pipeline: InfinityPipeline) -> None:
    four = latent(pipeline, PROMPTS[:2], 0, 1, 2, 3, num_images_per_prompt=2)
    each = [latent(pipeline, PROMPTS[index // 2], index) for index in range(4)]
    torch.testing.assert_close(four, torch.cat(each), rtol=0, atol=1e-5)


def test_the_prompt_matters_and_one_generator_will_do(pipeline: InfinityPipeline) -> None:
    first, second = (
        pipeline(prompt, generator=torch.Generator().manual_seed(0), output_type="latent").images
        for prompt in PROMPTS[:2]
    )
    assert (first != second).any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"guidance_scale": [3.0] * 4}, {}),
        ({"temperature": [0.5] * 4}, {}),
        ({"negative_prompt": ["a car"]}, {"negative_prompt": "a car"}),
        ({"negative_prompt": ""}, {}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0, "negative_prompt": "a car on the beach"}),
        ({"height": 8, "width": 8}, {}),
        ({"guidance_scale": 1.0, "cfg_insertion_layer": [-1, 0]}, {"guidance_scale": 1.0}),
    ],
)
def test_arguments_that_mean_the_same(
    pipeline: InfinityPipeline, changes: dict[str, object], expected: dict[str, object]
) -> None:
    assert torch.equal(latent(pipeline, "a dog", 3, **changes), latent(pipeline, "a dog", 3, **expected))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": [3.0, 3.0, 3.0, 9.0]},
        {"temperature": [0.5, 0.5, 0.5, 5.0]},
        {"negative_prompt": "a blue cat"},
        {"cfg_insertion_layer": [-1]},
        {"cfg_insertion_layer": [-2, 0]},
        {"top_k": 1},
        {"top_p": 0.6},
    ],
)
def test_arguments_that_make_a_difference(pipeline: InfinityPipeline, changes: dict[str, object]) -> None:
    assert (latent(pipeline, "a dog", 3, **changes) != latent(pipeline, "a dog", 3)).any()


def test_a_model_may_have_settings_of_its_own(pipeline: InfinityPipeline) -> None:
    own = InfinityPipeline(**pipeline.components, scale_grids=GRIDS, scale_prefixes=PREFIXES, sampling=OWN)
    own.set_progress_bar_config(disable=True)
    assert torch.equal(latent(own, "a dog", 3), latent(pipeline, "a dog", 3, **OWN))
    assert (latent(own, "a dog", 3) != latent(pipeline, "a dog", 3)).any()
    assert torch.equal(latent(own, "a dog", 3, temperature=0.5, guidance_scale=3.0), latent(pipeline, "a dog", 3))
    with pytest.raises(ValueError, match=r"backbone\.sampling has no 'tau'; choose among guidance_scale, temperature"):
        InfinityPipeline(**pipeline.components, scale_grids=GRIDS, scale_prefixes=PREFIXES, sampling={"tau": 1.0})


def test_guidance_inside_and_on_logits_agree_where_there_is_nothing_to_guide(pipeline: InfinityPipeline) -> None:
    same = {"negative_prompt": "a dog", "guidance_scale": 3.0}
    plain = latent(pipeline, "a dog", 3, guidance_scale=1.0)
    for layers in ([0], [-1], [-2, 0]):
        guided = latent(pipeline, "a dog", 3, cfg_insertion_layer=layers, **same)
        torch.testing.assert_close(guided, plain, rtol=0, atol=1e-5)


def test_sizes_follow_the_schedules(pipeline: InfinityPipeline) -> None:
    assert pipeline("a dog", height=6, width=12).images[0].size == (12, 6)
    assert pipeline("a dog", height=6, width=6).images[0].size == (6, 6)
    assert (pipeline.num_scales, pipeline.cell) == (4, 2)


def test_every_scale_is_told(pipeline: InfinityPipeline) -> None:
    seen: list[int] = []
    pipeline("a dog", callback_on_scale_end=[lambda index, generation: seen.append(index)])
    assert seen == [0, 1, 2, 3]


def test_images_are_encoded_in_the_shape_that_is_drawn(pipeline: InfinityPipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    feature = pipeline.encode_image([Image.fromarray(pixels)], 2)
    pixel_values = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    expected = quantise(pipeline.vae.encode(pixel_values), [(1, 1), (2, 2)]).features[-1]
    torch.testing.assert_close(feature, expected)
    assert pipeline.encode_image([Image.fromarray(pixels)], 2, height=6, width=12).shape == (1, BITS, 3, 6)


def test_patches_of_cells_are_drawn_twice_as_large(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(
        tmp_path, transformer=tiny_transformer(patchify=True, token_bits=12), vae=tiny_vae(latent_channels=3)
    )
    assert pipeline("a dog").images[0].size == (16, 16)
    assert pipeline.encode_image([Image.new("RGB", (16, 16))], 3).shape == (1, 3, 8, 8)


def test_a_saved_pipeline_draws_the_same(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = InfinityPipeline.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.schedules.grids == pipeline.schedules.grids
    assert torch.equal(latent(loaded, PROMPTS[1], 4), latent(pipeline, PROMPTS[1], 4))


def test_half_precision_draws(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = InfinityPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.transformer.head.weight.dtype == loaded.vae.encoder.conv_in.weight.dtype == torch.float32
    assert loaded("a red dog").images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "0 prompts"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "2 prompts and 1 negative prompts"),
        ({"guidance_scale": [3.0, 3.0]}, "guidance_scale has 2 values, but 4 scales"),
        ({"temperature": [1.0] * 5}, "temperature has 5 values"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"cfg_insertion_layer": [1]}, "-1 .the last block. to -2"),
        ({"cfg_insertion_layer": []}, "cfg_insertion_layer is"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
        ({"height": 8}, "give both"),
        (
            {"prompt": "a dog " * 20},
            r"a prompt of 41 tokens, .* takes 12: shorten 'a dog .{,60}', or give truncate=True",
        ),
    ],
)
def test_impossible_arguments_are_said(pipeline: InfinityPipeline, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a dog", **arguments})


def test_long_prompts_are_cut_on_request(pipeline: InfinityPipeline) -> None:
    kept = "a dog " * 5 + "a"
    cut = latent(pipeline, "a dog " * 20, 0, truncate=True)
    torch.testing.assert_close(cut, latent(pipeline, kept, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"vae": tiny_vae(latent_channels=8)}, "4 bits of a token, by the image tokenizer 8"),
        ({"transformer": tiny_transformer(text_channels=24)}, "24 text channels"),
        ({"transformer": tiny_transformer(max_scales=3)}, "4 scales or more, by the schedule 3"),
    ],
)
def test_parts_that_do_not_match_are_said(tmp_path: Path, part: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(tmp_path, **part)
