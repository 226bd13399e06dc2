"""The interface between methods and diffusion models: the frozen parts of a checkpoint, and what methods ask of them.

``Backbone`` is the contract; ``unet.py`` and ``pixart.py`` implement it, and the tests in
``tests/modules/backbones/test_contract.py`` hold every implementation to it.

Shapes: B prompts or images, L tokens, D text width, C latent channels.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from src.data.finite import check_finite
from src.data.first_looks import ModelPlace
from src.data.identity import joined, parts_in_memory, projections_hash
from src.data.known_words import KnownWords
from src.data.mentions import MarkedPrompt
from src.data.prompts import concept_positions, tokenize
from src.data.ranges import Sampling
from src.modules.backbones.attention_backends import check_attention, switch_attention
from src.modules.backbones.autoencoder import guarded
from src.modules.backbones.checkpoint import KNOWN_BY_CONTENT, Checkpoint
from src.modules.backbones.latents import Latents
from src.modules.backbones.lora import apply_loras
from src.modules.backbones.memory import Memory, computing_device
from src.modules.backbones.noising import Diffusion
from src.modules.backbones.projections import fingerprint_on_disk, text_projections
from src.modules.backbones.schedulers import check_scheduler, scheduler_like
from src.modules.backbones.tensors import Noised, Text
from src.modules.generator import model_sampling, pictures, settled

_log = logging.getLogger(__name__)
SAMPLING: dict[str, Any] = {"num_inference_steps": 30, "guidance_scale": 5.0, "keep_context": False}
"""Settings of drawing, unless the backbone has its own or the call gives others."""


class Backbone(Diffusion, Latents, ABC):
    """A stock pipeline behind the interface that methods use; its weights are frozen and never change.

    Args:
        pipeline: A pipeline of one of the classes in ``pipelines``.
        name: Name of the model in banks and reports.
        sampling: The model's own settings of drawing, where they differ from ``SAMPLING``.
        safety_checker: Whether a checkpoint's safety checker stays on, which blacks out what it takes for unsafe.
        parts: Part of the pipeline, such as ``vae``, to a hash of its files; None to hash what is in memory.

    Attributes:
        denoiser: The UNet or transformer.
        fingerprint: Hash of the weights that read text, 16 hexadecimal digits; a bank fits only the same fingerprint.
        known_words: The words that the model was taught, where it carries their list.
        checkpoint: What the pipeline was loaded from; None for one that was made in memory.
        scheduler: Name of the sampler that takes the place of the checkpoint's own.
        conditioned: A ``ConditionedPipeline``, which draws from pictures as well; None for text alone.

    Raises:
        ValueError: If ``sampling`` has another key, or the pipeline is of another kind.
    """

    known_words: KnownWords | None = None
    checkpoint: Checkpoint | None = None
    scheduler: str | None = None
    memory: Memory = Memory()
    conditioned: Any = None
    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]
    """Stock pipelines that this backbone takes."""
    incidental: ClassVar[tuple[str, ...]] = (*KNOWN_BY_CONTENT, "scheduler", "memory", "compile", "attention")
    """What does not change what is learnt with a model: it is known by its content, not by its path."""
    option: ClassVar[str] = ""
    """Configuration of this kind of backbone in a command; empty for the default kind."""
    usual_sampling: ClassVar[Mapping[str, Any]] = SAMPLING
    """Settings of drawing that a model of this kind may have its own of."""
    switched: ClassVar[bool] = False
    """Whether ``backbone.attention`` reaches the attention of this kind, by diffusers' switch."""
    joint: ClassVar[Literal["text first", "image first"] | None] = None
    """Where image and text attend to both together, and a prompt has no keys that stay the same: which stands first."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name: str,
        sampling: Mapping[str, Any] | None = None,
        safety_checker: bool = False,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(pipeline, self.pipelines):
            wanted = " or ".join(one.__name__ for one in self.pipelines)
            raise ValueError(f"{name} holds a {type(pipeline).__name__}, but {type(self).__name__} takes a {wanted}")
        self.pipeline, self.name = pipeline, name
        self.sampling = model_sampling(self.usual_sampling, sampling)
        if getattr(pipeline, "safety_checker", None) is not None and not safety_checker:
            pipeline.register_modules(safety_checker=None)
            pipeline.register_to_config(requires_safety_checker=False)
            _log.warning("the safety checker of %s is off; backbone.safety_checker=true switches it on", name)
        self.vae = guarded(pipeline.vae)
        self.tokenizers, self.text_encoders = zip(*self.encoders(), strict=True)
        for module in (self.denoiser, self.vae, *self.text_encoders):
            module.requires_grad_(False).eval()
        self.noise_scheduler = self.training_schedule()
        self.fingerprint = projections_hash({n: linear.parameters() for n, linear in self.text_layers().items()})
        self._file_parts = parts
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        path: ModelPlace,
        dtype: str = "float32",
        local_files_only: bool = False,
        sampling: Sampling | None = None,
        safety_checker: bool = False,
        config: ModelPlace | None = None,
        variant: str | None = None,
        revision: str | None = None,
        vae: ModelPlace | None = None,
        lora: Sequence[Any] = (),
        scheduler: str | None = None,
        memory: Memory | Mapping[str, Any] | None = None,
        compile: bool = False,
        attention: str | None = None,
        controlnet: ModelPlace | None = None,
    ) -> Self:
        """Load a hub id, a local folder in diffusers' layout or, as a ``UNetBackbone``, one file of weights.

        Args:
            path: The model; a file ends in ``.safetensors`` and has the original layout.
            dtype: Working precision.
            local_files_only: Whether what is on the hub must have been fetched before.
            sampling: As of the class.
            safety_checker: As of the class.
            config: As of ``Checkpoint``, and so are the others.
            variant: As there.
            revision: As there.
            vae: As there.
            lora: As there. A bank fits with them and without, but where they differ drawing says so.
            scheduler: Name of the sampler of drawing, one of ``schedulers.NAMES``; None for the checkpoint's own.
            memory: What is done to save memory, or its settings.
            compile: Whether torch compiles the denoiser's repeated blocks, which changes a picture by rounding alone.
            attention: What computes attention, one of ``BACKENDS``, the same but for rounding; None for torch's choice.
            controlnet: As of ``Checkpoint``.

        Raises:
            ValueError: As of ``Checkpoint.load``, or if a key of ``sampling`` is unknown.
        """
        checkpoint = Checkpoint(path, dtype, local_files_only, config, variant, revision, vae, tuple(lora), controlnet)
        check_scheduler(scheduler)
        check_attention(attention, cls.switched, cls.__name__)
        checkpoint.check(cls)
        # Before the weights are read.
        sampling, memory = model_sampling(cls.usual_sampling, sampling), Memory.of(memory)
        pipeline = checkpoint.load(cls)
        checkpoint = replace(checkpoint, local_files_only=True)  # What was fetched just now is on the disk.
        backbone = cls(pipeline, checkpoint.name, sampling, safety_checker, checkpoint.parts())
        backbone.checkpoint = checkpoint
        backbone.known_words = KnownWords.read(path) if checkpoint.place else None
        if dtype == "bfloat16":
            backbone.fingerprint = fingerprint_on_disk(checkpoint, pipeline, backbone.denoiser, backbone.text_layers())
        # After the fingerprint: a model with LoRAs is one of the same cross-attention, with other weights.
        apply_loras(pipeline, checkpoint.loras)
        if scheduler is not None:
            pipeline.register_modules(scheduler=scheduler_like(pipeline.scheduler, scheduler))
        switch_attention(backbone.denoiser, attention)
        backbone.scheduler, backbone.memory = scheduler, memory.apply(pipeline, backbone.denoiser, compile)
        return backbone

    @classmethod
    def first_look(cls, settings: Mapping[str, Any]) -> None:
        """Refuse, as ``from_pretrained`` does, what cannot be loaded, before anything slow."""
        check_scheduler(settings.get("scheduler"))
        check_attention(settings.get("attention"), cls.switched, cls.__name__)
        Memory.of(settings.get("memory"))
        Checkpoint.of(settings).check(cls)

    @classmethod
    def content(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash what these arguments of ``from_pretrained`` load, part by part, without loading it."""
        sampler = {"sampler": settings["scheduler"]} if settings.get("scheduler") else {}
        return Checkpoint.of(settings).parts() | sampler | Memory.of(settings.get("memory")).content

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that predicts noise or velocity; diffusers calls its cross-attention layers ``attn2``."""

    @abstractmethod
    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """Return one or several pairs of tokenizer and text encoder; the first tokenizer locates concepts."""

    @abstractmethod
    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)``, one tensor per text encoder, as the stock pipeline does."""

    @abstractmethod
    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict the target, ``(B, C, h, w)``, with gradient.

        Args:
            noised: Noisy latents and timesteps.
            text: Encoded prompts, one row per image.
            size_ids: SDXL's time ids, the size and crop of each image, ``(B, 6)``; None for whole images of this size.
        """

    def as_read(self, prompt: str) -> str:
        """Change a prompt as the stock pipeline does before it tokenises it, word by word."""
        return prompt

    def read_text(self, prompt_embeds: Tensor) -> Tensor:
        """Turn states of whole prompts ``(B, L, D)`` into the input of ``text_layers``, row by row: here the same."""
        return prompt_embeds

    def text_layers(self) -> dict[str, nn.Linear]:
        """Return the projections from text to keys and values: ``k.<layer>`` and ``v.<layer>``, in module order."""
        return text_projections(self.denoiser)

    def place(self, prompt: str, class_nouns: Mapping[str, str]) -> tuple[MarkedPrompt, list[tuple[str, list[int]]]]:
        """Parse a prompt, and find the rows of each mention in its text, as ``concept_positions`` does."""
        return concept_positions(self.tokenizers[0], prompt, class_nouns, self.as_read)

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of every call of the stock pipeline, which keep it from changing prompts or sizes."""
        return {}

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that choose this backbone on the command line, whatever configuration it came from."""
        made = self.checkpoint or Checkpoint(self.pipeline.name_or_path, str(self.dtype).removeprefix("torch."))
        sampler = {"backbone.scheduler": self.scheduler} if self.scheduler else {}
        own = {"backbone": self.option} if self.option else {}
        return own | made.overrides | self.memory.overrides | sampler

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """Hash of each part of the pipeline, such as ``vae``, and of its settings."""
        if self._file_parts is None:
            return parts_in_memory(self.pipeline)
        # What is switched off, such as a safety checker, changes no picture.
        live = self.pipeline.components
        return {name: part for name, part in self._file_parts.items() if live.get(name, part) is not None}

    @property
    def content_hash(self) -> str:
        """Hash of every part, 16 hexadecimal digits."""
        return joined(self.parts)

    @property
    def identity(self) -> str:
        """Hash of every part, and precision: what an image depends on beside the method's own settings."""
        told = (self.content_hash, str(self.dtype), self.scheduler, self.memory.seen)
        return " ".join(filter(None, (*told, getattr(self.conditioned, "identity", None))))

    @property
    def device(self) -> torch.device:
        """Where the denoiser is, or computes where hooks of accelerate move it."""
        return computing_device(self.pipeline, self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the denoiser."""
        return self.denoiser.dtype

    @property
    def resolution(self) -> int:
        """Native side of an image in pixels."""
        return int(self.denoiser.config.sample_size * self.pipeline.vae_scale_factor)

    def to(self, device: torch.device | str) -> "Backbone":
        """Move every part."""
        self.memory.place(self.pipeline, self.denoiser, torch.device(device))
        return self

    def settled(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Complete the settings of a call, as ``settled`` does: the model's own stand for missing ones and None."""
        own = {name: value for name, value in self.sampling.items() if name != "keep_context"}
        return settled({**own, "negative_prompt": "", "resolution": self.resolution}, given)

    def token_ids(self, prompts: Sequence[str]) -> list[Tensor]:
        """Tokenize plain prompts for each text encoder, ``(B, L)``.

        Raises:
            ValueError: If one has more tokens than the text encoder takes.
        """
        return [tokenize(tokenizer, [*map(self.as_read, prompts)]) for tokenizer in self.tokenizers]

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode plain prompts, without gradient.

        Raises:
            ValueError: As in ``token_ids``, or if the states are not finite.
        """
        text = torch.no_grad()(self.encode_ids)(self.token_ids(prompts))
        check_finite(text.prompt_embeds, "the states of the text")
        return text

    def guidance(self, scale: float) -> dict[str, Any]:
        """Return the argument of a stock call that sets how strongly the prompt guides."""
        return {"guidance_scale": scale}

    def negatives(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of a stock call that leads away from texts, one for each image; an empty one is none."""
        return {"negative_prompt": list(prompts)}

    def encoded(self, text: Text) -> dict[str, Any]:
        """Return the arguments of a stock call that reads text states in place of prompts."""
        pooled = {} if text.pooled_prompt_embeds is None else {"pooled_prompt_embeds": text.pooled_prompt_embeds}
        return {"prompt_embeds": text.prompt_embeds, **pooled}

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: Mapping[str, Any],
        text: Text | None = None,
        **arguments: Any,
    ) -> list[Image.Image]:
        """Draw one image for each plain prompt, with one call of the stock pipeline.

        Args:
            prompts: B prompts.
            seeds: Seed of each image.
            settings: What ``settled`` returns; its negative prompt holds for all images, and an empty one is none.
            text: What the denoiser reads in place of the prompts, one row for each; None to encode them.
            arguments: Further arguments of the pipeline's call.

        Raises:
            ValueError: As in ``token_ids``, also for the negative prompt, or if the pixels are not finite.
        """
        self.token_ids([*prompts, settings["negative_prompt"]])
        drawn = (self.conditioned or self.pipeline)(
            **({"prompt": list(prompts)} if text is None else self.encoded(text)),
            **self.negatives([settings["negative_prompt"]] * len(prompts)),
            num_inference_steps=settings["num_inference_steps"],
            **self.guidance(settings["guidance_scale"]),
            height=settings["resolution"],
            width=settings["resolution"],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **self.call,
            **arguments,
        )
        return pictures(drawn.images)
