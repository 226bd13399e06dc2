"""Sana: prompts behind an instruction, whose tokens are counted, and latents with large cells."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.prompts import TEMPLATES, concept_positions, concept_span, initial_vector, tokenize
from src.data.subject import View
from src.modules.backbones.sana import INSTRUCTION, MAX_TOKENS, InstructedTokenizer, SanaBackbone
from src.modules.latexblend.learner import encoded_views
from tests.tiny_transformers import gemma_tokenizer, tiny_sana

NOUNS = {"rex": "dog", "gold": "golden retriever"}


@pytest.fixture
def backbone(tmp_path: Path) -> SanaBackbone:
    return SanaBackbone(tiny_sana(tmp_path), "sana")


@pytest.mark.parametrize("prompt", ["a dog", " A red Cat on the grass ", "", "\u0130zmir, a dog", "a dog!?  "])
def test_a_prompt_is_read_behind_the_instruction_as_the_stock_pipeline_does(
    backbone: SanaBackbone, prompt: str
) -> None:
    states, mask, _, _ = backbone.pipeline.encode_prompt(
        [prompt], False, device="cpu", complex_human_instruction=INSTRUCTION
    )
    text = backbone.encode_text([prompt])
    assert torch.equal(text.prompt_embeds, states) and torch.equal(text.mask, mask)
    plain = backbone.pipeline.encode_prompt([prompt], False, device="cpu")[0]
    assert text.prompt_embeds.shape == plain.shape == (1, MAX_TOKENS, 16) and not torch.equal(states, plain)


@pytest.mark.parametrize(
    "prompt",
    ["<rex>", "a <rex>, and a <gold>", " A big <rex> next to the <gold>", "the <gold>'s cup, \u0130zmir <rex>"],
)
def test_concepts_are_found_by_offsets_behind_the_instruction(backbone: SanaBackbone, prompt: str) -> None:
    tokenizer = backbone.tokenizers[0]
    marked, found = concept_positions(tokenizer, prompt, NOUNS, backbone.as_read)
    ids = tokenize(tokenizer, [backbone.as_read(marked.plain)])[0]
    for name, positions in found:
        read = tokenizer.decode(ids[positions[1:]]).split()
        assert "".join(read) == NOUNS[name].replace(" ", "")
        assert tokenizer.decode(ids[positions[:1]]).strip() in ("a", "the")


def test_templates_of_training_and_prompts_have_the_same_positions(backbone: SanaBackbone) -> None:
    for template in TEMPLATES:
        _, span = concept_span(backbone.tokenizers[0], template, "golden retriever", backbone.as_read)
        _, ((_, positions),) = concept_positions(
            backbone.tokenizers[0], template.format("a <gold>"), NOUNS, backbone.as_read
        )
        assert positions == list(range(span.start, span.stop))


def test_v_star_starts_from_a_word_as_it_stands_in_a_sentence(backbone: SanaBackbone) -> None:
    table = backbone.text_encoders[0].get_input_embeddings().weight
    (dog,) = backbone.tokenizers[0].convert_tokens_to_ids(["\u2581dog"])
    assert torch.equal(initial_vector(backbone.tokenizers[0], table, "dog"), table[dog])


def test_a_prompt_that_is_too_long_is_said(backbone: SanaBackbone) -> None:
    room = MAX_TOKENS - 1  # One is that of the beginning.
    assert backbone.token_ids([" ".join(["very"] * room)])[0].shape == (1, MAX_TOKENS)
    with pytest.raises(ValueError, match="prompt of 301 tokens, but the text encoder takes 300: shorten 'very very"):
        backbone.token_ids([" ".join(["very"] * (room + 1))])


def test_a_prompt_that_a_tokenizer_joins_with_the_instruction_is_refused(tmp_path: Path) -> None:
    words = gemma_tokenizer(tmp_path)
    # The instruction ends in a word, and not in a space.
    tokenizer = InstructedTokenizer(words, "paint the gra", 8)
    with pytest.raises(ValueError, match="joins the start of 'ss' with its instruction"):
        tokenizer("ss")


def test_pictures_whose_sides_do_not_fit_are_said(backbone: SanaBackbone) -> None:
    assert backbone.encode_images(torch.zeros(1, 3, 48, 32)).shape == (1, 4, 3, 2)
    with pytest.raises(ValueError, match="multiples of 16 pixels, and these have 40 x 40.*data.resolution, such as 32"):
        backbone.encode_images(torch.zeros(1, 3, 40, 40))


def test_latents_are_scaled_as_the_pipeline_undoes_it(backbone: SanaBackbone) -> None:
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(backbone.encode_images(picture), backbone.vae.encode(picture).latent * 0.41407)


def test_a_large_cell_of_the_latents_counts_if_all_of_it_does(backbone: SanaBackbone, tmp_path: Path) -> None:
    """Masks are drawn in cells of 8 pixels, and here a cell has 16."""
    mask = np.ones((8, 8), dtype=np.float32)
    mask[0, 0] = mask[4:, 5] = 0
    latents, masks = encoded_views(backbone, [View(np.zeros((64, 64, 3), dtype=np.uint8), mask)], tmp_path)
    assert latents.shape == (1, 4, 4, 4)
    assert masks[0, 0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 1]]


def test_the_transformer_gets_its_own_scale_of_time(tmp_path: Path) -> None:
    backbone = SanaBackbone(tiny_sana(tmp_path, timestep_scale=0.001), "sana")
    seen: list[torch.Tensor] = []
    backbone.denoiser.register_forward_pre_hook(lambda *call: seen.append(call[2]["timestep"]), with_kwargs=True)
    noised = backbone.corrupt(torch.zeros(1, 4, 4, 4), [torch.Generator().manual_seed(0)])
    backbone.denoise(noised, backbone.encode_text(["a dog"]))
    assert torch.equal(seen[0], noised.timesteps * 0.001)
    # Shares of the noise schedule, such as blending_start, are told in the same scale.
    assert backbone.last_timestep == pytest.approx(1.0)
