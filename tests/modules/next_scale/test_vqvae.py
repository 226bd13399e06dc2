"""Images to indices and back: what the residual codebook promises, and the reference's own numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.modules.next_scale.switti.autoencoder import VQVAE, phi_index
from src.modules.next_scale.switti.transformer import SCHEDULES
from tests.modules.next_scale.golden import AMPLIFIED, close, golden
from tests.modules.next_scale.tiny_switti import GOLDEN_SIDES, SIDES, golden_models, tiny_vqvae


def images(side: int = 8, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_image_is_encoded_like_the_reference(tmp_path: Path) -> None:
    expected = golden("switti_A", "encode")
    _, vae = golden_models(tmp_path)
    pixel_values = expected["image_u8_rgb"].float() / 127.5 - 1
    close(vae.encode(pixel_values), expected["f"])
    found = vae.encode_scales(pixel_values, GOLDEN_SIDES)
    for scale_index in range(len(GOLDEN_SIDES)):
        assert torch.equal(found.indices[scale_index], expected[f"s{scale_index}.idx"].long())
        theirs = expected[f"s{scale_index}.F_sty"]
        close(found.features[scale_index], theirs)
    close(vae.decode(found.features[-1]), expected["recon"], AMPLIFIED)


def test_the_indices_alone_rebuild_the_feature() -> None:
    vae = tiny_vqvae()
    found = vae.encode_scales(images(), SIDES)
    rebuilt = sum(
        vae.quantize.contribution(vae.quantize.codes(indices), scale_index, len(SIDES), SIDES[-1])
        for scale_index, indices in enumerate(found.indices)
    )
    torch.testing.assert_close(found.features[-1], rebuilt)


def test_what_is_left_shrinks_where_the_codebook_can_say_it() -> None:
    vae = tiny_vqvae(num_codes=512, smoothing=0.0)
    features = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2
    left = [(features - running).norm().item() for running in vae.quantize(features, SIDES).features]
    assert left == sorted(left, reverse=True) and left[-1] < 0.6 * features.norm()


def test_the_first_scales_alone_are_the_same() -> None:
    vae = tiny_vqvae()
    whole, first = vae.encode_scales(images(), SIDES), vae.encode_scales(images(), SIDES, num_scales=2)
    assert len(first.indices) == 2
    for ours, theirs in zip(first.features, whole.features, strict=False):
        assert torch.equal(ours, theirs)


def test_codes_are_found_again_and_mixtures_are_their_means() -> None:
    codebook = tiny_vqvae().quantize
    indices = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    codes = codebook.codes(indices)
    assert codes.shape == (2, 4, 3, 3)
    assert torch.equal(codebook.nearest(codes), indices)
    torch.testing.assert_close(codebook.codes(torch.nn.functional.one_hot(indices, 16).float()), codes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (256, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (512, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (1024, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_published_schedules_share_phi_as_published(size: int, expected: list[int]) -> None:
    number = len(SCHEDULES[size])
    assert [phi_index(scale_index, number, 4) for scale_index in range(number)] == expected


def test_other_architectures_have_other_strides_and_samples_stay_apart() -> None:
    vae = tiny_vqvae(channel_multipliers=(1, 2, 2), layers_per_block=2)
    assert vae.patch_size == 4
    both = vae.encode_scales(images(16), SIDES).features[-1]
    assert both.shape == (2, 4, 4, 4) and vae.decode(both).shape == (2, 3, 16, 16)
    torch.testing.assert_close(vae.encode_scales(images(16)[1:], SIDES).features[-1], both[1:])
    assert vae.decode(100 * both).abs().max() <= 1


def test_a_saved_model_is_the_same_and_half_precision_leaves_what_chooses_codes_alone(tmp_path: Path) -> None:
    vae = tiny_vqvae()
    vae.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = VQVAE.from_pretrained(tmp_path)
    found = vae.encode_scales(images(), SIDES)
    assert all(map(torch.equal, loaded.encode_scales(images(), SIDES).features, found.features))
    rounded = VQVAE.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert rounded.decoder.conv_in.weight.dtype == torch.bfloat16
    assert all(map(torch.equal, rounded.encode_scales(images(), SIDES).features, found.features))
    half, full = rounded.decode(found.features[-1]), vae.decode(found.features[-1])
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1


def test_an_image_of_another_size_is_said() -> None:
    with pytest.raises(ValueError, match="16 x 16 pixels; resize and crop it to 8 x 8"):
        tiny_vqvae().encode_scales(images(16), SIDES)
