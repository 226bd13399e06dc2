"""Hooks of diffusers and accelerate that move or cast weights, and concepts: together as each would be alone."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

from src.data.request import Request
from src.modules.backbones.memory import compute_again, weights_fetched_again
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.generator import ConceptGenerator, blended
from src.modules.latexblend.learner import LaTexBlend
from src.modules.rivals.custom_diffusion import CustomDiffusion
from src.modules.training.diffusion import step_generator
from tests.tiny import tiny_sd, tiny_sdxl

WIDE = {"storage_dtype": torch.float64, "compute_dtype": torch.float32}
"""Weights are kept in more bits than they need, so that nothing is rounded; all else is as with fewer."""
HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "group offloading": lambda unet: apply_group_offloading(unet, "cpu", "cpu", offload_type="leaf_level"),
    "layerwise casting": lambda unet: apply_layerwise_casting(unet, **WIDE),
    "casting behind offloading": lambda unet: [
        apply_layerwise_casting(unet, **WIDE),
        apply_group_offloading(unet, "cpu", "cpu", offload_type="leaf_level"),
    ],
    "model offload": lambda unet: cpu_offload_with_hook(unet, "cpu"),
    "sequential offload": lambda unet: cpu_offload(unet, torch.device("cpu")),
}
TRAINABLE = [name for name in HOOKS if "offload" not in name or "group" in name or "casting" in name]
SAMPLING = {"num_inference_steps": 3, "guidance_scale": 3.0}


@pytest.fixture(params=[tiny_sd, tiny_sdxl])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(request.param(tmp_path), "tiny")


def bank(backbone: UNetBackbone) -> ConceptBank:
    generator = torch.Generator().manual_seed(0)
    rows = {n: torch.randn(2, one.out_features, generator=generator) for n, one in backbone.text_layers().items()}
    return ConceptBank(rows, {"class_noun": "dog", "backbone_hash": backbone.fingerprint})


def drawn(backbone: UNetBackbone, rex: ConceptBank, **options) -> np.ndarray:
    generator = ConceptGenerator(backbone, {"rex": rex}, SAMPLING, **options)
    return np.stack([np.asarray(image) for image in generator.sample([Request("a <rex>", 0), Request("a cat", 1)])])


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("options", [{}, {"keep_context": True}, {"blending_start": 0.5}], ids=str)
def test_a_picture_with_concepts_is_the_same_with_hooks(backbone: UNetBackbone, hooks: str, options: dict) -> None:
    rex = bank(backbone)
    before, plain = drawn(backbone, rex, **options), drawn(backbone, rex, blending_start=1e-9)
    HOOKS[hooks](backbone.unet)
    assert np.array_equal(drawn(backbone, rex, **options), before)
    # And they have put nothing away that the stock pipeline needs.
    assert np.array_equal(drawn(backbone, rex, blending_start=1e-9), plain) and not np.array_equal(before, plain)


@pytest.mark.parametrize("hooks", ["group offloading", "layerwise casting"])
def test_hooks_are_called_at_every_step_and_stay(backbone: UNetBackbone, hooks: str) -> None:
    HOOKS[hooks](backbone.unet)
    own = {name: vars(linear)["forward"] for name, linear in backbone.text_layers().items()}
    called = []
    layer = backbone.text_layers()["k." + next(iter(own)).partition(".")[2]]

    def counted(hidden: Tensor) -> Tensor:
        called.append(len(hidden))
        return kept(hidden)

    kept, layer.forward = layer.forward, counted
    drawn(backbone, bank(backbone))
    assert len(called) == SAMPLING["num_inference_steps"] and layer.forward is counted
    layer.forward = kept
    assert {name: vars(linear)["forward"] for name, linear in backbone.text_layers().items()} == own


def test_concepts_are_still_installed_once(backbone: UNetBackbone) -> None:
    HOOKS["group offloading"](backbone.unet)
    with (
        blended(backbone.unet, [[]]),
        pytest.raises(ValueError, match="already has concepts installed; leave that context first"),
        blended(backbone.unet, [[]]),
    ):
        pass


def latexblend(backbone: UNetBackbone, folder: Path) -> LaTexBlend:
    learner = LaTexBlend(backbone, Subject("dog"), str(folder), str(folder / "a.safetensors"), rank=2)
    # Changes of zero would give those before them no gradient.
    for one in learner.delta.changes.parameters():
        torch.manual_seed(one.numel())
        nn.init.normal_(one, std=0.1)
    learner.base_text = backbone.encode_text(learner.flow.prompts)
    return learner


def custom_diffusion(backbone: UNetBackbone, folder: Path) -> CustomDiffusion:
    return CustomDiffusion(backbone, Subject("dog"), str(folder), str(folder / "a.safetensors"))


def gradients(learner: LaTexBlend | CustomDiffusion, backbone: UNetBackbone) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(3, 4, 8, 8, generator=generator), torch.ones(3, 1, 8, 8)
    learner.instance = learner.prior = views
    learner.class_text = backbone.encode_text(["dog"])
    generators = [step_generator(0, 1, 0, position) for position in range(2)]
    loss, _ = learner.reduce(learner.losses({"index": torch.tensor([0, 2])}, generators))
    learner.zero_grad()
    with learner.installed():
        loss.backward()
    return [loss.detach(), *(one.grad.clone() for one in learner.parameters() if one.grad is not None)]


@pytest.mark.parametrize("hooks", TRAINABLE)
@pytest.mark.parametrize("maker", [latexblend, custom_diffusion])
def test_every_gradient_is_the_same_with_hooks(
    backbone: UNetBackbone, tmp_path: Path, hooks: str, maker: Callable
) -> None:
    learner = maker(backbone, tmp_path)
    before = gradients(learner, backbone)
    assert len(before) > 4
    HOOKS[hooks](backbone.unet)
    for again in (gradients(learner, backbone), gradients(learner, backbone)):
        assert all(map(torch.equal, before, again)) and len(before) == len(again)


@pytest.mark.parametrize("hooks", [None, "layerwise casting"])
@pytest.mark.parametrize("maker", [latexblend, custom_diffusion])
def test_every_gradient_is_the_same_where_activations_are_computed_again(
    backbone: UNetBackbone, tmp_path: Path, hooks: str | None, maker: Callable
) -> None:
    learner = maker(backbone, tmp_path)
    before = gradients(learner, backbone)
    compute_again(backbone.unet)
    if hooks:
        HOOKS[hooks](backbone.unet)
    assert all(map(torch.equal, before, gradients(learner, backbone)))


def test_of_weights_in_fewer_bits_the_backward_pass_holds_only_where_they_are(tmp_path: Path) -> None:
    unet = tiny_sd(tmp_path).unet.requires_grad_(False)
    apply_layerwise_casting(unet, torch.float8_e4m3fn, torch.float32)
    linear = next(module for module in unet.modules() if isinstance(module, nn.Linear))
    with weights_fetched_again(unet):
        pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(False)
        for saved in (unet.conv_in.weight, linear.weight.t()):
            packed = pack(saved)
            assert packed.weight is (linear.weight if saved.ndim == 2 else unet.conv_in.weight)
            assert packed.like.numel() == 0
            assert unpack(packed).float().equal(saved.float()) and unpack(packed).stride() == saved.stride()
        other = torch.ones(2, requires_grad=True)
        assert pack(other).equal(other) and not pack(other).requires_grad


def test_without_hooks_the_forward_pass_is_left_alone(backbone: UNetBackbone) -> None:
    before = copy.copy(torch._C._autograd._top_saved_tensors_default_hooks(False))
    with weights_fetched_again(backbone.unet):
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) == before
