"""What a training learnt, read by diffusers alone, draws what our own model draws with the change in its weights."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.exports import Exports
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.learner import TrainingRecord
from tests.tiny import tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}
ALL = ("custom_diffusion", "lora", "kohya")
PROMPT = "photo of <new1> dog"


def learner(folder: Path, kind: str, rank: int | None = 3, formats: tuple = ALL) -> LaTexBlend:
    """A learner that has learnt something: changes and V* are random."""
    backbone = UNetBackbone(MAKERS[kind](folder), kind)
    path = str(folder / "exports" / "rex.safetensors")
    made = LaTexBlend(backbone, Subject("dog", "rex"), str(folder), Exports(path, formats), rank=rank)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=random)
    return made


def drawn(pipeline: Any, **text: Any) -> np.ndarray:
    call = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "np"}
    return pipeline(**text, **call, generator=torch.Generator().manual_seed(0)).images


def ours(trained: LaTexBlend) -> np.ndarray:
    """Draw the prompt with V* while every change is added to its weights."""
    text = trained.flow.concept_text([trained.flow.fixed])
    layers = trained.backbone.text_layers()
    with torch.no_grad():
        for name, linear in layers.items():
            linear.weight += trained.delta.weight(name)
    pooled = {} if text.pooled_prompt_embeds is None else {"pooled_prompt_embeds": text.pooled_prompt_embeds}
    pipeline = trained.backbone.pipeline
    negative = trained.backbone.encode_text([""])
    given = {"negative_prompt_embeds": negative.prompt_embeds}
    if pooled:
        given = {name: torch.zeros_like(one) for name, one in (("negative_prompt_embeds", text.prompt_embeds),)}
        given["negative_pooled_prompt_embeds"] = torch.zeros_like(text.pooled_prompt_embeds)
    with torch.no_grad():
        return drawn(pipeline, prompt_embeds=text.prompt_embeds, **pooled, **given)


def with_embedding(pipeline: Any, folder: Path) -> Any:
    path = folder / "learned_embeds.safetensors"
    if not hasattr(pipeline, "text_encoder_2"):
        pipeline.load_textual_inversion(str(path))
        return pipeline
    pipeline.tokenizer_2 = deepcopy(pipeline.tokenizer)  # One object at tiny size, two in a real pipeline.
    vectors = load_file(path)
    for name, number in (("clip_l", ""), ("clip_g", "_2")):
        parts = {
            "text_encoder": getattr(pipeline, f"text_encoder{number}"),
            "tokenizer": getattr(pipeline, f"tokenizer{number}"),
        }
        pipeline.load_textual_inversion(vectors[name], token="<new1>", **parts)
    return pipeline


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("name", "rank"), [("custom_diffusion", None), ("custom_diffusion", 3), ("lora", 3), ("kohya", 3)]
)
def test_the_plain_library_draws_the_same_image(tmp_path: Path, kind: str, name: str, rank: int | None) -> None:
    trained = learner(tmp_path / "ours", kind, rank, (name,))
    exports = trained.export(TrainingRecord(3, 1e-2, 0.0))
    folder = tmp_path / "ours" / "exports" / "rex"
    pipeline = with_embedding(MAKERS[kind](tmp_path / "stock"), folder)
    if not hasattr(pipeline, "text_encoder_2"):
        pipeline.set_progress_bar_config(disable=True)
    without = drawn(pipeline, prompt=PROMPT)
    files = sorted(path.name for path in folder.iterdir())
    if name == "custom_diffusion":
        assert files == ["learned_embeds.safetensors", "pytorch_custom_diffusion_weights.safetensors"]
        pipeline.unet.load_attn_procs(str(folder), weight_name=files[1], _pipeline=pipeline)
    else:
        stem = {"lora": "pytorch_lora_weights", "kohya": "rex_kohya"}[name]
        assert files == sorted(["learned_embeds.safetensors", f"{stem}.safetensors"])
        pipeline.load_lora_weights(str(folder), weight_name=f"{stem}.safetensors")
    found = drawn(pipeline, prompt=PROMPT)
    expected = ours(trained)
    assert np.abs(expected - without).max() > 0.02
    assert np.abs(found - expected).max() < 1e-4
    assert {str(folder / each) for each in files} <= set(exports.values())


def test_kohya_names_are_those_of_diffusers_for_sd_and_of_the_original_files_for_sdxl(tmp_path: Path) -> None:
    names = {}
    for kind in ("sd", "sdxl"):
        trained = learner(tmp_path / kind, kind)
        trained.export(TrainingRecord(1, 1e-2, 0.0))
        path = tmp_path / kind / "exports" / "rex" / "rex_kohya.safetensors"
        with safe_open(path, "pt") as file:
            names[kind], metadata = set(file.keys()), file.metadata()
            assert file.get_tensor(sorted(file.keys())[0]).item() == 3.0
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3")
        assert metadata["modelspec.architecture"].startswith(f"{kind}/")
    end = "transformer_blocks_0_attn2_to_k.lora_down.weight"
    assert f"lora_unet_down_blocks_1_attentions_0_{end}" in names["sd"]
    # One residual block a level here: input_blocks 1 and 2 are the first level, 3 the second.
    assert f"lora_unet_input_blocks_3_1_{end}" in names["sdxl"]


def test_no_format_writes_no_file_and_trains_as_before(tmp_path: Path) -> None:
    trained = learner(tmp_path, "sd", formats=())
    assert set(trained.export(TrainingRecord(1, 1e-2, 0.0))) == {"concept bank", "next"}
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["rex.safetensors"]
    assert "exports" in LaTexBlend.incidental


@pytest.mark.parametrize("name", ["lora", "kohya"])
def test_a_format_that_needs_a_rank_is_refused_without_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"formats has {name}, which is a change of low rank, .*; add method\.learner\.rank=4"
    ):
        learner(tmp_path, "sd", None, (name,))
    with pytest.raises(ValueError, match=rf"formats has {name}, which is a change of low rank"):
        LaTexBlend.first_look({"exports": {"path": "x", "formats": [name]}, "rank": None})
    LaTexBlend.first_look({"exports": {"path": "x", "formats": [name]}, "rank": 4})


def test_a_backbone_that_is_no_unet_of_these_is_refused(tmp_path: Path) -> None:
    class Other:
        name = "pixart"

        def text_layers(self) -> dict:
            return {"k.transformer_blocks.0.attn2": None}

    with pytest.raises(ValueError, match="for the UNets of Stable Diffusion and SDXL, and pixart is none; leave"):
        Exports("x", ["custom_diffusion"]).check(None, Other())  # type: ignore[arg-type]
