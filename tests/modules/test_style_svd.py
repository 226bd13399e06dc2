"""The style generator on real models at tiny size: what must not change does not, what must change does."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from src.data.request import Request
from src.modules.style_blending import StyleBlending
from src.modules.style_svd import StyleGenerator
from tests.modules.scale_ar import tiny_infinity, tiny_switti

PIPELINES = {
    "infinity": lambda folder: tiny_infinity.tiny_pipeline(
        folder, vae=tiny_switti.shaken(tiny_infinity.tiny_vae(), 1.0)
    ),
    "switti": lambda folder: tiny_switti.tiny_pipeline(folder, use_ar=False),
    "switti-ar": lambda folder: tiny_switti.tiny_pipeline(folder, use_ar=True),
}
SAMPLING = {"guidance_scale": 2.0}
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


def styled(requests: list[Request], style: str) -> list[Request]:
    return [Request(request.prompt, request.seed, reference=style) for request in requests]


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
    requests = [*PLAIN, *styled(PLAIN, styles[0]), *styled(PLAIN, styles[1]), *styled(PLAIN, "text:a blue house")]
    together = pixels(generator(backbone, **options).sample(requests))
    alone = pixels([generator(backbone, **options).sample([request])[0] for request in requests])
    assert np.abs(together - alone).max() <= 1


def test_words_are_a_style_too(backbone) -> None:
    plain = pixels(generator(backbone).sample(PLAIN))
    named = styled(PLAIN[:1], f"text:{PLAIN[1].prompt}")
    assert (pixels(generator(backbone).sample(named)) != plain[:1]).any()
    own = [Request(request.prompt, request.seed, reference=f"text:{request.prompt}") for request in PLAIN]
    assert np.abs(pixels(generator(backbone).sample(own)) - plain).max() <= 1


def test_correction_starts_right_after_blending_by_default(backbone) -> None:
    assert generator(backbone).identity() == generator(backbone, correct_from=2).identity()
    assert generator(backbone).correct_from == 2
    assert generator(backbone, correct=False).correct_from is None


def test_alpha_zero_replaces_the_whole_feature(backbone, styles) -> None:
    images = generator(backbone, alpha=0.0, correct=False).sample(styled(PLAIN, styles[0]))
    feature = backbone.encode_image([Image.open(styles[0])], 2)

    def replace(scale_index: int, generation) -> None:
        if scale_index == 1:
            generation.feature = feature.expand_as(generation.feature).clone()

    seeded = [torch.Generator().manual_seed(request.seed) for request in PLAIN]
    prompts = [request.prompt for request in PLAIN]
    expected = backbone(prompts, generator=seeded, callback_on_scale_end=[replace], **SAMPLING).images
    assert np.abs(pixels(images) - pixels(expected)).max() <= 1


def test_the_identity_names_what_changes_images_and_nothing_else(backbone) -> None:
    same, other = generator(backbone).identity(), generator(backbone, alpha=2.0).identity()
    assert same == generator(backbone, batch_size=3).identity()
    assert {key for key in same if same[key] != other[key]} == {"reference.style"}
    with torch.no_grad():
        next(backbone.transformer.parameters()).add_(1)
    assert generator(backbone).identity()["backbone"] != same["backbone"]


def test_equal_singular_values_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    hook = StyleBlending(None, None)
    with caplog.at_level(logging.WARNING):
        hook._record(style=torch.eye(4).reshape(1, 4, 2, 2))
    assert "which one dominates is chance" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"top_k": 9}, "from 1 to 4"),
        ({"blend_after": 4}, "draws 4 scales, so give 1 to 3"),
        ({"correct_from": 1}, "give a pass from 2"),
        ({"correct_from": 4}, "to 3, or null"),
        ({"noise": "same"}, "choose one of shared, independent"),
    ],
)
def test_impossible_options_are_said(backbone, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        generator(backbone, **options)
