"""What is not finite is neither kept nor used, in any store."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from src.data.finite import check_finite, is_finite
from src.data.store import TensorStore
from src.eval.encoders.cache import Shards

NAN, INFINITE = torch.tensor([1.0, math.nan, 2.0, 3.0]), torch.tensor([[-math.inf]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_found_and_large_numbers_are_none(dtype: torch.dtype) -> None:
    for bad in (NAN, INFINITE):
        assert not is_finite(bad.to(dtype))
    assert is_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)) and is_finite(
        torch.zeros(0, dtype=dtype)
    )
    assert is_finite(torch.tensor([2**62]))
    with pytest.raises(ValueError, match=r"^the latents are not finite \(25\.0% are NaN or infinite\); take backbone"):
        check_finite(NAN.to(dtype), "the latents")


def test_a_store_keeps_no_tensor_that_is_not_finite_and_makes_a_kept_one_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TensorStore(tmp_path, "states")
    with pytest.raises(ValueError, match="are not finite"):
        store.get("first", lambda: NAN)
    assert not list(tmp_path.iterdir())
    save_file({"states": INFINITE}, tmp_path / "second.safetensors")
    assert torch.equal(store.get("second", lambda: torch.ones(2)), torch.ones(2)) and "made anew" in caplog.text
    assert torch.equal(store.get("second", lambda: NAN), torch.ones(2))


def test_embeddings_that_are_not_finite_are_neither_kept_nor_read(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    with pytest.raises(ValueError, match="the embeddings for .* are not finite"):
        shards.add({"picture": NAN})
    content = save({"picture": NAN})
    name = hashlib.sha256(content).hexdigest()
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    assert shards.read(name) is None and not list(tmp_path.iterdir())
