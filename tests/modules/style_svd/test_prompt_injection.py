"""One pass told another prompt: what is told, when, and that nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from src.data.request import Request, TextStyle
from src.modules.next_scale.loop import Generation
from src.modules.style_svd.injection import InjectionGenerator, PromptInjection
from tests.modules.next_scale.tiny_switti import tiny_pipeline

SAMPLING = {"guidance_scale": 2.0}
BASE, OTHER = ["a dog on the grass", "a blue house"], ["a red cat", "a cat at night"]
REQUESTS = [
    Request(base, seed, style=TextStyle(other)) for seed, (base, other) in enumerate(zip(BASE, OTHER, strict=True))
]


@pytest.fixture(params=[False, True], ids=["own-scale", "autoregressive"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> DiffusionPipeline:
    return tiny_pipeline(tmp_path, use_ar=request.param)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def drawn(backbone: DiffusionPipeline, prompts: list[str]) -> np.ndarray:
    seeded = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pixels(backbone(prompts, generator=seeded, **SAMPLING).images)


def injected(backbone: DiffusionPipeline, at: int | str, requests: list[Request] = REQUESTS, **options) -> np.ndarray:
    return pixels(InjectionGenerator(backbone, at, sampling=SAMPLING, **options).sample(requests))


def test_no_pass_and_all_passes_are_the_two_prompts(backbone) -> None:
    assert np.array_equal(injected(backbone, "base"), drawn(backbone, BASE))
    assert np.array_equal(injected(backbone, "injected"), drawn(backbone, OTHER))


@pytest.mark.parametrize("at", range(4))
def test_injecting_the_prompt_itself_changes_nothing(backbone, at: int) -> None:
    requests = [Request(text, seed, style=TextStyle(text)) for seed, text in enumerate(BASE)]
    assert np.abs(injected(backbone, at, requests) - drawn(backbone, BASE)).max() <= 1


@pytest.mark.parametrize("at", range(4))
def test_each_pass_hears_the_prompt_that_it_should(backbone, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    step = Generation.step

    def recorded(generation: Generation, scale_index: int) -> None:
        heard.append(generation.condition["keys"][:2].clone())
        step(generation, scale_index)

    monkeypatch.setattr(Generation, "step", recorded)
    injected(backbone, at)
    base, other = (backbone.encode_prompt(texts)["keys"] for texts in (BASE, OTHER))
    for scale_index, keys in enumerate(heard):
        torch.testing.assert_close(keys, other if scale_index == at else base)


def test_one_route_alone_can_change(backbone) -> None:
    hook = PromptInjection(1, routes=["keys"])
    hook.base, hook.injected = backbone.encode_prompt(BASE), backbone.encode_prompt(OTHER)
    mixed = hook._mixed()
    assert torch.equal(mixed["keys"], hook.injected["keys"])
    assert torch.equal(mixed["values"], hook.base["values"])
    assert torch.equal(mixed["mask"], hook.injected["mask"])
    with pytest.raises(ValueError, match=r"method\.routes has no 'key'; choose among"):
        injected(backbone, 1, routes=["key"])


def test_an_image_does_not_depend_on_the_batch(backbone) -> None:
    together = injected(backbone, 2)
    alone = np.concatenate([injected(backbone, 2, [request]) for request in REQUESTS])
    assert np.abs(together - alone).max() <= 1


def test_what_cannot_be_injected_is_said(backbone) -> None:
    with pytest.raises(ValueError, match="a pass from 0 to 3, base for none or injected for all"):
        InjectionGenerator(backbone, 4)
    with pytest.raises(ValueError, match=r"method\.sampling has no 'cfg'"):
        InjectionGenerator(backbone, 1, sampling={"cfg": 2.0})
    with pytest.raises(ValueError, match="needs words to inject"):
        InjectionGenerator(backbone, 1).sample([Request("a dog", 0)])


def test_the_backbone_is_left_as_it_was(backbone) -> None:
    before = drawn(backbone, BASE)
    injected(backbone, 1)
    assert np.array_equal(drawn(backbone, BASE), before)
