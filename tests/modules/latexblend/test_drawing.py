"""Latents that are drawn with concepts against the paper's formulas, which ``drawing.py`` writes out once more."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.data.request import Request
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.attention import attention_grid
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.guidance import BlendingGuidance
from tests.modules.latexblend.drawing import ByHand
from tests.modules.latexblend.test_blending import bank
from tests.tiny import tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}
PROMPTS = [
    # Tokens are counted from the start token, 0; a mention is its article and its noun, wherever adjectives stand.
    (
        "a red <rex> next to a <tom> on the grass",
        "a red dog next to a dog on the grass",
        {"rex": [1, 3], "tom": [6, 7]},
    ),
    ("a <tom> and a <max> and a <rex>", "a dog and a dog and a dog", {"tom": [1, 2], "max": [4, 5], "rex": [7, 8]}),
    ("a car", "a car", {}),
    ("photo of a <max>", "photo of a dog", {"max": [3, 4]}),
]
"""What is asked for, what the text encoder reads, and where each concept stands."""


@pytest.fixture(params=MAKERS)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(MAKERS[request.param](tmp_path), request.param)


def drawn(backbone: UNetBackbone, banks: dict[str, ConceptBank], options: dict, sampling: dict) -> Tensor:
    """Latents of all prompts, drawn in one batch, as the decoder gets them."""
    seen: list[Tensor] = []
    watched = backbone.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    generator = ConceptGenerator(backbone, banks, {"num_inference_steps": 3, **sampling}, batch_size=8, **options)
    generator.sample([Request(prompt, seed) for seed, (prompt, *_) in enumerate(PROMPTS)])
    watched.remove()
    return torch.cat(seen) * backbone.vae.config.scaling_factor


CASES = {
    "replaced": ({}, {}, {}),
    "context kept": ({"keep_context": True}, {}, {"context": True}),
    "bound": ({"rectification": {"bind": True}}, {}, {"bind": True}),
    "begun late": ({"blending_start": 0.3}, {"num_inference_steps": 5}, {"start": 0.3, "steps": 5}),
    "unguided": ({}, {"guidance_scale": 1.0}, {"scale": 1.0}),
    "another scale": ({}, {"guidance_scale": 3.0, "num_inference_steps": 4}, {"scale": 3.0, "steps": 4}),
    "led away": ({}, {"negative_prompt": "a blue house"}, {"negative": "a blue house"}),
    "kept apart": (
        {"blending_guidance": BlendingGuidance(2, 0.05)},
        {"num_inference_steps": 4},
        {"guided": 2, "length": 0.05, "steps": 4},
    ),
    "kept apart to the end": ({"blending_guidance": BlendingGuidance(9, 0.02)}, {}, {"guided": 9, "length": 0.02}),
}


@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_the_formulas(backbone: UNetBackbone, case: str) -> None:
    options, sampling, by_hand = CASES[case]
    banks = {name: bank(backbone, seed) for seed, name in enumerate(("rex", "tom", "max"))}
    found = drawn(backbone, banks, {"keep_context": False, **options}, sampling)
    formulas, plain = ByHand(backbone.pipeline, **by_hand), ByHand(backbone.pipeline)
    for seed, (_, read, at) in enumerate(PROMPTS):
        places = [(banks[name].rows, positions) for name, positions in at.items()]
        expected = formulas.latents(read, places, seed)
        assert (found[seed] - expected[0]).abs().max() < 1e-4 * expected.abs().max(), (case, read)
        # What the tolerance cannot hide: a concept moves latents a hundred times as far.
        if places and case == "replaced":
            assert (plain.latents(read, [], seed) - expected).abs().max() > 1e-2 * expected.abs().max()


def test_the_context_of_a_concept_is_that_of_its_own_noun(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    banks = {"rex": bank(backbone, 0, "dog"), "tom": bank(backbone, 1, "cat")}
    offsets = ConceptGenerator(backbone, banks, keep_context=True).banks
    formulas = ByHand(backbone.pipeline)
    for name, noun in (("rex", "dog"), ("tom", "cat")):
        generic = formulas.projected_alone(f"photo of a {noun}", [3, 4])
        for layer, row in banks[name].rows.items():
            assert torch.allclose(offsets[name].rows[layer], row - generic[layer], atol=1e-5), layer


@pytest.mark.parametrize(
    ("cells", "latents", "expected"),
    [(64, (8, 8), (8, 8)), (16, (8, 8), (4, 4)), (24, (8, 12), (4, 6)), (12, (5, 7), (3, 4)), (6, (12, 8), (3, 2))],
)
def test_a_map_has_the_shape_of_the_latents(cells: int, latents: tuple[int, int], expected: tuple[int, int]) -> None:
    assert attention_grid(cells, latents) == expected
