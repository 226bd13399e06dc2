"""Infinity as a diffusers pipeline: prompts to images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import T5EncoderModel, T5TokenizerFast

from src.data.images import fitted
from src.modules.generator import model_sampling, settled
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.bits import quantise
from src.modules.next_scale.infinity.sampling import InfinityDraw, cell_grids
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loop import Condition, Generation, OnScale
from src.modules.next_scale.memory import BlockBytes, PeakMemory
from src.modules.next_scale.pipeline import NextScalePipeline, check_call, check_lengths, check_room, drawn, num_tokens
from src.modules.next_scale.sampling import Generators
from src.modules.next_scale.schedule import INFINITY_PREFIXES, ScaleSchedule, ScaleSchedules, infinity_grids

Texts = str | Sequence[str]
SAMPLING = {"guidance_scale": 3.0, "temperature": 0.5, "top_k": 0, "top_p": 0.97, "cfg_insertion_layer": (0,)}
"""Values of the arguments that a call leaves out, unless the model has settings of its own."""


class InfinityPipeline(NextScalePipeline):
    """Draws images from text, in any size that the schedules have.

    Args:
        transformer: Predicts the next scale's bits.
        vae: Turns sums of codes into images.
        text_encoder: Encodes prompts, a T5 encoder.
        tokenizer: Tokenizer of the text encoder.
        scale_grids: Height / width as text to rows and columns of its grids, coarse to fine; None for Infinity's own.
        scale_prefixes: Name of a pixel budget to how many of the grids it takes; None for Infinity's own.
        sampling: The model's own values of arguments that a call leaves out, where they differ from ``SAMPLING``.

    Raises:
        ValueError: If the parts do not belong to one model, or ``sampling`` names an unknown argument.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: InfinityTransformer,
        vae: BSQTokenizer,
        text_encoder: T5EncoderModel,
        tokenizer: T5TokenizerFast,
        scale_grids: Mapping[str, Sequence[Sequence[int]]] | None = None,
        scale_prefixes: Mapping[str, int] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(scale_grids=scale_grids, scale_prefixes=scale_prefixes, sampling=sampling)
        self.sampling = model_sampling(SAMPLING, sampling)
        self.schedules = ScaleSchedules(scale_grids or infinity_grids(), scale_prefixes or INFINITY_PREFIXES)
        self._check_parts()
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.cell)

    def _check_parts(self) -> None:
        transformer, cells = self.transformer.config, 4 if self.transformer.config.patchify else 1
        longest = max(self.schedules.prefixes.values())
        pairs = {
            "bits of a token, by the image tokenizer": (
                transformer.token_bits,
                cells * self.vae.config.latent_channels,
            ),
            "text channels, by the text encoder": (transformer.text_channels, self.text_encoder.config.d_model),
            "scales or more, by the schedule": (max(transformer.max_scales, longest), transformer.max_scales),
        }
        for name, (expected, found) in pairs.items():
            if expected != found:
                raise ValueError(f"the parts do not match: the transformer expects {expected} {name} {found}")

    @property
    def cell(self) -> int:
        """Side of a token in pixels."""
        return self.vae.config.patch_size * (2 if self.transformer.config.patchify else 1)

    @property
    def num_scales(self) -> int:
        """Number of scales of an image of the default size."""
        return len(self.schedule().grids)

    def schedule(self, height: int | None = None, width: int | None = None) -> ScaleSchedule:
        """Return the grids of an image of this size; by default of the largest square.

        Raises:
            ValueError: If only one of the sizes is given, or one is not positive.
        """
        if height is None and width is None:
            ratio = min(self.schedules.grids, key=lambda name: abs(float(name) - 1))
            return self.schedules.schedule(ratio, max(self.schedules.prefixes, key=self.schedules.prefixes.__getitem__))
        if height is None or width is None or min(height, width) < 1:
            raise ValueError(f"height is {height} and width is {width}; give both, in pixels, or neither")
        return self.schedules.nearest(height, width, self.cell)

    @torch.no_grad()
    def encode_image(
        self, images: Sequence[Image.Image], num_scales: int, height: int | None = None, width: int | None = None
    ) -> Tensor:
        """Encode images to the running sum of their codes after the first scales, ``F_s``: ``(B, d, H, W)``.

        Args:
            images: Images of any size; they are resized to cover the drawn size and cropped in the centre.
            num_scales: Number of scales s to add up.
            height: Height of the image that is to be drawn, see ``schedule``.
            width: Width of the image that is to be drawn.
        """
        grids = cell_grids(self.schedule(height, width), self.transformer.config.patchify)
        rows, columns = (side * self.vae.config.patch_size for side in grids[-1])
        pixel_values = fitted(images, rows, columns).to(self.vae.device)
        return quantise(self.vae.encode(pixel_values), grids[:num_scales]).features[-1]

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of a prompt."""
        return min(self.tokenizer.model_max_length, self.transformer.config.max_text_length)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that would have to be truncated.

        Raises:
            ValueError: If one is too long for the transformer.
        """
        check_lengths(self.tokenizer, prompts, self.max_tokens)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], truncate: bool = False) -> tuple[Tensor, Tensor]:
        """Return states of the text encoder ``(B, T, E)``, and which of them are not padding, boolean ``(B, T)``.

        Raises:
            ValueError: If a prompt is too long for the transformer and is not to be truncated.
        """
        if not truncate:
            self.check_prompts(prompts)
        tokens = self.tokenizer(
            list(prompts), padding="longest", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.text_encoder.device)
        states = self.text_encoder(**tokens).last_hidden_state
        return states, tokens.attention_mask.bool().to(states.device)

    @torch.no_grad()
    def decode(self, feature: Tensor) -> Tensor:
        """Decode running sums ``(B, d, H, W)`` one at a time, for memory, to images ``(B, 3, H s, W s)`` in [-1, 1]."""
        return torch.cat([self.vae.decode(each) for each in feature.split(1)])

    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts,
        negative_prompt: Texts | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        cfg_insertion_layer: Sequence[int] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        truncate: bool = False,
        callback_on_scale_end: Sequence[OnScale] = (),
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | Tensor]:
        """Draw RGB images; 8-bit ones are rounded to the nearest value (the published code rounds down).

        Arguments of sampling that are None take the model's own values, see ``sampling``.

        Args:
            prompt: One prompt, or several different ones.
            negative_prompt: What guidance leads away from: one for all prompts, or one for each; an empty one is none.
            height: Wanted height in pixels; the nearest shape and size is drawn. By default the largest square.
            width: Wanted width in pixels, given together with ``height``.
            guidance_scale: Factor g in ``g l_c + (1 - g) l_u``, for all scales or for each; 1 is no guidance.
            temperature: Divisor of the logits, for all scales or for each.
            top_k: Number of values that a bit may take: 1 always takes the likelier, others change nothing.
            top_p: Values that are less likely than ``1 - top_p`` are not drawn; 0 allows all.
            cfg_insertion_layer: Where guidance acts: 0 on the logits, -k on the output of the k-th block from the end.
            num_images_per_prompt: Number of images of each prompt; they are adjacent in the result.
            generator: One generator, or one for each image: then an image does not depend on the rest of the batch.
            output_type: ``pil``, ``np``, ``pt`` (both in [0, 1]), or ``latent`` for the last running sum.
            return_dict: Whether to wrap the images like other pipelines.
            truncate: Whether to cut prompts that are too long instead of refusing them.
            callback_on_scale_end: Hooks that get each scale's index and the ``Generation``, which they may change.

        Raises:
            ValueError: If an argument is impossible.
        """
        check_call(num_images_per_prompt, output_type)
        prompts, negatives = _texts(prompt, negative_prompt)
        images = len(prompts) * num_images_per_prompt
        sampling = settled(
            self.sampling,
            {
                "guidance_scale": guidance_scale,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "cfg_insertion_layer": cfg_insertion_layer,
            },
        )
        model = InfinityDraw.planned(self.transformer, self.schedule(height, width), **sampling)
        check_room(self, self._peak(model, prompts + negatives), images, callback_on_scale_end, output_type)
        generation = Generation(
            model,
            self._condition(prompts, negatives, model.paired(0), truncate).repeated(num_images_per_prompt),
            images,
            generator,
        )
        return drawn(self, generation, callback_on_scale_end, output_type, return_dict)

    def _peak(self, model: InfinityDraw, texts: Sequence[str]) -> PeakMemory:
        length = min(max(num_tokens(self.tokenizer, text) for text in texts), self.max_tokens)
        return PeakMemory(
            model,
            lengths=model.schedule.lengths,
            logits=2 * self.transformer.config.token_bits,
            block=BlockBytes.of_infinity(self.transformer, length),
            feature=(model.channels, *model.cells[-1]),
            vae=self.vae,
            patch=self.vae.config.patch_size,
        )

    def _condition(self, prompts: list[str], negatives: list[str], guided: bool, truncate: bool) -> Condition:
        given = [text for text in negatives if text] if guided else []
        text, mask = self.encode_prompt([*prompts, *given], truncate)
        if not guided:
            return self.transformer.condition(text, mask)
        # An empty negative prompt is none: the learnt states of no text, under the mask of its prompt.
        number, further = len(prompts), iter(range(len(prompts), len(text)))
        rows = [next(further) if negative else at for at, negative in enumerate(negatives)]
        states, nothing = text[rows], torch.tensor([not negative for negative in negatives], device=text.device)
        states = torch.where(nothing[:, None, None], self.transformer.unconditional[: text.shape[1]].to(text), states)
        return self.transformer.condition(torch.cat([text[:number], states]), torch.cat([mask[:number], mask[rows]]))


def _texts(prompt: Texts, negative_prompt: Texts | None) -> tuple[list[str], list[str]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = negative_prompt or ""
    negatives = [given] * len(prompts) if isinstance(given, str) else list(given)
    if not prompts or len(negatives) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts and {len(negatives)} negative prompts were given; give at least one prompt, and "
            "one negative prompt for all or one for each"
        )
    return prompts, negatives
