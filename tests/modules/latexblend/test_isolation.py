"""The attention mask of concepts: other words do not read a concept, the image and its own rows do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.backbones.projections import text_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator, Placement
from src.modules.latexblend.isolation import allowed
from src.modules.latexblend.joint import joint_blended
from src.modules.latexblend.rectification import Rectification
from tests.modules.latexblend.test_joint_attention import JOINT, bank, placed
from tests.tiny import tiny_sd

ISOLATE = Rectification(isolate=True)
PROMPT = "a <rex> on the grass"


@pytest.fixture(params=JOINT)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return JOINT[request.param](tmp_path)


def second_block(backbone: Backbone, plain: str, placements: list[Placement], isolated: bool) -> tuple[Tensor, Tensor]:
    """Keys of text in the second block, ``(L, D)``, and what is predicted in the end."""
    seen: list[Tensor] = []
    second = list(text_projections(backbone.denoiser))[2]  # Behind keys and values of the first.
    noised = backbone.corrupt(
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [torch.Generator().manual_seed(1)]
    )
    isolate = backbone.joint if isolated else None
    with torch.no_grad(), joint_blended(backbone.denoiser, [placements], isolate=isolate):
        handle = text_projections(backbone.denoiser)[second].register_forward_hook(lambda *its: seen.append(its[2][0]))
        text = backbone.encode_text([plain])
        predicted = backbone.denoise(noised, text)
        handle.remove()
    return seen[0][: text.prompt_embeds.shape[1]], predicted


def test_a_mask_says_what_attends_to_what() -> None:
    """Two concepts in the second row of a batch; three of its seven places are text, behind the image."""
    mask = allowed([(1, [0]), (1, [2])], rows=2, length=3, total=7, first=4)
    assert mask.shape == (2, 1, 7, 7) and mask[0].all()
    refused = {(query, key) for query, key in (~mask[1, 0]).nonzero().tolist()}
    assert refused == {(5, 4), (6, 4), (4, 6), (5, 6)}
    front = allowed([(0, [0])], rows=1, length=3, total=7, first=0)
    assert {tuple(pair) for pair in (~front[0, 0]).nonzero().tolist()} == {(1, 0), (2, 0)}


def test_other_words_know_nothing_of_a_concept_in_the_next_block(backbone: Backbone) -> None:
    concepts = [placed(backbone, PROMPT, {"rex": bank(backbone, seed)}) for seed in (1, 2)]
    own = concepts[0][1][0].positions

    def others(isolated: bool) -> list[Tensor]:
        keys = [second_block(backbone, *each, isolated)[0] for each in concepts]
        assert not torch.allclose(keys[0][own], keys[1][own])
        rows = [at for at in range(len(keys[0])) if at not in own]
        return [one[rows] for one in keys]

    assert torch.equal(*others(isolated=True))
    assert not torch.allclose(*others(isolated=False))


def test_the_image_still_reads_the_concept(backbone: Backbone) -> None:
    first, second = (placed(backbone, PROMPT, {"rex": bank(backbone, seed)}) for seed in (1, 2))
    assert not torch.allclose(second_block(backbone, *first, True)[1], second_block(backbone, *second, True)[1])


def test_without_concepts_nothing_is_masked(backbone: Backbone) -> None:
    stock = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 2, "resolution": 64}))
    generator = ConceptGenerator(
        backbone, {"rex": bank(backbone, 1)}, {"num_inference_steps": 2, "resolution": 64}, rectification=ISOLATE
    )
    generator.sample([Request("a <rex>", 0)])
    after = generator.sample([Request("a dog", 0)])
    assert np.array_equal(stock[0], after[0])
    assert np.array_equal(stock[0], generator.sample([Request("a <rex:0>", 0)])[0])


def test_prompts_of_other_lengths_are_drawn_together(backbone: Backbone) -> None:
    """Qwen-Image masks its padding, and both masks hold."""
    asked = [Request("a <rex>", 0), Request("a <rex> next to a <tom> on the grass", 1)]
    banks = {"rex": bank(backbone, 1), "tom": bank(backbone, 2, noun="cat")}
    of_call = {"num_inference_steps": 2, "resolution": 64}
    both = ConceptGenerator(backbone, banks, of_call, rectification=ISOLATE).sample(asked)
    alone = ConceptGenerator(backbone, banks, of_call, rectification=ISOLATE, batch_size=1).sample(asked)
    free = ConceptGenerator(backbone, banks, of_call).sample(asked)
    for one, other in zip(both, alone, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 2
    assert not np.array_equal(both[1], free[1])


def test_it_is_part_of_what_an_image_depends_on(backbone: Backbone) -> None:
    free, masked = (ConceptGenerator(backbone, rectification=each) for each in (None, ISOLATE))
    assert masked.identity() == free.identity() | {"isolate": "true"}


def test_the_denoiser_is_what_it_was_also_after_an_error(backbone: Backbone) -> None:
    plain, placements = placed(backbone, PROMPT, {"rex": bank(backbone, 1)})
    expected = second_block(backbone, plain, [], False)[1]
    last = list(text_projections(backbone.denoiser).values())[-1]

    def fail(module: nn.Module, inputs: tuple) -> None:
        raise RuntimeError("no memory")

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        second_block(backbone, plain, placements, True)
    handle.remove()
    modules = [backbone.denoiser.get_submodule(name.partition(".")[2]) for name in text_projections(backbone.denoiser)]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules)
    assert torch.equal(second_block(backbone, plain, [], False)[1], expected)


def test_attention_that_takes_no_mask_is_an_error(backbone: Backbone) -> None:
    class Own:
        def __call__(
            self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: object, **kwargs: object
        ) -> tuple:
            return hidden_states, encoder_hidden_states

    plain, placements = placed(backbone, PROMPT, {"rex": bank(backbone, 1)})
    for block in backbone.denoiser.transformer_blocks:
        block.attn.processor = Own()
    with pytest.raises(ValueError, match=r"isolate=true masks attention.* set_attention_backend\('native'\)"):
        second_block(backbone, plain, placements, True)


def test_it_is_refused_where_no_word_reads_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"isolate=true, but in tiny no word reads another; leave it out"):
        ConceptGenerator(UNetBackbone(tiny_sd(tmp_path), "tiny"), rectification=ISOLATE)
