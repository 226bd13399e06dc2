"""FLUX.1 and Qwen-Image: latents in patches, guidance by two calls, and the published shapes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel
from torch import Tensor

from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.projections import text_projections
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.tensors import Noised
from src.modules.latexblend.generator import ConceptGenerator
from tests.modules.latexblend.test_joint_attention import bank
from tests.tiny import tiny_flux, tiny_qwen_image

FAMILIES: dict[str, Callable[[Path], Backbone]] = {
    "flux": lambda folder: FluxBackbone(tiny_flux(folder), "flux"),
    "qwen image": lambda folder: QwenImageBackbone(tiny_qwen_image(), "qwen"),
}


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return FAMILIES[request.param](tmp_path)


def test_a_prediction_is_laid_out_as_the_stock_pipeline_does(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transformer that gives back what it gets must give back the latents."""
    stock = backbone.denoiser.forward
    monkeypatch.setattr(
        backbone.denoiser, "forward", lambda **given: type("Out", (), {"sample": given["hidden_states"]})
    )
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    noised = Noised(latents, torch.tensor([500.0, 500.0]), latents)
    found = backbone.denoise(noised, backbone.encode_text(["a dog", "a red cat"]))
    assert torch.equal(found, latents) and stock is not backbone.denoiser.forward
    unpacked = backbone.pipeline._unpack_latents(
        backbone.pipeline._pack_latents(latents, 2, 4, 8, 12), 64, 96, backbone.pipeline.vae_scale_factor
    )
    assert torch.equal(found, unpacked.view(found.shape))


def test_rows_without_a_prompt_stay_as_they_are(tmp_path: Path) -> None:
    """Qwen-Image calls its transformer once with the prompt and once without, as FLUX does when it is asked to."""
    backbone = QwenImageBackbone(tiny_qwen_image(), "qwen")
    seen: dict[str, list[Tensor]] = {}

    def drawn(prompt: str) -> None:
        layer = next(iter(text_projections(backbone.denoiser).values()))
        # Installed last, so that it sees what the concept left.
        generator = ConceptGenerator(backbone, {"rex": bank(backbone, 1)}, {"num_inference_steps": 1})
        blended = generator._blended

        def watched(placements):
            context = blended(placements)
            context.__enter__()
            kept = seen.setdefault(prompt, [])
            layer.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
            return context

        context = watched([generator.place(prompt)[1]])
        backbone.draw([generator.plain(Request(prompt, 0))], [0], generator.sampling | {"guidance_scale": 3.0})
        context.__exit__(None, None, None)
        layer._forward_hooks.clear()

    drawn("a <rex>")
    drawn("a <rex:0>")
    (with_concept, without), (plain, same) = seen["a <rex>"], seen["a <rex:0>"]
    assert not torch.equal(with_concept, plain) and torch.equal(without, same)


def test_the_published_shapes_are_found() -> None:
    """FLUX.1's configuration is the class's default, and so is Qwen-Image's."""
    with torch.device("meta"):
        flux, qwen = text_projections(FluxTransformer2DModel()), text_projections(QwenImageTransformer2DModel())
    assert len(flux) == 2 * (19 + 38) and len(qwen) == 2 * 60
    for layers in (flux, qwen):
        assert all((one.in_features, one.out_features) == (3072, 3072) for one in layers.values())


def test_a_prompt_that_leaves_no_room_for_the_template_is_refused() -> None:
    backbone = QwenImageBackbone(tiny_qwen_image(), "qwen")
    with pytest.raises(ValueError, match="but the text encoder takes 1011"):
        backbone.encode_text(["a" * 1012])
    assert backbone.encode_text(["a" * 1011]).mask.shape == (1, 1024)
