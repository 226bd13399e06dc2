"""Bits on a pyramid of grids: what the quantiser promises, and the reference's own numbers."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.bits import bit_codes, pooled, quantise, resized
from src.modules.next_scale.infinity.convert import tokenizer_state
from tests.modules.next_scale.golden import AMPLIFIED, close, golden

GRIDS = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
GOLDEN_GRIDS = [(side, side) for side in (1, 2, 4, 6, 8, 12, 16)]


def features(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def small(**changes: object) -> BSQTokenizer:
    torch.manual_seed(0)
    sizes = {"latent_channels": 4, "base_channels": 8, "channel_multipliers": [1, 2], "layers_per_block": 1}
    return BSQTokenizer(**{**sizes, "patch_size": 2, "norm_num_groups": 4, **changes})


def test_codes_are_unit_vectors_and_zero_is_bit_zero() -> None:
    codes = bit_codes(features() > 0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2, 8, 8))
    assert not quantise(torch.zeros(1, 4, 8, 8), GRIDS[:1]).bits[0].any()


def test_the_sum_of_upsampled_codes_is_the_feature_and_later_scales_do_not_matter() -> None:
    whole, prefix = quantise(features(), GRIDS), quantise(features(), GRIDS[:3])
    torch.testing.assert_close(
        whole.features[-1], sum(resized(bit_codes(bits), (8, 8)) for bits in whole.bits), rtol=0, atol=1e-6
    )
    for ours, theirs in zip(prefix.features, whole.features[:3], strict=True):
        assert torch.equal(ours, theirs)


def test_codes_are_resized_between_the_centres_of_cells() -> None:
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resized(row, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]


def test_every_bit_is_the_sign_of_what_is_left() -> None:
    found = quantise(features(), GRIDS)
    for index, grid in enumerate(GRIDS[1:]):
        left = pooled(features() - found.features[index], grid)
        assert torch.equal(found.bits[index + 1], left > 0)


def test_flipped_bits_are_handed_on_but_not_returned() -> None:
    flips = [torch.ones(2, 4, 1, 1, dtype=torch.bool)]
    plain, flipped = quantise(features(), GRIDS), quantise(features(), GRIDS, flips)
    assert torch.equal(plain.bits[0], flipped.bits[0])
    torch.testing.assert_close(flipped.features[0], -plain.features[0])
    assert torch.equal(flipped.bits[1], pooled(features() - flipped.features[0], (2, 2)) > 0)


def test_gradients_pass_straight_through() -> None:
    given = features().requires_grad_()
    weights = features(1)
    (quantise(given, GRIDS).features[-1] * weights).sum().backward()
    torch.testing.assert_close(given.grad, weights)


def test_more_scales_describe_an_image_better() -> None:
    given = features() * 0.3
    errors = [float(mse_loss(feature, given)) for feature in quantise(given, GRIDS).features]
    assert errors[-1] < errors[0]


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    tokenizer, pixel_values = small(), torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        alone = torch.cat([tokenizer.encode(image[None]) for image in pixel_values])
        torch.testing.assert_close(tokenizer.encode(pixel_values), alone, rtol=0, atol=1e-5)


def test_half_precision_leaves_the_encoder_alone(tmp_path) -> None:
    small().save_pretrained(tmp_path)
    loaded = BSQTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.encoder.conv_in.weight.dtype == torch.float32
    assert loaded.decoder.conv_in.weight.dtype == torch.bfloat16
    pixel_values = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.encode(pixel_values), small().encode(pixel_values))
        decoded, exact = (each.decode(bit_codes(features() > 0)) for each in (loaded, small()))
    torch.testing.assert_close(decoded, exact, rtol=0, atol=0.05)


def test_channels_last_is_the_same_picture() -> None:
    feature = bit_codes(features() > 0)
    with torch.no_grad():
        plain, last = small().decode(feature), small().to(memory_format=torch.channels_last).decode(feature)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch_size", [3, 4])
def test_an_impossible_patch_is_said(patch_size: int) -> None:
    with pytest.raises(ValueError, match=f"patch_size is {patch_size}"):
        small(patch_size=patch_size)


def test_widths_that_the_groups_do_not_divide_have_24() -> None:
    tokenizer = small(base_channels=24, channel_multipliers=[1, 3], norm_num_groups=16)
    groups = [module.num_groups for module in tokenizer.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert set(groups) == {24}
    assert {m.num_groups for m in small(base_channels=24, norm_num_groups=8).modules() if hasattr(m, "num_groups")} == {
        8
    }


def test_features_bits_and_pictures_are_the_references() -> None:
    expected = golden("infinity_A", "encode")
    tokenizer = BSQTokenizer(16, 32, [1, 1, 1, 1, 1], 1, 16)
    tokenizer.load_state_dict(tokenizer_state(golden("infinity_A", "vae")))
    with torch.no_grad():
        encoded = tokenizer.encode(expected["image_u8_rgb"] / 127.5 - 1)
        close(encoded, expected["h"])
        found = quantise(expected["h"], GOLDEN_GRIDS)
        restored = tokenizer.decode(found.features[-1])
    for index, bits in enumerate(found.bits):
        assert torch.equal(bits.permute(0, 2, 3, 1)[:, None].byte(), expected[f"s{index}.bits"])
    for index in range(4):
        close(found.features[index][:, :, None], expected[f"s{index}.F_sty"])
    for index, grid in enumerate(GOLDEN_GRIDS[1:]):
        area = pooled(found.features[index], grid)[:, :, None]
        close(area, expected[f"s{index}.var_input_area"])
    close(restored[..., :64, :64], expected["recon_crop64"], AMPLIFIED)
