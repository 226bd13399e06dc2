"""What does not fit is refused before it is tried."""

from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from src.modules.free_memory import free_memory, room_or_raise
from src.modules.scale_ar.cache import KeyValueCache
from tests.modules.scale_ar import tiny_infinity, tiny_switti

CPU = torch.device("cpu")
USES_ALL_SCALES = {tiny_infinity: {}, tiny_switti: {"use_ar": True}}


def test_free_memory_lies_between_nothing_and_all() -> None:
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_what_fits_passes_and_what_does_not_is_said() -> None:
    room_or_raise(1, CPU, "a byte", "")
    with pytest.raises(ValueError, match=r"a pile would take 1048576.0 GiB, but .* GiB are free; take less"):
        room_or_raise(2**50, CPU, "a pile", "take less")


@pytest.mark.parametrize("tiny", [tiny_infinity, tiny_switti])
def test_a_batch_is_refused_before_its_text_is_read(tiny: ModuleType, tmp_path: Path) -> None:
    pipeline, read = tiny.tiny_pipeline(tmp_path, **USES_ALL_SCALES[tiny]), []
    pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: read.append(output))
    with pytest.raises(ValueError, match="keys and values of 1000000000000 images would take .* draw fewer images"):
        pipeline("a dog", num_images_per_prompt=10**12)
    assert not read


def test_a_fork_is_refused_before_its_buffers_are_made() -> None:
    cache, rows = KeyValueCache(num_blocks=1, capacity=4), torch.ones(2, 4, 1, 8)
    cache.attend(0, rows, rows, rows, 1.0)
    with pytest.raises(ValueError, match="keys and values of 2 rows would take"):
        cache.fork(10**12, shared=True)
    assert cache.streams == 1
