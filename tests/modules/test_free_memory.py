"""What does not fit is refused before it is tried."""

import psutil
import pytest
import torch

from src.modules.free_memory import free_memory, room_or_raise
from src.modules.scale_ar.cache import KeyValueCache

CPU = torch.device("cpu")


def test_free_memory_lies_between_nothing_and_all() -> None:
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_what_fits_passes_and_what_does_not_is_said() -> None:
    room_or_raise(1, CPU, "a byte", "")
    with pytest.raises(ValueError, match=r"a pile would take 1048576.0 GiB, but .* GiB are free; take less"):
        room_or_raise(2**50, CPU, "a pile", "take less")


def test_a_cache_is_refused_before_its_buffers_are_made() -> None:
    cache, rows = KeyValueCache(num_blocks=32, capacity=10**11), torch.ones(2, 4, 1, 8)
    with pytest.raises(ValueError, match="keys and values of 2 rows would take .* draw fewer images at a time"):
        cache.attend(0, rows, rows, rows, 1.0)
    assert cache.nbytes == 0


def test_a_fork_is_refused_before_its_buffers_are_made() -> None:
    cache, rows = KeyValueCache(num_blocks=1, capacity=4), torch.ones(2, 4, 1, 8)
    cache.attend(0, rows, rows, rows, 1.0)
    with pytest.raises(ValueError, match="keys and values of 2 rows would take"):
        cache.fork(10**12, shared=True)
    assert cache.streams == 1
