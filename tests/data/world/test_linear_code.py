from pathlib import Path

import numpy as np
import pytest

from src.data.world.datamodules import to_pixel_values
from src.data.world.linear_code import LinearCode
from src.data.world.render import render
from src.data.world.scenes import sample_scene


@pytest.fixture(scope="module")
def pixel_values() -> np.ndarray:
    return to_pixel_values(np.stack([np.asarray(render(sample_scene(seed))) for seed in range(160)]))


@pytest.fixture(scope="module")
def code(pixel_values: np.ndarray) -> LinearCode:
    return LinearCode.fit(pixel_values, 24)


def psnr(restored: np.ndarray, pixel_values: np.ndarray) -> float:
    return float(10 * np.log10(4 / np.mean((restored - pixel_values) ** 2)))


def test_shapes(code: LinearCode, pixel_values: np.ndarray) -> None:
    latents = code.encode(pixel_values[:5])
    assert latents.shape == (5, 24, 8, 8)
    assert code.decode(latents).shape == (5, 3, 64, 64)
    assert latents.dtype == np.float32


def test_code_of_a_crop_is_the_crop_of_the_code(code: LinearCode, pixel_values: np.ndarray) -> None:
    crop = code.encode(pixel_values[:8, :, 16:48, 8:56])
    np.testing.assert_allclose(crop, code.encode(pixel_values[:8])[:, :, 2:6, 1:7], atol=1e-5)


def test_components_are_orthonormal(code: LinearCode) -> None:
    np.testing.assert_allclose(code.components @ code.components.T, np.eye(24), atol=1e-5)


def test_latents_have_unit_variance_and_zero_mean(code: LinearCode, pixel_values: np.ndarray) -> None:
    latents = code.encode(pixel_values)
    channels = latents.transpose(1, 0, 2, 3).reshape(24, -1)
    assert np.mean(channels.var(1)) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(channels.mean(1), 0, atol=1e-3)
    # Half way to whitening: strong components stay strong.
    assert (np.diff(channels.std(1)) < 1e-3).all()


def test_decode_inverts_encode_on_the_span(code: LinearCode) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 24, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(code.encode(code.decode(latents)), latents, atol=1e-4)


def test_more_channels_keep_more(pixel_values: np.ndarray) -> None:
    codes = [LinearCode.fit(pixel_values, channels) for channels in (4, 12, 24, 192)]
    scores = [psnr(code.decode(code.encode(pixel_values)), pixel_values) for code in codes]
    assert scores == sorted(scores)
    assert scores[-1] > 80  # all 192 components: nothing is lost


def test_no_other_directions_of_the_same_number_keep_more(code: LinearCode, pixel_values: np.ndarray) -> None:
    best = psnr(code.decode(code.encode(pixel_values)), pixel_values)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((192, 192)))[0].astype(np.float32)
    tilted = np.linalg.qr((code.components + 0.1 * rotation[:24]).T)[0].T.astype(np.float32)
    other = LinearCode(code.mean, tilted, code.scales)
    assert best > psnr(other.decode(other.encode(pixel_values)), pixel_values)


def test_fit_is_repeatable_and_survives_the_disk(code: LinearCode, pixel_values: np.ndarray, tmp_path: Path) -> None:
    code.save(tmp_path / "code.safetensors")
    loaded, again = LinearCode.load(tmp_path / "code.safetensors"), LinearCode.fit(pixel_values, 24)
    for name in ("mean", "components", "scales"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(code, name))
        np.testing.assert_allclose(getattr(again, name), getattr(code, name), atol=1e-5)
