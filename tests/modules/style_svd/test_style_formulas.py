"""Algorithm 1 of the paper once more: a plain and a styled path beside each other, with attention written out.

Nothing of the method's own code is called by hand, and neither its loop nor its cache. Blocks and draws of the models
are stock; ``tests/modules/next_scale/test_blocks.py`` has their formulas.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from src.data.request import ImageStyle, Request, TextStyle
from src.modules.next_scale.loop import Condition, Generation, NextScaleModel, Streams
from src.modules.style_svd.generator import StyleGenerator
from tests.modules.style_svd.test_style_svd import PIPELINES, SAMPLING

PROMPTS = {"a dog on the grass": 0, "a red cat": 1}
"""Prompts and their seeds."""
WORDS = "a blue house at night"


class Lent:
    """Attention of rows in pairs, plain beside styled; once it lends, styled rows use the plain queries and keys."""

    def __init__(self, remembers: bool) -> None:
        self.remembers, self.lends = remembers, False
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        if self.lends:
            queries, keys = (part[::2].repeat_interleave(2, dim=0) for part in (queries, keys))
        if self.remembers and block in self.seen:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.seen[block], (keys, values), strict=True))
        self.seen[block] = keys, values
        return (scale * queries @ keys.transpose(-1, -2)).softmax(-1) @ values


def emphasised(feature: Tensor, weights: Sequence[float]) -> Tensor:
    """Eq. 5: ``U W S V^T`` of one feature ``(C, H, W)``."""
    left, values, right = torch.linalg.svd(feature.double().flatten(1), full_matrices=False)
    return (left @ torch.diag(torch.tensor(weights, dtype=torch.float64) * values) @ right).view_as(feature).float()


def planned(pipeline: DiffusionPipeline, prompt: str) -> tuple[NextScaleModel, Condition]:
    """The model of a stock call, and the text of its rows: conditional, then unconditional."""
    found: list[tuple[NextScaleModel, Condition]] = []

    def note(scale_index: int, generation: Generation) -> None:
        found.append((generation.model, Condition(generation.condition)))

    pipeline([prompt], generator=[torch.Generator().manual_seed(0)], callback_on_scale_end=[note], **SAMPLING)
    return found[0]


@torch.no_grad()
def features(
    pipeline: DiffusionPipeline,
    prompt: str,
    seed: int,
    style: Tensor | None = None,
    weights: Sequence[float] = (),
    blend_after: int = 2,
    correct_from: int | None = None,
    independent: bool = False,
) -> list[Tensor]:
    """Draw a plain and a styled path: their running sums ``(2, C, H, W)`` after each scale."""
    model, condition = planned(pipeline, prompt)
    condition = Condition({name: part.repeat_interleave(2, dim=0) for name, part in condition.items()})
    memory, sums = Lent(model.cache_capacity is not None), [model.empty_feature(2)]
    own = torch.Generator().manual_seed(seed)
    other = None
    for index in range(model.num_scales):
        memory.lends = correct_from is not None and index >= correct_from
        tokens = model.next_tokens(sums[-1], index) if index else None
        both = None if tokens is None else torch.cat([tokens, tokens])
        conditional, unconditional = model.logits(both, index, condition, memory, Streams()).chunk(2)
        guidance = model.guidance[index]
        logits = unconditional + guidance * (conditional - unconditional)
        noise = torch.empty(logits.shape[1:]).exponential_(generator=own)
        further = noise if other is None else torch.empty(logits.shape[1:]).exponential_(generator=other)
        codes = model.residual(logits, torch.stack([noise, further]), index)
        feature = model.accumulate(sums[-1], codes, index)
        if index == blend_after - 1 and style is not None:
            styled = emphasised(style, weights) + feature[1] - emphasised(feature[1], weights)
            feature = torch.stack([feature[0], styled])
            if independent:
                child = torch.randint(2**63 - 1, (1,), generator=own.clone_state())
                other = torch.Generator().manual_seed(int(child))
        sums.append(feature)
    return sums


def shown(folder: Path) -> list[str]:
    """Two style images."""
    paths = []
    for index, (first, second) in enumerate([("navy", "white"), ("orange", "black")]):
        image = Image.new("RGB", (64, 64), first)
        image.paste(second, (8 * index, 8, 40, 40))
        image.save(folder / f"style{index}.png")
        paths.append(str(folder / f"style{index}.png"))
    return paths


DECAYED = [1.0, math.exp(-1), math.exp(-2), math.exp(-3)]
CASES = {
    "as published": ({}, DECAYED, {"correct_from": 2}),
    "blended alone": ({"correct": False}, DECAYED, {}),
    "corrected later": ({"correct_from": 3}, DECAYED, {"correct_from": 3}),
    "blended early": ({"blend_after": 1}, DECAYED, {"blend_after": 1, "correct_from": 1}),
    "blended early, corrected later": (
        {"blend_after": 1, "correct_from": 2},
        DECAYED,
        {"blend_after": 1, "correct_from": 2},
    ),
    "half the decay": ({"alpha": 0.5}, [math.exp(-0.5 * at) for at in range(4)], {"correct_from": 2}),
    "dominant alone": ({"alpha": math.inf}, [1.0, 0.0, 0.0, 0.0], {"correct_from": 2}),
    "three components": ({"top_k": 3}, [1.0, 1.0, 1.0, 0.0], {"correct_from": 2}),
    "noise of its own": ({"noise": "independent"}, DECAYED, {"correct_from": 2, "independent": True}),
    "nothing blended": ({"blend": False}, [0.0] * 4, {"correct_from": 2}),
}


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("case", CASES)
def test_a_styled_image_is_algorithm_1(tmp_path: Path, kind: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, (options, weights, by_hand) = PIPELINES[kind](tmp_path), CASES[case]
    styles = [*map(ImageStyle, shown(tmp_path)), TextStyle(WORDS)]
    requests = [Request(prompt, seed, style) for style in styles for prompt, seed in PROMPTS.items()]
    drawn: list[Tensor] = []

    def numbered(feature: Tensor) -> Tensor:
        """A picture that tells its number, so that each image is known in whatever batch it was drawn."""
        drawn.append(feature[0])
        return torch.full((1, 3, 8, 8), 2 * (len(drawn) - 1) / 255 - 1)

    monkeypatch.setattr(pipeline.vae, "decode", numbered)
    images = StyleGenerator(pipeline, **{"blend_after": 2, "sampling": SAMPLING, **options}).sample(requests)
    found = [drawn[image.getpixel((0, 0))[0]] for image in images]
    scales, unchanged = by_hand.get("blend_after", 2), 0
    for request, feature in zip(requests, found, strict=True):
        if isinstance(request.style, TextStyle):
            style = features(pipeline, WORDS, request.seed)[scales][0]
        else:
            style = pipeline.encode_image([Image.open(request.style.path)], scales)[0]
        plain, expected = features(pipeline, request.prompt, request.seed, style, weights, **by_hand)[-1]
        assert (feature - expected).abs().max() < 1e-4 * expected.abs().max(), request
        unchanged += bool((plain - expected).abs().max() < 1e-4)
    # In so small a model one style or other may draw the very codes of the plain image.
    assert unchanged == len(requests) if case == "nothing blended" else unchanged <= 2
