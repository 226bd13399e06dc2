"""Draw requests with an LLMDiff adapter, through any stock diffusers pipeline."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from src.data.first_looks import LanguageModelPlace
from src.data.ranges import BatchSize, Sampling, Weight
from src.data.request import Identity, Request
from src.data.schema import RefusedFileError, parsed
from src.modules.backbones.denoising import denoising_errors
from src.modules.backbones.unet import UNetBackbone
from src.modules.generator import BatchedGenerator, pictures, usable_device
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.adapter_file import LLMDIFF_ADAPTER, NO_ADAPTER, AdapterFile
from src.modules.llmdiff.aggregation import Generators
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions


class LLMDiffPipeline:
    """Wraps a pipeline (text-to-image, img2img, inpainting or ControlNet, SD or SDXL), and is called like it.

    Prompts may have any length up to the language model's context, and different lengths in one batch.

    Args:
        pipeline: The stock pipeline; its text encoders are not used and may be absent.
        adapter: Adapter that was made for the pipeline's UNet.
        encoder: Encoder that the adapter was trained with.
        strength: Share of the new attention, see ``LLMDiffAdapter.installed``.

    Raises:
        ValueError: If the adapter does not fit the encoder.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, adapter: LLMDiffAdapter, encoder: LLMEncoder, strength: float = 1.0
    ) -> None:
        adapter.check_encoder(encoder)
        self.pipeline, self.adapter, self.encoder, self.strength = pipeline, adapter, encoder, strength

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        generator: Generators = None,
        **arguments: Any,
    ) -> Any:
        """Draw images.

        Args:
            prompt: One prompt, or several.
            negative_prompt: One for all prompts, one for each, or None for the empty one.
            generator: One for each image, or one for all. A text with noise (``noise=always``) draws from it too.
            arguments: Further arguments of the stock pipeline, such as ``num_inference_steps`` or ``image``.

        Returns:
            What the stock pipeline returns.

        Raises:
            ValueError: If a prompt is too long, or there are neither one nor as many negative prompts as prompts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _one_each(negative_prompt, len(prompts))
        # A single generator serves all prompts in turn; a list has one for each image.
        per_prompt = arguments.get("num_images_per_prompt") or 1
        seeded = generator if isinstance(generator, torch.Generator | None) else list(generator)[::per_prompt]
        with self.adapter.installed(self.pipeline.unet, getattr(self.pipeline, "controlnet", None), self.strength):
            texts = self.embeds(prompts, negatives, seeded)
            return self.pipeline(**texts, generator=generator, **arguments)

    def embeds(
        self, prompts: Sequence[str], negatives: Sequence[str], generators: Generators = None
    ) -> dict[str, Tensor]:
        """Return the pipeline's text arguments: ``prompt_embeds``, ``negative_prompt_embeds``, pooled ones for SDXL."""
        number = len(prompts)
        both = list(generators) * 2 if isinstance(generators, Sequence) else generators
        encoded = self.adapter(self.encoder.encode([*prompts, *negatives]), both)
        unet = self.pipeline.unet
        named = {"prompt_embeds": encoded.prompt_embeds, "pooled_prompt_embeds": encoded.pooled_prompt_embeds}
        found = {}
        for name, tensor in named.items():
            if tensor is not None:
                found[name], found[f"negative_{name}"] = tensor.to(unet.device, unet.dtype).split(number)
        return found


def _one_each(negative: str | Sequence[str] | None, number: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ""] * number
    if len(negative) != number:
        raise ValueError(f"{len(negative)} negative prompts for {number} prompts; give one, or one for each")
    return list(negative)


def trained_encoder(
    adapter: AdapterFile | Path,
    path: LanguageModelPlace | None = None,
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    keep_loaded: bool = True,
    download: bool = False,
) -> LLMEncoder:
    """Make the encoder that an adapter was trained with, from the metadata of its file.

    Args:
        adapter: File of the adapter.
        path: Folder or hub id of the language model; None for the one in the metadata.
        dtype: Precision of the language model; None for that of the training.
        cache_dir: Folder for encodings; None to encode every time.
        keep_loaded: Whether the language model stays in memory, see ``LLMEncoder``.
        download: Whether the repository that the metadata names may be fetched from the hub; the file may come from
            anybody.

    Raises:
        ValueError: If there is no adapter or no such language model.
    """
    if not adapter:
        raise ValueError(NO_ADAPTER)
    metadata = LLMDIFF_ADAPTER.read_header(adapter)
    dtype = dtype or metadata["llm_dtype"]
    if path is not None:
        language_model = LanguageModel.from_pretrained(path, dtype)
    else:
        language_model = _named_by(metadata, adapter, dtype, download)
    options = parsed(EncodingOptions, metadata["encoding"])
    cache = None if cache_dir is None else EncodingCache(cache_dir)
    return LLMEncoder(language_model, options, cache, keep_loaded=keep_loaded)


