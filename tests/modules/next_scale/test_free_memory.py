"""What does not fit is refused before it is tried."""

from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from src.data.request import Request, TextStyle
from src.modules.next_scale import memory as free_memory
from src.modules.next_scale import pipeline as pipeline_call
from src.modules.style_svd.generator import StyleGenerator
from tests.modules.next_scale import tiny_infinity, tiny_switti

CPU = torch.device("cpu")


def test_free_memory_lies_between_nothing_and_all() -> None:
    assert 0 < free_memory.free_memory(CPU) <= psutil.virtual_memory().total


def test_what_fits_passes_and_what_does_not_is_said() -> None:
    free_memory.room_or_raise(1, CPU, "a byte", "")
    with pytest.raises(ValueError, match=r"a pile would take 1048576.0 GiB, but .* GiB are free; take less"):
        free_memory.room_or_raise(2**50, CPU, "a pile", "take less")


@pytest.mark.parametrize("tiny", [tiny_infinity, tiny_switti])
def test_a_batch_is_refused_before_its_text_is_read(tiny: ModuleType, tmp_path: Path) -> None:
    pipeline, read = tiny.tiny_pipeline(tmp_path), []
    pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: read.append(output))
    with pytest.raises(ValueError, match="drawing 1000000000000 images at a time would take .* draw fewer images"):
        pipeline("a dog", num_images_per_prompt=10**12)
    assert not read


@pytest.mark.parametrize("tiny", [tiny_infinity, tiny_switti])
def test_paths_that_a_style_adds_are_refused_before_text_is_read(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, read, asked = tiny.tiny_pipeline(tmp_path), [], []
    drawing, compare = StyleGenerator(pipeline, blend_after=2), pipeline_call.room_or_raise
    monkeypatch.setattr(pipeline_call, "room_or_raise", lambda nbytes, *further: asked.append(nbytes))
    drawing.sample([Request("a dog", 0)])
    monkeypatch.setattr(pipeline_call, "room_or_raise", compare)
    monkeypatch.setattr(free_memory, "free_memory", lambda device: asked[0])
    drawing.sample([Request("a dog", 0)])
    pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: read.append(output))
    with pytest.raises(ValueError, match=r"would take .* free; draw fewer images"):
        drawing.sample([Request("a dog", 0, style=TextStyle("a red cat"))])
    assert not read


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_torch_holds_and_does_not_use_is_free() -> None:
    place = torch.device("cuda")
    before = free_memory.free_memory(place)
    held = torch.empty(2**28, dtype=torch.uint8, device=place)
    assert free_memory.free_memory(place) <= before - 2**28
    del held
    assert free_memory.free_memory(place) > before - 2**27
