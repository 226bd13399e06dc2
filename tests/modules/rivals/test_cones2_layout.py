"""Layout guidance of Cones 2: the layout map and the edited attention by hand; nothing changes without a layout."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.request import Request
from src.modules.backbones.unet import UNetBackbone
from src.modules.rivals.concept import RivalConcept
from src.modules.rivals.cones2 import MASKED, Cones2Generator, LayoutGuidance, layout_map
from src.modules.rivals.textual_inversion import TextualInversionGenerator
from tests.tiny import tiny_sd

SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0, "resolution": 64}
TWO = "a <rex> left of a <mittens>"
LAYOUT = (("mittens", (0.5, 0.0, 1.0, 1.0)), ("rex", (0.0, 0.0, 0.5, 0.5)))


@pytest.fixture
def generator(tmp_path: Path) -> Cones2Generator:
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    width = backbone.encode_text(["a"]).prompt_embeds.shape[-1]
    told = {"method": "cones2", "backbone_hash": backbone.fingerprint, "backbone_content": backbone.content_hash}
    concepts = {
        name: RivalConcept({"residual.0": torch.full((1, width), 0.1 + at)}, {**told, "class_noun": noun})
        for at, (name, noun) in enumerate({"rex": "dog", "mittens": "cat"}.items())
    }
    return Cones2Generator(backbone, concepts, SAMPLING, layout_weight=0.7)


def drawn(generator: Cones2Generator, *requests: Request) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in generator.sample(requests)])


def test_a_layout_strengthens_the_noun_inside_and_masks_it_in_the_others_regions():
    regions = [(0.0, 0.0, 0.5, 0.75), (0.5, 0.0, 1.0, 1.0), None]
    found = layout_map([[1, 2], [4, 5, 6], [8, 9]], regions, (2, 2), 11)
    expected = torch.zeros(4, 11)
    # Cells are top left, top right, bottom left, bottom right; the first region covers half of the third.
    expected[:, 2] = torch.tensor([1.0, MASKED, 0.5, MASKED])
    expected[:, 5] = expected[:, 6] = torch.tensor([MASKED, 1.0, MASKED, 1.0])
    assert torch.equal(found, expected)
    alone = layout_map([[1, 2]], [(0.0, 0.0, 0.5, 1.0)], (2, 2), 4)
    assert alone[:, 2].tolist() == [1, 0, 1, 0] and not alone[:, [0, 1, 3]].any()


def test_attention_of_conditional_prompts_is_edited_as_by_hand(generator):
    backbone, layers = generator.backbone, {}
    batch = [generator.prepare(Request(TWO, 0, layout=LAYOUT)), generator.prepare(Request(TWO, 1))]
    text = torch.cat([backbone.encode_text(["", ""]).prompt_embeds, generator.read(batch).prompt_embeds])
    sample, timestep = torch.randn(4, 4, 8, 8), torch.tensor(600)

    def keep(layer, args, kwargs, output):
        layers[layer] = (args[0], kwargs["encoder_hidden_states"], output)

    hooks = [
        module.register_forward_hook(keep, with_kwargs=True)
        for name, module in backbone.denoiser.named_modules()
        if name.endswith("attn2")
    ]
    with torch.no_grad(), LayoutGuidance(backbone, batch, 0.7).acting():
        backbone.denoiser(sample, timestep, encoder_hidden_states=text)
    for hook in hooks:
        hook.remove()
    signal = float(backbone.noise_scheduler.alphas_cumprod[600])
    assert layers
    for layer, (hidden, states, output) in layers.items():
        side = math.isqrt(hidden.shape[1])
        for row in range(4):
            query, key, value = layer.to_q(hidden[row]), layer.to_k(states[row]), layer.to_v(states[row])
            q, k, v = (part.unflatten(-1, (layer.heads, -1)).transpose(0, 1) for part in (query, key, value))
            found = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # (H, N, L)
            if row == 2:
                layout = layout_map(batch[0].positions, batch[0].regions, (side, side), key.shape[0])
                found = found + 0.7 * math.log(1 + (1 - signal) / signal) * found.std() * layout
            mixed = (found.softmax(-1) @ v).transpose(0, 1).flatten(1)
            torch.testing.assert_close(output[row], layer.to_out[0](mixed), rtol=1e-3, atol=1e-4)


def test_without_a_layout_images_are_bit_for_bit_the_same_and_with_one_they_are_not(generator):
    plain = Cones2Generator(generator.backbone, generator.concepts, SAMPLING)
    before = drawn(plain, Request(TWO, 0), Request("a dog", 0))
    assert (drawn(generator, Request(TWO, 0), Request("a dog", 0)) == before).all()
    placed = drawn(generator, Request(TWO, 0, layout=LAYOUT), Request(TWO, 0))
    assert (placed[0] != before[0]).any() and abs(placed[1] - before[0]).max() <= 1
    assert abs(drawn(generator, Request(TWO, 0, layout=LAYOUT))[0] - placed[0]).max() <= 1
    assert (drawn(generator, Request(TWO, 0)) == before[:1]).all()
    none = Cones2Generator(generator.backbone, generator.concepts, SAMPLING, layout_weight=0.0)
    assert abs(drawn(none, Request(TWO, 0, layout=LAYOUT)) - before[:1]).max() <= 1
    assert plain.identity(TWO) != generator.identity(TWO)


def test_methods_without_layouts_refuse_one(generator):
    generator.check([Request(TWO, 0, layout=LAYOUT)])
    other = TextualInversionGenerator(generator.backbone, {}, SAMPLING)
    with pytest.raises(ValueError, match="this method places no concepts: leave layout out"):
        other.check([Request("a dog", 0, layout=LAYOUT)])