def _named_by(metadata: Mapping[str, str], adapter: str | Path, dtype: str, download: bool) -> LanguageModel:
    """The language model that an adapter's file names; what is not on this machine is fetched only if that is asked."""
    try:
        return LanguageModel.from_pretrained(metadata["llm"], dtype, local_files_only=not download)
    except ValueError as error:
        raise RefusedFileError(
            f"{adapter} was trained with the language model {metadata['llm']!r}, which cannot be had here ({error}); "
            "add method.encoder.path=FOLDER, or method.encoder.download=true to fetch that name from the hub"
        ) from error


class LLMDiffGenerator(BatchedGenerator[Request]):
    """Draws prompts of any length up to the language model's context.

    Args:
        backbone: The stock model; its text encoders are not used.
        adapter: File of the adapter, or an adapter in training.
        encoder: Encoder that the adapter was trained with.
        strength: 0 for the original attention alone with phi(c), 1 for the adapter as it was learnt.
        sampling: ``num_inference_steps``, ``guidance_scale``, ``negative_prompt`` and ``resolution`` (the image side);
            the backbone's own values stand for missing ones and None.
        batch_size: Number of images drawn at a time; it does not change an image beyond rounding.
        device: Torch device to draw on, or ``auto``; None leaves the backbone where it is.

    Raises:
        ValueError: If the adapter does not fit the backbone or the language model, the negative prompt is too long, or
            torch cannot use the device.
    """

    def __init__(
        self,
        backbone: UNetBackbone,
        adapter: LLMDiffAdapter | AdapterFile,
        encoder: LLMEncoder,
        strength: Weight = 1.0,
        sampling: Sampling | None = None,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        if device is not None:
            backbone.to(usable_device(device, "method.device"))
        self.sampling = backbone.settled(sampling)
        self.backbone, self.encoder = backbone, encoder
        if adapter is None:
            raise ValueError(NO_ADAPTER)
        encoder.count_tokens([self.sampling["negative_prompt"]])  # Refused here, and not after the first batch.
        self.adapter = adapter if isinstance(adapter, LLMDiffAdapter) else LLMDiffAdapter.load(adapter, backbone)
        encoder.language_model.to(backbone.device)
        self.pipeline = LLMDiffPipeline(backbone.pipeline, self.adapter, encoder, strength)

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside text and seed; the adapter is hashed at the first call only."""
        of_call = self.sampling
        settings = (of_call["num_inference_steps"], of_call["guidance_scale"], self.pipeline.strength)
        return {
            "backbone": self.backbone.identity,
            "adapter": self._adapter_hash,
            "llm": " ".join(astuple(self.encoder.identity)),
            "encoding": repr(self.encoder.options),
            "settings": " ".join(map(str, (*settings, of_call["resolution"]))),
            "negative_prompt": of_call["negative_prompt"],
        }

    @cached_property
    def _adapter_hash(self) -> str:
        return self.adapter.content_hash()

    def prepare(self, request: Request) -> Request:
        """Check a request, and return it.

        Raises:
            ValueError: If its prompt is too long for the language model or it names a style.
        """
        if request.style is not None:
            raise ValueError("LLMDiff draws without a style reference: leave style out, or use method=style_svd")
        self.encoder.count_tokens([request.prompt])
        return request

    def draw(self, batch: Sequence[Request]) -> list[Image.Image]:
        """Draw one batch."""
        with self._evaluating():
            drawn = self.pipeline(
                [request.prompt for request in batch],
                self.sampling["negative_prompt"],
                generator=[torch.Generator().manual_seed(request.seed) for request in batch],
                num_inference_steps=self.sampling["num_inference_steps"],
                guidance_scale=self.sampling["guidance_scale"],
                height=self.sampling["resolution"],
                width=self.sampling["resolution"],
                output_type="np",
            )
        return pictures(drawn.images)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """While active, the adapter is in evaluation mode."""
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
        """Measure how well each image is denoised under its caption; see ``denoising_errors``.

        Raises:
            ValueError: If a caption is too long; nothing was measured then.
        """
        self.encoder.count_tokens(captions)
        errors: list[float] = []
        with self._evaluating(), self.adapter.installed(self.backbone.unet, strength=self.pipeline.strength):
            for at in self.slices(len(images)):
                generators = [torch.Generator().manual_seed(seed) for seed in seeds[at]]
                text = self.adapter(self.encoder.encode(captions[at]), generators)
                errors += denoising_errors(self.backbone, images[at], text, seeds[at], self.sampling["resolution"])
        return errors
