"""The style generator on real models at tiny size: what must not change does not, what must change does."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from src.data.request import ImageStyle, Request, TextStyle
from src.eval.draw import draw_missing
from src.modules.next_scale.loop import Generation
from src.modules.style_svd.blending import StyleBlending, decay_weights, principal_features
from src.modules.style_svd.generator import SPECTRA, StyleGenerator
from tests.modules.next_scale import tiny_infinity, tiny_switti

PIPELINES = {
    "infinity": lambda folder: tiny_infinity.tiny_pipeline(
        folder, vae=tiny_switti.shaken(tiny_infinity.tiny_vae(), 1.0)
    ),
    "switti": lambda folder: tiny_switti.tiny_pipeline(folder, use_ar=False),
    "switti-ar": lambda folder: tiny_switti.tiny_pipeline(folder, use_ar=True),
}
SAMPLING = {"guidance_scale": 2.0}
LONG = "a red dog on the grass " * 20
PLAIN = [Request("a dog on the grass", 0), Request("a red cat", 1)]


@pytest.fixture(params=PIPELINES)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> DiffusionPipeline:
    return PIPELINES[request.param](tmp_path)


@pytest.fixture
def styles(tmp_path: Path) -> list[str]:
    paths = []
    for index, (first, second) in enumerate([("navy", "white"), ("orange", "black")]):
        image = Image.new("RGB", (64, 64), first)
        image.paste(second, (8 * index, 8, 40, 40))
        image.save(tmp_path / f"style{index}.png")
        paths.append(str(tmp_path / f"style{index}.png"))
    return paths


def generator(backbone: DiffusionPipeline, **options) -> StyleGenerator:
    return StyleGenerator(backbone, **{"blend_after": 2, "sampling": SAMPLING, **options})


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def styled(requests: list[Request], style: str | TextStyle) -> list[Request]:
    style = style if isinstance(style, TextStyle) else ImageStyle(style)
    return [Request(request.prompt, request.seed, style) for request in requests]


def test_a_request_without_a_reference_is_what_the_pipeline_draws(backbone) -> None:
    drawn = generator(backbone).sample(PLAIN)
    for request, image in zip(PLAIN, drawn, strict=True):
        seeded = [torch.Generator().manual_seed(request.seed)]
        expected = backbone([request.prompt], generator=seeded, **SAMPLING).images[0]
        assert np.abs(pixels([image]) - pixels([expected])).max() <= 1


def test_correction_alone_changes_nothing(backbone, styles) -> None:
    drawn = generator(backbone, blend=False).sample(styled(PLAIN, styles[0]))
    assert np.abs(pixels(drawn) - pixels(generator(backbone).sample(PLAIN))).max() <= 1


@pytest.mark.parametrize("options", [{}, {"correct": False}, {"correct_from": 3}, {"noise": "independent"}])
def test_a_style_shows_and_the_backbone_stays_as_it_was(backbone, styles, options) -> None:
    plain = pixels(generator(backbone).sample(PLAIN))
    first, second = (pixels(generator(backbone, **options).sample(styled(PLAIN, style))) for style in styles)
    assert (first != plain).any(axis=(1, 2, 3)).all()
    assert (first != second).any(axis=(1, 2, 3)).all()
    assert np.array_equal(pixels(generator(backbone).sample(PLAIN)), plain)


@pytest.mark.parametrize("options", [{}, {"correct": False}, {"correct_from": 3}, {"noise": "independent"}])
def test_an_image_does_not_depend_on_what_else_is_asked_for(backbone, styles, options) -> None:
    requests = [*PLAIN, *styled(PLAIN, styles[0]), *styled(PLAIN, styles[1]), *styled(PLAIN, TextStyle("a blue house"))]
    together = pixels(generator(backbone, **options).sample(requests))
    alone = pixels([generator(backbone, **options).sample([request])[0] for request in requests])
    assert np.abs(together - alone).max() <= 1


@pytest.mark.parametrize("correct_from", [2, 3])
def test_paths_share_attention_from_the_corrected_pass_on(backbone, styles, correct_from, monkeypatch) -> None:
    shared, step = [], Generation.step

    def watched(generation: Generation, scale_index: int) -> None:
        shared.append(generation.streams.shared)
        step(generation, scale_index)

    monkeypatch.setattr(Generation, "step", watched)
    generator(backbone, correct_from=correct_from).sample(styled(PLAIN, styles[0]))
    assert shared == [scale_index >= correct_from for scale_index in range(4)]


def test_words_are_a_style_too(backbone) -> None:
    plain = pixels(generator(backbone).sample(PLAIN))
    named = styled(PLAIN[:1], TextStyle(PLAIN[1].prompt))
    assert (pixels(generator(backbone).sample(named)) != plain[:1]).any()
    own = [Request(request.prompt, request.seed, style=TextStyle(request.prompt)) for request in PLAIN]
    assert np.abs(pixels(generator(backbone).sample(own)) - plain).max() <= 1


def test_prompts_in_styles_are_one_call_for_each_kind_of_style(backbone, styles, monkeypatch) -> None:
    calls, call, drawing = [], type(backbone).__call__, generator(backbone)

    def counted(pipeline: DiffusionPipeline, prompts: list[str], **arguments):
        calls.append(len(prompts))
        return call(pipeline, prompts, **arguments)

    monkeypatch.setattr(type(backbone), "__call__", counted)
    requests = [*styled(PLAIN, styles[0]), *styled(PLAIN, styles[1]), *styled(PLAIN, TextStyle("a blue house"))]
    assert len(drawing.sample(requests)) == 6
    # Two prompts with two styles each share two content paths; words are drawn along as prompts of their own.
    assert sorted(calls) == [2, 4]


def test_a_style_image_is_encoded_and_decomposed_once_whatever_its_file(backbone, styles, tmp_path) -> None:
    seen = []
    backbone.vae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    Image.open(styles[0]).save(tmp_path / "copy.bmp")
    drawing = generator(backbone)
    drawing.sample(styled(PLAIN, styles[0]))
    drawing.sample(styled(PLAIN, str(tmp_path / "copy.bmp")))
    assert seen == [1]
    assert drawing.style_features(styles[0]) is drawing.style_features(str(tmp_path / "copy.bmp"))


@pytest.mark.parametrize("reference", ["image", TextStyle("a blue house")])
def test_images_tell_the_spectra_that_were_blended(backbone, styles, reference) -> None:
    drawing, path = generator(backbone), styles[0] if reference == "image" else reference
    drawn = drawing.sample([*PLAIN, *styled(PLAIN, path)])
    assert not any(SPECTRA in image.info for image in drawn[:2])
    told = [json.loads(image.info[SPECTRA]) for image in drawn[2:]]
    for each in told:
        assert each.keys() == {"generated", "style"}
        for spectrum in each.values():
            values = spectrum["singular_values"]
            assert len(values) == 4 and values == sorted(values, reverse=True)
            assert spectrum["gap"] == pytest.approx(1 - values[1] / values[0], abs=1e-5)
    assert told[0]["generated"] != told[1]["generated"]
    if reference == "image":
        assert told[0]["style"] == told[1]["style"] == drawing.style_features(path).spectrum(0)


def test_settings_that_are_left_open_are_the_models_own(backbone) -> None:
    own = backbone.sampling["guidance_scale"]
    left_open, given = (generator(backbone, sampling={"guidance_scale": scale}) for scale in (None, own))
    assert left_open.identity() == given.identity()
    assert left_open.identity()["sampling"] == f"guidance_scale={own}"
    assert np.array_equal(pixels(left_open.sample(PLAIN)), pixels(given.sample(PLAIN)))


def test_prompts_are_cut_on_request_only(backbone) -> None:
    drawing = generator(backbone)
    with pytest.raises(ValueError, match="or give truncate=True"):
        drawing.sample([*PLAIN, Request(LONG, 0)])
    cut, short = drawing.sample([Request(LONG, 0, truncate=True), PLAIN[0]])
    asked = generator(backbone, sampling={**SAMPLING, "truncate": True}).sample([Request(LONG, 0)])[0]
    assert np.array_equal(pixels([cut]), pixels([asked]))
    assert np.abs(pixels([short]) - pixels(drawing.sample(PLAIN[:1]))).max() <= 1


@pytest.mark.parametrize(
    "long", [Request(LONG, 0), Request(LONG, 0, style=TextStyle("a blue house")), styled(PLAIN, TextStyle(LONG))[0]]
)
def test_a_text_that_is_too_long_is_said_before_anything_is_drawn(backbone, tmp_path, long) -> None:
    drawing, encoded = generator(backbone, batch_size=1), []
    backbone.text_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output))
    for draw in (drawing.sample, lambda requests: draw_missing(drawing, requests, tmp_path / "images")):
        with pytest.raises(ValueError, match=r"a prompt of \d+ tokens, but the text encoder takes"):
            draw([*PLAIN, long])
    assert not encoded and not list(tmp_path.glob("images/*.png"))
    drawing.check([*PLAIN, replace(long, truncate=True)])
    generator(backbone, sampling={**SAMPLING, "truncate": True}).check([long])


def test_patches_of_cells_are_blended_in_cells(tmp_path, styles) -> None:
    backbone = tiny_infinity.tiny_pipeline(
        tmp_path,
        transformer=tiny_infinity.tiny_transformer(patchify=True, token_bits=12),
        vae=tiny_switti.shaken(tiny_infinity.tiny_vae(latent_channels=3), 1.0),
    )
    drawing = generator(backbone)
    assert drawing.style_features(styles[0]).emphasised.shape == (1, 3, 8, 8)
    plain, drawn = (pixels(drawing.sample(requests)) for requests in (PLAIN, styled(PLAIN, styles[0])))
    assert drawn.shape == (2, 16, 16, 3)
    assert (drawn != plain).any(axis=(1, 2, 3)).all()
    corrected = pixels(generator(backbone, blend=False).sample(styled(PLAIN, styles[0])))
    assert np.abs(corrected - plain).max() <= 1


def test_correction_starts_right_after_blending_by_default(backbone) -> None:
    assert generator(backbone).identity() == generator(backbone, correct_from=2).identity()
    assert generator(backbone).correct_from == 2
    assert generator(backbone, correct=False).correct_from is None


def test_alpha_zero_replaces_the_whole_feature(backbone, styles) -> None:
    images = generator(backbone, alpha=0.0, correct=False).sample(styled(PLAIN, styles[0]))
    feature = backbone.encode_image([Image.open(styles[0])], 2)

    def replaced(scale_index: int, generation) -> None:
        if scale_index == 1:
            generation.feature = feature.expand_as(generation.feature).clone()

    seeded = [torch.Generator().manual_seed(request.seed) for request in PLAIN]
    prompts = [request.prompt for request in PLAIN]
    expected = backbone(prompts, generator=seeded, callback_on_scale_end=[replaced], **SAMPLING).images
    assert np.abs(pixels(images) - pixels(expected)).max() <= 1


def test_the_identity_names_what_changes_images_and_nothing_else(backbone) -> None:
    same, other = generator(backbone).identity(), generator(backbone, alpha=2.0).identity()
    assert same == generator(backbone, batch_size=3).identity()
    assert {key for key in same if same[key] != other[key]} == {"reference.style"}
    with torch.no_grad():
        next(backbone.transformer.parameters()).add_(1)
    assert generator(backbone).identity()["backbone"] != same["backbone"]


def test_equal_singular_values_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    hook = StyleBlending(None, decay_weights(1.0, 4))
    with caplog.at_level(logging.WARNING):
        hook._record(style=principal_features(torch.eye(4).reshape(1, 4, 2, 2), hook.weights))
    assert "which one dominates is chance" in caplog.text


def test_images_have_equally_many_styles(backbone) -> None:
    weights = decay_weights(1.0, 4)
    styles = principal_features(torch.randn(3, 4, 4, 4), weights)
    with pytest.raises(ValueError, match="3 styles were given for 2 images; give each as many"):
        backbone(["a dog", "a cat"], callback_on_scale_end=[StyleBlending(styles, weights, blend_after=2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"top_k": 9}, "from 1 to 4"),
        ({"blend_after": 4}, "draws 4 scales, so give 1 to 3"),
        ({"correct_from": 0}, "correct_from is 0; give a pass from 2"),
        ({"correct_from": 1}, "give a pass from 2"),
        ({"correct_from": 4}, "to 3, or null"),
        ({"noise": "same"}, "choose one of shared, independent"),
        ({"sampling": {"guidance": 2.0}}, r"method\.sampling has no 'guidance'; choose among negative_prompt, "),
        ({"sampling": {"negative_prompt": LONG}}, r"a prompt of \d+ tokens, but the text encoder takes"),
        ({"sampling": {"num_images_per_prompt": 2}}, "has no 'num_images_per_prompt'"),
    ],
)
def test_impossible_options_are_said(backbone, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        generator(backbone, **options)
