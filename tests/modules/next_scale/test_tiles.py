"""Decoding in squares: the whole where one square is enough, seamless where nothing sees beyond a square."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from src.modules.next_scale.switti.autoencoder import PixelAttention
from src.modules.next_scale.tiles import TiledDecoding
from tests.modules.next_scale import tiny_infinity, tiny_switti

TOKENIZERS = {"bsq": tiny_infinity.tiny_vae, "vq": tiny_switti.tiny_vqvae}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> nn.Module:
    return TOKENIZERS[request.param]()


def feature(rows: int, columns: int) -> Tensor:
    return torch.randn(2, 4, rows, columns, generator=torch.Generator().manual_seed(0)) * 0.1


def enlarged(cells: Tensor) -> Tensor:
    """A decoder whose pixels depend on their own cell only."""
    return interpolate(cells[:, :3], scale_factor=2.0, mode="nearest").sin()


@pytest.mark.parametrize("size", [12, 24])
def test_an_image_of_one_square_is_decoded_whole(tokenizer, size: int) -> None:
    whole = tokenizer.decode(feature(12, 9))
    tokenizer.enable_tiling(size, overlap=4)
    assert torch.equal(tokenizer.decode(feature(12, 9)), whole)


def test_no_square_is_larger_than_asked_for_and_it_can_be_undone(tokenizer) -> None:
    whole, seen = tokenizer.decode(feature(12, 17)), []
    tokenizer.decoder.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[-2:])))
    tokenizer.enable_tiling(8, overlap=3)
    tiled = tokenizer.decode(feature(12, 17))
    assert set(seen) == {(8, 8)} and len(seen) == 2 * 3
    assert tiled.shape == whole.shape and tiled.isfinite().all()
    tokenizer.disable_tiling()
    assert torch.equal(tokenizer.decode(feature(12, 17)), whole)


@pytest.mark.parametrize(("size", "overlap"), [(8, 3), (5, 4), (6, 0), (16, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_that_agree_leave_no_seam(size: int, overlap: int, dtype: torch.dtype) -> None:
    tiled, cells = TiledDecoding(), feature(12, 17).to(dtype)
    tiled.enable_tiling(size, overlap)
    torch.testing.assert_close(tiled.decoded(enlarged, cells, 2), enlarged(cells).float(), rtol=0, atol=1e-6)


def blind(tokenizer: nn.Module) -> nn.Module:
    """Without what sees all of an image: group norms and attention."""
    for module in tokenizer.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda hidden: hidden  # type: ignore[method-assign]
        if isinstance(module, PixelAttention):
            module.proj_out.weight.zero_()
    return tokenizer


def test_far_from_edges_convolutions_do_not_notice(tokenizer) -> None:
    whole = blind(tokenizer).decode(feature(32, 32))
    tokenizer.enable_tiling(24, overlap=14)
    # Cells 0 to 7 lie in the first square alone, 16 from its inner edges; a decoder of this size reaches 12.
    inner = (..., slice(0, 16), slice(0, 16))
    torch.testing.assert_close(tokenizer.decode(feature(32, 32))[inner], whole[inner], rtol=0, atol=1e-5)


def test_attention_sees_its_square_only() -> None:
    tokenizer = tiny_switti.tiny_vqvae()
    changed = feature(8, 16)
    changed[..., 12:] += 1

    def moved(decode: Callable[[Tensor], Tensor]) -> bool:
        # The first columns lie in the first square alone.
        return not torch.equal(decode(feature(8, 16))[..., :4], decode(changed)[..., :4])

    assert moved(tokenizer.decode)
    tokenizer.enable_tiling(8, overlap=2)
    assert not moved(tokenizer.decode)


@pytest.mark.parametrize(("size", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_impossible_squares_are_said(tokenizer, size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tiles of {size} cells overlap by {overlap}"):
        tokenizer.enable_tiling(size, overlap)
