"""Prompts to images with Switti: what a caller may ask, and what it may rely on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.modules.next_scale.loop import Generation
from src.modules.next_scale.switti.pipeline import SwittiPipeline
from tests.modules.next_scale.tiny_switti import tiny_pipeline, tiny_transformer, tiny_vqvae

KINDS = ("pil", "np", "pt", "latent")
PROMPTS = ["a red dog", "a cat on the grass", "a blue car"]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(pipeline: SwittiPipeline, *args: object, **kwargs: object) -> Tensor:
    return pipeline(*args, output_type="latent", **kwargs).images


@pytest.mark.parametrize("use_ar", [False, True])
def test_an_image_does_not_depend_on_the_others_in_the_batch(tmp_path: Path, use_ar: bool) -> None:
    pipeline = tiny_pipeline(tmp_path, use_ar=use_ar)
    negatives = ["", "a dog", "very small"]
    together = latents(pipeline, PROMPTS, negatives, 3.0, generator=generators(5, 6, 7))
    for index in range(3):
        alone = latents(pipeline, PROMPTS[index], negatives[index], 3.0, generator=generators(5 + index))
        torch.testing.assert_close(alone, together[index : index + 1])


def test_images_of_a_prompt_lie_beside_each_other(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    four = latents(pipeline, PROMPTS[:2], num_images_per_prompt=2, generator=generators(1, 2, 3, 4))
    for index in range(4):
        alone = latents(pipeline, PROMPTS[index // 2], generator=generators(index + 1))
        torch.testing.assert_close(alone, four[index : index + 1])


def test_a_saved_pipeline_draws_the_same(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path, use_ar=True)
    pipeline.save_pretrained(tmp_path / "saved")
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    loaded = SwittiPipeline.from_pretrained(tmp_path / "saved", use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    first, second = (pipe(PROMPTS, generator=generators(0)[0], output_type="np").images for pipe in (pipeline, loaded))
    assert np.array_equal(first, second)


def test_outputs_are_what_other_pipelines_return(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    of_type = {kind: pipeline(PROMPTS[:2], generator=generators(1, 2), output_type=kind).images for kind in KINDS}
    assert of_type["latent"].shape == (2, 4, 4, 4) and of_type["latent"].dtype == torch.float32
    assert [image.size for image in of_type["pil"]] == [(8, 8)] * 2 and pipeline.resolution == 8
    assert of_type["np"].shape == (2, 8, 8, 3) and of_type["pt"].shape == (2, 3, 8, 8)
    assert np.abs(np.stack([np.array(image) for image in of_type["pil"]]) - 255 * of_type["np"]).max() <= 0.5001
    decoded = (pipeline.vae.decode(of_type["latent"]) + 1) / 2
    torch.testing.assert_close(of_type["pt"], decoded)
    assert isinstance(pipeline(PROMPTS[0], return_dict=False), tuple)


def test_text_and_negative_text_matter_only_where_they_should(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)

    def drawn(prompt: str, negative: str | None = None, **settings: float) -> Tensor:
        return latents(pipeline, prompt, negative, generator=generators(0), **settings)

    assert not torch.equal(drawn("a red dog"), drawn("a blue car"))
    assert torch.equal(drawn("a red dog"), drawn("a red dog", ""))
    assert not torch.equal(drawn("a red dog"), drawn("a red dog", "a blue car"))
    assert torch.equal(drawn("a red dog", guidance_scale=0.0), drawn("a red dog", "a blue car", guidance_scale=0.0))
    assert torch.equal(drawn("a red dog", turn_off=0), drawn("a red dog", guidance_scale=0.0))
    assert torch.equal(drawn("a red dog"), drawn("a red dog", guidance_scale=[6.0 * i / 3 for i in range(4)]))
    assert not torch.equal(drawn("a red dog"), drawn("a red dog", more_smooth=True, smooth_start=2))


def test_a_model_may_have_settings_of_its_own(tmp_path: Path) -> None:
    pipeline, settings = tiny_pipeline(tmp_path), {"guidance_scale": 2.0, "turn_off": 2, "last_scale_temp": 0.5}
    own = SwittiPipeline(**pipeline.components, sampling=settings)
    own.set_progress_bar_config(disable=True)

    def drawn(pipeline: SwittiPipeline, **given: float) -> Tensor:
        return latents(pipeline, "a red dog", generator=generators(0), **given)

    assert torch.equal(drawn(own), drawn(pipeline, **settings))
    assert torch.equal(drawn(own, guidance_scale=6.0, turn_off=4), drawn(pipeline))
    assert not torch.equal(drawn(own), drawn(pipeline))
    with pytest.raises(ValueError, match="sampling has no 'cfg'; choose among guidance_scale, turn_on"):
        SwittiPipeline(**pipeline.components, sampling={"cfg": 6.0})


def test_text_is_what_both_encoders_say(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path)
    condition = pipeline.encode_prompt(["a red dog"])
    tokens = pipeline.tokenizer(["a red dog"], return_tensors="pt").input_ids
    states = [encoder(tokens).last_hidden_state for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    length = tokens.shape[1]
    assert condition["mask"].flatten().tolist() == [True] * length + [False] * (32 - length)
    pooled = pipeline.text_encoder_2(tokens).pooler_output
    expected = pipeline.transformer.condition(torch.cat(states, -1), torch.ones(1, length, dtype=torch.bool), pooled)
    torch.testing.assert_close(condition["start"], expected["start"])
    torch.testing.assert_close(condition["keys"][..., :length, :], expected["keys"])
    torch.testing.assert_close(condition["values"][..., :length, :], expected["values"])


def test_hooks_see_every_scale_and_may_change_what_follows(tmp_path: Path) -> None:
    pipeline, seen = tiny_pipeline(tmp_path), []

    def watch(scale_index: int, generation: Generation) -> None:
        seen.append((scale_index, generation.feature.shape[0], generation.images))

    def fork(scale_index: int, generation: Generation) -> None:
        if scale_index == 1:
            generation.fork(2)

    images = pipeline(PROMPTS[:2], callback_on_scale_end=[watch, fork], generator=generators(1, 2)).images
    assert seen == [(0, 2, 2), (1, 2, 2), (2, 4, 2), (3, 4, 2)]
    assert len(images) == 4


def test_half_precision_draws_finite_images(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path).to(torch.bfloat16)
    feature = latents(pipeline, PROMPTS, generator=generators(1, 2, 3))
    assert feature.dtype == torch.float32
    assert pipeline.decode(feature).isfinite().all()


def test_long_prompts_are_refused_unless_they_may_be_cut(tmp_path: Path) -> None:
    pipeline, long = tiny_pipeline(tmp_path), "a red dog " * 20
    with pytest.raises(ValueError, match="prompt of 62 tokens, but the text encoder takes 32"):
        pipeline(long)
    with pytest.raises(ValueError, match="prompt of 62 tokens"):
        pipeline("a red dog", long)
    cut = latents(pipeline, long, truncate=True, generator=generators(0))
    assert torch.equal(cut, latents(pipeline, "a red dog " * 10, generator=generators(0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "give at least one prompt"),
        ({"prompt": PROMPTS, "negative_prompt": ["a", "b"]}, "3 prompts and 2 negative prompts"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": "a", "output_type": "jpg"}, "pil, np, pt, latent"),
        ({"prompt": "a", "guidance_scale": [1.0]}, "4, one for each scale"),
        ({"prompt": "a", "generator": generators(1, 2)}, "2 generators were given for 1 images"),
    ],
)
def test_impossible_requests_are_said(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(tmp_path)(**arguments)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vae": tiny_vqvae(num_codes=8)}, "expects 16 codes, by the VQ-VAE 8"),
        ({"vae": tiny_vqvae(latent_channels=8)}, "expects 4 channels of a code, by the VQ-VAE 8"),
        ({"transformer": tiny_transformer(text_dim=48)}, "expects 48 text channels, by both text encoders 40"),
        ({"transformer": tiny_transformer(pooled_dim=16)}, "expects 16 pooled text channels"),
    ],
)
def test_parts_of_different_models_are_refused(tmp_path: Path, parts: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwittiPipeline(**{**tiny_pipeline(tmp_path).components, **parts})


def test_the_schedule_is_that_of_the_transformer(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path, sides=(1, 3, 5))
    assert latents(pipeline, "a red dog").shape == (1, 4, 5, 5)
    assert pipeline.resolution == 10
