"""Draws requests with an LLMDiff adapter; its file says which language model it was trained with."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from src.data.request import Request
from src.modules.backbone import DiffusionBackbone
from src.modules.denoising_errors import denoising_errors
from src.modules.device import usable_device
from src.modules.llm.cache import EncodingCache
from src.modules.llm.language_model import LanguageModel
from src.modules.llm.options import EncodingOptions
from src.modules.llm_encoder import LLMEncoder
from src.modules.llmdiff_adapter import FORMAT, LLMDiffAdapter
from src.modules.llmdiff_pipeline import LLMDiffPipeline
from src.modules.tensor_file import read_metadata


def trained_encoder(
    adapter: str | Path | None,
    path: str | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    keep_loaded: bool = True,
) -> LLMEncoder:
    """The encoder that an adapter was trained with, from what its file says.

    Args:
        adapter: The file.
        path: Where the language model is now, a folder or a hub id; None for where it was.
        dtype: Its precision; None for that of the training.
        cache_dir: For encodings; None to encode every time.
        keep_loaded: See ``LLMEncoder``.

    Raises:
        ValueError: If there is no adapter or no such language model.
    """
    if not adapter:
        raise ValueError("no adapter is given: add adapter=PATH; training writes one to <run folder>/exports")
    metadata = read_metadata(adapter, FORMAT, "an LLMDiff adapter")
    language_model = LanguageModel.from_pretrained(path or metadata["llm"], dtype or metadata["llm_dtype"])
    options = EncodingOptions(**json.loads(metadata["encoding"]))
    cache = None if cache_dir is None else EncodingCache(cache_dir)
    return LLMEncoder(language_model, options, cache, keep_loaded=keep_loaded)


class LLMDiffGenerator:
    """Draws prompts of any length up to the language model's context.

    Args:
        backbone: The stock model; its text encoders are not used.
        adapter: A file, or one in training.
        encoder: That it was trained with.
        strength: 0 for the original attention alone with phi(c), 1 for the adapter as it was learnt.
        num_inference_steps: Of the backbone's own scheduler.
        guidance_scale: Classifier-free guidance.
        batch_size: Images at a time; does not change an image beyond rounding.
        resolution: Image side; None for the backbone's own.
        negative_prompt: For guidance.
        device: Where to draw, as torch names it or ``auto``; None leaves the backbone where it is.

    Raises:
        ValueError: If the adapter does not fit the backbone or the language model, or torch cannot use the device.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        adapter: LLMDiffAdapter | str,
        encoder: LLMEncoder,
        strength: float = 1.0,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        batch_size: int = 8,
        resolution: int | None = None,
        negative_prompt: str = "",
        device: str | None = None,
    ) -> None:
        if device is not None:
            backbone.to(usable_device(device, "method.device"))
        self.backbone, self.encoder = backbone, encoder
        self.adapter = adapter if isinstance(adapter, LLMDiffAdapter) else LLMDiffAdapter.load(adapter, backbone)
        encoder.language_model.to(backbone.device)
        self.pipeline = LLMDiffPipeline(backbone.pipeline, self.adapter, encoder, strength)
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.batch_size, self.resolution = batch_size, resolution or backbone.resolution
        self.negative_prompt = negative_prompt

    def identity(self, prompt: str | None = None) -> dict[str, str]:
        """What an image depends on beside text and seed; the adapter as it was when this was first asked."""
        settings = (self.num_inference_steps, self.guidance_scale, self.pipeline.strength, self.resolution)
        backbone = self.backbone
        return {
            "backbone": f"{backbone.name} {backbone.cross_attention_hash} {backbone.dtype}",
            "adapter": self._adapter_hash,
            "llm": " ".join(astuple(self.encoder.identity)),
            "encoding": repr(self.encoder.options),
            "settings": " ".join(map(str, settings)),
            "negative_prompt": self.negative_prompt,
        }

    @cached_property
    def _adapter_hash(self) -> str:
        return self.adapter.content_hash()

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what could not be drawn.

        Raises:
            ValueError: If a prompt is too long for the language model or a request names a style.
        """
        if any(request.reference is not None for request in requests):
            raise ValueError("LLMDiff draws without a style reference: leave style out, or use method=style_svd")
        self.encoder.count_tokens([request.prompt for request in requests])

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw each request with its own seed; the result does not depend on what else is in the batch.

        Raises:
            ValueError: As of ``check``; nothing was drawn then.
        """
        self.check(requests)
        images: list[Image.Image] = []
        for start in range(0, len(requests), self.batch_size):
            images += self._draw(requests[start : start + self.batch_size])
        return images

    def _draw(self, requests: Sequence[Request]) -> list[Image.Image]:
        with self._evaluating():
            return self.pipeline(
                [request.prompt for request in requests],
                self.negative_prompt,
                generator=[torch.Generator().manual_seed(request.seed) for request in requests],
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                height=self.resolution,
                width=self.resolution,
            ).images

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """An adapter in training comes back as it was."""
        was_training = self.adapter.training
        self.adapter.eval()
        try:
            yield
        finally:
            self.adapter.train(was_training)

    @torch.no_grad()
    def denoising_errors(
        self, images: Sequence[Image.Image], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[float]:
        """How well each image is denoised under its caption; see ``denoising_errors``.

        Raises:
            ValueError: If a caption is too long; nothing was measured then.
        """
        self.encoder.count_tokens(captions)
        errors: list[float] = []
        with self._evaluating(), self.adapter.installed(self.backbone.unet, strength=self.pipeline.strength):
            for start in range(0, len(images), self.batch_size):
                at = slice(start, start + self.batch_size)
                generators = [torch.Generator().manual_seed(seed) for seed in seeds[at]]
                text = self.adapter(self.encoder.encode(captions[at]), generators)
                errors += denoising_errors(self.backbone, images[at], text, seeds[at], self.resolution)
        return errors
