"""Where pipelines work: every part is offloaded in the order it is used, and pictures stay what they are."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import hooks
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from src.modules.next_scale.infinity.sampling import InfinityDraw
from src.modules.next_scale.loading import Placement
from tests.modules.next_scale import tiny_infinity, tiny_switti


@pytest.fixture(params=[tiny_infinity, tiny_switti], ids=["infinity", "switti"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> DiffusionPipeline:
    tiny: ModuleType = request.param
    return tiny.tiny_pipeline(tmp_path)


def pixels(pipeline: DiffusionPipeline) -> torch.Tensor:
    return pipeline("a red dog", generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_the_sequence_names_every_model_once(pipeline) -> None:
    models = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    assert sorted(pipeline.model_cpu_offload_seq.split("->")) == sorted(models)


def test_offloaded_parts_are_fetched_in_their_order_and_draw_the_same(pipeline, monkeypatch) -> None:
    expected, fetched = pixels(pipeline), []
    names = {id(part): name for name, part in pipeline.components.items()}
    fetch = hooks.CpuOffload.pre_forward

    def noted(hook: object, module: nn.Module, *args: object, **kwargs: object) -> object:
        fetched.append(names[id(module)])
        return fetch(hook, module, *args, **kwargs)

    monkeypatch.setattr(hooks.CpuOffload, "pre_forward", noted)
    placed = Placement(offload=True).placed(pipeline)
    assert placed is pipeline
    for _ in range(2):
        assert torch.equal(pixels(pipeline), expected)
        assert list(dict.fromkeys(fetched)) == pipeline.model_cpu_offload_seq.split("->")
        # Each part was used up before the next one came.
        assert fetched == sorted(fetched, key=pipeline.model_cpu_offload_seq.split("->").index)
        fetched.clear()
    pipeline.encode_image([Image.new("RGB", (8, 8))], 2)
    assert fetched == ["vae"]


def test_codes_are_looked_up_where_they_are_asked_for() -> None:
    codebook, elsewhere = tiny_switti.tiny_vqvae().quantize, torch.zeros(1, 4, dtype=torch.long, device="meta")
    codes = codebook.codes(elsewhere)
    assert codes.device.type == codebook.contribution(codes, 1, 4, 4).device.type == "meta"
    assert codebook.embedding.weight.device.type == "cpu"


def test_a_plan_is_made_before_the_transformer_is_where_it_works() -> None:
    transformer = tiny_infinity.tiny_transformer()
    model = InfinityDraw.planned(transformer, tiny_infinity.SCHEDULE, 3.0, 1.0, 0, 0.0, (0,))
    transformer.to("meta")
    assert model.empty_feature(2).device.type == "meta"


def test_memory_layout_and_squares_hardly_change_pictures(pipeline) -> None:
    expected = pixels(pipeline)
    Placement(channels_last=True).placed(pipeline)
    assert pipeline.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pixels(pipeline), expected, rtol=0, atol=1e-5)
    assert Placement(tiling=True).placed(pipeline).vae.tile is not None
    torch.testing.assert_close(pixels(pipeline), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_said(device: str) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}', which torch cannot use"):
        Placement(device)
