"""A linear image code: principal components of 8 x 8 patches, the latent space that the world's autoencoder learns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from src.data.schema import RefusedFileError

PATCH = 8


@dataclass(frozen=True)
class LinearCode:
    """PCA of image patches with tempered variances.

    Component i is divided by the square root of its standard deviation, half way to whitening, so that strong ones stay
    strong. One constant then gives the latents as a whole unit variance.

    Attributes:
        mean: Mean patch, shape ``(P,)``, ``P = 3 * 8 * 8``.
        components: Orthonormal rows, shape ``(C, P)``.
        scales: Size of one unit of each latent channel in units of the pixels, shape ``(C,)``.
    """

    mean: np.ndarray
    components: np.ndarray
    scales: np.ndarray

    @classmethod
    def fit(cls, pixel_values: np.ndarray, channels: int) -> "LinearCode":
        """Fit to images ``(B, 3, H, W)`` in [-1, 1], keeping the ``channels`` strongest components."""
        patches = _to_patches(pixel_values).reshape(-1, 3 * PATCH * PATCH).astype(np.float64)
        mean = patches.mean(0)
        variances, vectors = np.linalg.eigh(np.cov((patches - mean).T))
        order = np.argsort(variances)[::-1][:channels]
        deviations, components = np.sqrt(variances[order]), vectors[:, order].T
        components = components * np.sign(components.sum(1, keepdims=True) + 1e-12)
        # Latent i has deviation sqrt(d_i) before the common constant, which makes their mean square 1.
        scales = np.sqrt(deviations) * np.sqrt(deviations.mean())
        return cls(mean.astype(np.float32), components.astype(np.float32), scales.astype(np.float32))

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """Encode images ``(B, 3, H, W)`` to latents ``(B, C, H/8, W/8)`` of overall unit variance."""
        patches = _to_patches(pixel_values) - self.mean
        return np.ascontiguousarray((patches @ (self.components.T / self.scales)).transpose(0, 3, 1, 2))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents ``(B, C, h, w)`` to images ``(B, 3, 8h, 8w)``, which is the linear baseline."""
        patches = latents.transpose(0, 2, 3, 1) @ (self.components * self.scales[:, None]) + self.mean
        batch, rows, columns, _ = patches.shape
        grid = patches.reshape(batch, rows, columns, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(grid.reshape(batch, 3, rows * PATCH, columns * PATCH))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file."""
        save_file({"mean": self.mean, "components": self.components, "scales": self.scales}, path)

    @classmethod
    def load(cls, path: str | Path) -> "LinearCode":
        """Read from a safetensors file.

        Raises:
            RefusedFileError: If the file is missing or damaged, or holds other arrays.
        """
        try:
            arrays = load_file(path)
        except (SafetensorError, OSError) as error:
            raise RefusedFileError(f"{path} cannot be read as a linear image code ({error})") from error
        shapes = {name: array.shape for name, array in arrays.items()}
        channels, width = arrays["scales"].size if "scales" in arrays else 0, 3 * PATCH * PATCH
        expected = {"mean": (width,), "components": (channels, width), "scales": (channels,)}
        if shapes != expected or not channels or not all(np.isfinite(array).all() for array in arrays.values()):
            raise RefusedFileError(f"{path} is no linear image code: it takes finite mean, components, scales")
        return cls(**arrays)


def _to_patches(pixel_values: np.ndarray) -> np.ndarray:
    """Split ``(B, 3, H, W)`` into ``(B, H/8, W/8, 3 * 8 * 8)``."""
    batch, channels, height, width = pixel_values.shape
    grid = pixel_values.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, height // PATCH, width // PATCH, -1)
