"""What a concept is in a model whose cross-attention reads text alone: for every such backbone of the contract."""

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from src.data.subject import ConceptData, Zoom
from src.modules.backbones.base import Backbone, Noised, Text
from src.modules.latexblend.bank import transformed_projections
from src.modules.latexblend.flows import DualFlow, Subject
from src.modules.latexblend.generator import BlendedText, Placement, blended
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.learner import LearnerModule
from tests.modules.backbones.test_contract import BACKBONES, bank


@pytest.fixture(params=[name for name, (kind, _) in BACKBONES.items() if not kind.joint])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    cls, maker = BACKBONES[request.param]
    return cls(maker(tmp_path), request.param)


def recorded(backbone: Backbone, noised: Noised, text: Text) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Predict, and keep what each projection of text returned, ``(B, L, D)``."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
        for name, layer in backbone.text_layers().items()
    ]
    with torch.no_grad():
        predicted = backbone.denoise(noised, text)
    for handle in handles:
        handle.remove()
    return predicted, seen


def test_rows_of_concepts_are_the_banks_and_all_others_stay_whatever_the_order(backbone: Backbone) -> None:
    banks, nouns = {"rex": bank(backbone), "tom": bank(backbone, 1)}, {"rex": "dog", "tom": "dog"}
    marked, found = backbone.place("a <rex> near a <tom>", nouns)
    placements = [Placement(banks[name], positions) for name, positions in found]
    # As with guidance, text without concepts comes first.
    text = backbone.encode_text(["", marked.plain])
    latents = torch.randn(2, backbone.vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = backbone.corrupt(latents, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    before, plain = recorded(backbone, noised, text)
    with blended(backbone.denoiser, [placements]):
        first, rows = recorded(backbone, noised, text)
        assert torch.equal(recorded(backbone, noised, text)[0], first)
    with blended(backbone.denoiser, [placements[::-1]]):
        assert torch.equal(recorded(backbone, noised, text)[0], first)
    with transformed_projections(backbone.denoiser, BlendedText([placements])):
        assert torch.allclose(recorded(backbone, noised, text)[0], first, atol=1e-6)
    assert torch.equal(recorded(backbone, noised, text)[0], before) and not torch.allclose(first[1], before[1])
    assert rows.keys() == backbone.text_layers().keys()
    for name, blend in rows.items():
        expected = plain[name].clone()
        for concept, positions, _ in placements:
            expected[1, positions] = concept.rows[name]
        assert torch.equal(blend, expected), name


def test_a_modifier_is_read_as_a_word_of_the_text_encoder_is(backbone: Backbone) -> None:
    """The embedding of "cat" in the place of V* makes the states of "cat dog"."""
    flow = DualFlow(backbone, "dog", ("a photo of a {}", "photo of {}"))
    ids = backbone.token_ids(flow.prompts)
    for tokenizer, encoder, modifier, tokens, starts in zip(
        backbone.tokenizers, backbone.text_encoders, flow.delta.modifier, ids, flow.starts, strict=True
    ):
        (cat,) = tokenizer("cat", add_special_tokens=False).input_ids
        modifier.data = encoder.get_input_embeddings().weight[cat].clone()
        tokens[[0, 1], starts] = cat
    with torch.no_grad():
        expected = backbone.encode_ids(ids)
        assert torch.allclose(flow.concept_text([0, 1]).prompt_embeds, expected.prompt_embeds, atol=1e-5)
    assert not torch.allclose(backbone.encode_text(flow.prompts).prompt_embeds, expected.prompt_embeds, atol=1e-3)


def fitted(
    backbone: Backbone, folder: Path, steps: int, checkpoint: Path | None = None
) -> tuple[LearnerModule, L.Trainer]:
    """Train on a picture, from the start or from a checkpoint."""
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(photos / "0.png")
    data = ConceptData(str(photos), "dog", resolution=64, batch_size=2, num_views=2, num_class_images=2, zoom=Zoom(0.6))
    where = (str(folder / "cache"), str(folder / "rex.safetensors"))
    module = LearnerModule(LaTexBlend(backbone, Subject("dog"), *where), partial(torch.optim.AdamW, lr=1e-2))
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_checkpointing=True,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint and str(checkpoint))
    return module, trainer


def test_stopping_and_going_on_equals_never_stopping_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    whole, _ = fitted(backbone, tmp_path, 2)
    _, stopped = fitted(backbone, tmp_path, 1)
    stopped.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = fitted(backbone, tmp_path, 2, tmp_path / "one.ckpt")
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name
