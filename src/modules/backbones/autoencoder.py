"""Encode images with a stock autoencoder to the latents that its denoiser was trained on, and load another one."""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from src.data.finite import DRAWN, DRAWN_ADVICE, check_finite, is_finite
from src.data.first_looks import looks_local
from src.data.identity import file_hash, folder_identity, joined
from src.data.schema import read_json
from src.modules.backbones.headers import described, read_header


@torch.no_grad()
def scaled_latents(vae: Any, pixel_values: Tensor) -> Tensor:
    """Encode images to the posterior's mean, shifted and scaled as the autoencoder's configuration says.

    Args:
        vae: Autoencoder; one that overflows in float16, as its ``force_upcast`` says, encodes in float32.
        pixel_values: Images in [-1, 1], ``(B, 3, H, W)``.

    Returns:
        Latents ``(B, C, h, w)``, float32, in row-major order as from a file, for training rounds by the layout.

    Raises:
        ValueError: If they are not finite.
    """
    config = vae.config
    with _upcast(vae, getattr(config, "force_upcast", False)):
        encoded = vae.encode(pixel_values.to(vae.device, vae.dtype))
    # An autoencoder without a posterior, such as Sana's, has the code itself.
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    check_finite(latents, "the latents of these images")
    return scaled(config, latents).float().contiguous()


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Decode what ``scaled_latents`` returns, ``(B, C, h, w)``, to images ``(B, 3, H, W)``, float32."""
    unscaled = scaled(vae.config, latents.float(), inverse=True)
    return vae.decode(unscaled.to(vae.device, vae.dtype), return_dict=False)[0].float()


def scaled(config: Any, latents: Tensor, inverse: bool = False) -> Tensor:
    """Shift and scale latents ``(B, C, h, w)`` as an autoencoder's configuration says, or undo it."""
    factor = getattr(config, "scaling_factor", 1.0)
    mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:  # Some autoencoders of SDXL have one for each channel.
        mean, deviation = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, deviation))
        return latents * deviation / factor + mean if inverse else (latents - mean) * factor / deviation
    shift = getattr(config, "shift_factor", None) or 0
    return latents / factor + shift if inverse else (latents - shift) * factor


def guarded(vae: Any) -> Any:
    """Make an autoencoder decode again, in float32, what overflows in float16; what is not finite then is refused.

    What does not overflow is decoded as in a stock pipeline, bit for bit. A pipeline would show NaN as black, and clip
    infinity to white.

    Returns:
        The same autoencoder.
    """
    if hasattr(vae.decode, "stock"):
        return vae
    stock = vae.decode

    @functools.wraps(stock)
    def decode(latents: Tensor, *others: Any, **named: Any) -> Any:
        decoded = stock(latents, *others, **named)
        if vae.dtype == torch.float16 and not is_finite(_pixels(decoded)):
            with _upcast(vae, True):
                decoded = stock(latents.float(), *others, **named)
        check_finite(_pixels(decoded), DRAWN, DRAWN_ADVICE)
        return decoded

    decode.stock = stock  # type: ignore[attr-defined]
    vae.decode = decode
    return vae


def _pixels(decoded: Any) -> Tensor:
    return decoded[0] if isinstance(decoded, tuple) else decoded.sample


@contextlib.contextmanager
def _upcast(vae: Any, overflows: bool) -> Iterator[None]:
    if vae.dtype != torch.float16 or not overflows:
        yield
        return
    # Torch's own method: that of diffusers warns of every change of precision, though this one is undone.
    nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        nn.Module.to(vae, torch.float16)


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder that takes the place of a model's own.

    Attributes:
        path: Folder or hub id in diffusers' layout, or ``.safetensors`` in either layout.
        local_files_only: Whether what is on the hub must have been fetched before.
    """

    path: str
    local_files_only: bool = False

    def check(self) -> None:
        """Refuse what is no autoencoder, before weights are read; a hub id is looked at when it is fetched.

        Raises:
            ValueError: If it is none.
        """
        place = Path(self.path).expanduser()
        if place.is_file():
            metadata, shapes = read_header(place)
            if not any(name.endswith("decoder.conv_in.weight") for name in shapes):
                raise ValueError(f"{place} holds {described(metadata, shapes)}, but backbone.vae takes an autoencoder")
        elif looks_local(self.path):
            self._check_kind(place)

    def load(self, own: Any, dtype: torch.dtype) -> AutoencoderKL:
        """Load it.

        Args:
            own: The model's own autoencoder: a file has its configuration, and all must have latents of its size.
            dtype: Working precision.

        Raises:
            ValueError: As in ``check``, or if its latents are of another size.
        """
        place = Path(self.path).expanduser()
        if not place.is_file():
            folder = self._folder()
            self._check_kind(folder)
            self._check_size(AutoencoderKL.load_config(str(folder)), own)
            return AutoencoderKL.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
        _, shapes = read_header(place)
        name = next(name for name in shapes if name.endswith("decoder.conv_in.weight"))
        self._check_size({**own.config, "latent_channels": shapes[name][1]}, own)
        with TemporaryDirectory() as temporary:
            (Path(temporary) / "config.json").write_text(json.dumps(dict(own.config), default=str), encoding="utf-8")
            try:
                return AutoencoderKL.from_single_file(str(place), config=temporary, dtype=dtype, local_files_only=True)
            except (NotImplementedError, ValueError) as error:
                raise ValueError(
                    f"{place} is an autoencoder of another size than the model's own; give backbone.vae=FOLDER, a "
                    "folder in diffusers' layout"
                ) from error

    def content_hash(self, own: str) -> str:
        """Hash what is loaded.

        Args:
            own: Hash of the model's own autoencoder, whose configuration a file has.
        """
        place = Path(self.path).expanduser()
        if place.is_file():
            return joined({"file": file_hash(place), "configuration": own})
        return folder_identity(self._folder())[:16]

    def _folder(self) -> Path:
        if looks_local(self.path):
            return Path(self.path).expanduser()
        files = ["config.json", "*.safetensors"]
        return Path(snapshot_download(self.path, allow_patterns=files, local_files_only=self.local_files_only))

    def _check_kind(self, folder: Path) -> None:
        path = folder / "config.json"
        kind = read_json(path, "the configuration of an autoencoder (backbone.vae)").get("_class_name")
        if kind != "AutoencoderKL":
            raise ValueError(f"backbone.vae={self.path} holds {kind}, but an AutoencoderKL is needed")

    def _check_size(self, config: Any, own: Any) -> None:
        sizes = [(one["latent_channels"], len(one["block_out_channels"])) for one in (config, own.config)]
        if sizes[0] != sizes[1]:
            (channels, blocks), (own_channels, own_blocks) = sizes
            raise ValueError(
                f"backbone.vae={self.path} has {channels} channels of latents, {2 ** (blocks - 1)} times smaller than "
                f"the image, but this model has {own_channels}, {2 ** (own_blocks - 1)} times smaller"
            )
