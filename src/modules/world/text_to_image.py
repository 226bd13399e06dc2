"""Pretrain the world's text-to-image model: text encoder and UNet together, on latents of the linear code."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from src.data.known_words import write_known_words
from src.data.ranges import BelowOne, Count, Seed, Share
from src.data.world.tokenizers import taught_words, write_clip_tokenizer
from src.data.world.vocabulary import COLORS, NOUNS, PATTERNS
from src.modules.training.diffusion import diffusion_target, draw_noise, per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord


class ObjectPhrases:
    """Finds phrases such as "a red striped dog" in the token ids of a caption, and can change the objects in them.

    Args:
        tokenizer: Tokenizer for which every word of the world is one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.kinds = [_ids(tokenizer, words) for words in (tuple(COLORS), PATTERNS, NOUNS)]
        self.article = _ids(tokenizer, ("a",))

    def places(self, ids: Tensor) -> Tensor:
        """Number the phrase that each token of ``ids`` ``(B, L)`` belongs to, from 1 on; 0 is outside of phrases.

        A phrase is colour, pattern and noun, as far as they are named, and the article before them; the noun ends it.
        """
        named = torch.isin(ids, torch.cat(self.kinds))
        article = torch.isin(ids, self.article) & torch.roll(named, -1, dims=1)
        nouns = torch.isin(ids, self.kinds[-1]).long()
        return (nouns.cumsum(1) - nouns + 1) * (named | article)

    def others(self, ids: Tensor, generator: Generator) -> Tensor:
        """Draw every colour, pattern and noun of the captions anew."""
        for kind in self.kinds:
            drawn = kind[torch.randint(len(kind), ids.shape, generator=generator)]
            ids = torch.where(torch.isin(ids, kind), drawn, ids)
        return ids

    def read_alone(self, encode: Callable[[Tensor], Tensor], ids: Tensor, generator: Generator) -> Tensor:
        """Encode captions to states ``(B, L, D)`` in which only an object's own phrase carries information about it.

        A causal encoder also mixes a noun into all later rows. Here the rows of a phrase come from a caption in which
        all *other* objects are drawn anew, and rows outside of phrases from one in which all objects are.

        Args:
            encode: Encodes token ids ``(N, L)`` to states ``(N, L, D)``.
            ids: Token ids, ``(B, L)``.
            generator: Source of the other objects.
        """
        places = self.places(ids)
        # Each caption has a variant that keeps no object, and one for each object that it keeps.
        variants = places.amax(1) + 1  # (B,)
        first = variants.cumsum(0) - variants
        caption = torch.arange(len(ids)).repeat_interleave(variants)
        kept = torch.arange(len(caption)) - first[caption]
        own = (places[caption] == kept[:, None]) & (kept > 0)[:, None]
        states = encode(torch.where(own, ids[caption], self.others(ids, generator)[caption]))
        return states[first[:, None] + places, torch.arange(ids.shape[1])]


def _ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Tensor:
    return torch.tensor(tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words]))


SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
MAX_TOKENS = 40


class TextToImagePretraining(Learner):
    """Trains a CLIPTextModel and a UNet2DConditionModel together, caption -> scene.

    Args:
        export_dir: Pipeline folder that receives ``tokenizer``, ``text_encoder``, ``unet`` and ``scheduler``.
        block_out_channels: Widths of the UNet on the 8 x 8 and 4 x 4 grids.
        latent_channels: Channels of the linear code.
        text_width: Width D of the text encoder.
        text_layers: Number of blocks of the text encoder.
        caption_dropout: Share of empty captions, for classifier-free guidance.
        phrases_alone: Share of captions whose objects only their own phrases tell of, see ``ObjectPhrases``. Without it
            the UNet reads colours from the noun's row and shapes from the rows after it.
        init_from: Pipeline folder whose text encoder and UNet to start from; None for random weights.
        seed: Seed of noise, timesteps, dropout and the objects that are drawn anew.
    """

    validates_average: ClassVar[bool] = False

    def __init__(
        self,
        export_dir: str,
        block_out_channels: list[Count],
        latent_channels: Count = 24,
        text_width: Count = 128,
        text_layers: Count = 3,
        caption_dropout: BelowOne = 0.1,
        phrases_alone: Share = 0.5,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.seed = export_dir, seed
        self.caption_dropout, self.phrases_alone = caption_dropout, phrases_alone
        words = Path(export_dir) / "tokenizer"
        if not (words / "vocab.json").exists():
            write_clip_tokenizer(words)
        self.tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=MAX_TOKENS)
        self.phrases = ObjectPhrases(self.tokenizer)
        torch.manual_seed(seed)
        text_encoder = _text_encoder(self.tokenizer, text_width, text_layers)
        self.unet = _unet(block_out_channels, latent_channels, text_width)
        if init_from:
            self.unet = UNet2DConditionModel.from_pretrained(init_from, subfolder="unet", dtype=torch.float32)
            text_encoder = CLIPTextModel.from_pretrained(
                init_from, subfolder="text_encoder", dtype=torch.float32, attn_implementation="eager"
            )
        # Registered after the UNet, which is the order of the averaged weights in earlier checkpoints.
        self.text_encoder = text_encoder
        # Scaled-dot-product kernels for small heads in bfloat16 are slow on CPUs: twice the step time.
        self.unet.set_attn_processor(AttnProcessor())
        self.scheduler = DDPMScheduler(**SCHEDULER)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the velocity error of each sample ``(B,)``; some of them lose their caption."""
        generator = generators[0]
        dropped = torch.rand(len(batch["caption"]), generator=generator) < self.caption_dropout
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        text = self._mixed_text(self._ids(captions), generator)
        return self._errors(batch["latents"], text, [generator] * len(captions))

    def validation_generators(self, batch: dict[str, Any], batch_idx: int) -> list[Generator]:
        """Make one generator for each sample, the same for every seed of the training."""
        return [step_generator(1, index, batch_idx) for index in range(len(batch["caption"]))]

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the same error with all captions, on fixed noise and timesteps."""
        return self._errors(batch["latents"], self._encode(self._ids(batch["caption"])), generators)

    def _ids(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def _encode(self, ids: Tensor) -> Tensor:
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def _mixed_text(self, ids: Tensor, generator: Generator) -> Tensor:
        """Encode a training batch: the first ``phrases_alone`` of it with ``read_alone``, the others as usual."""
        alone = round(self.phrases_alone * len(ids))
        # Attention does not accept an empty batch.
        states = [self.phrases.read_alone(self._encode, ids[:alone], generator)] if alone else []
        states += [self._encode(ids[alone:])] if alone < len(ids) else []
        return torch.cat(states)

    def _errors(self, latents: Tensor, text: Tensor, generators: list[Generator]) -> Tensor:
        noise, timesteps = draw_noise(latents, self.scheduler.config.num_train_timesteps, generators)
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy_latents, timesteps, text).sample
        return per_sample_mse(prediction, diffusion_target(self.scheduler, latents, noise, timesteps))

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters by part, because at the UNet's rate the text encoder collapses.

        It then keeps only the background, which most pixels show, and no longer tells colours and nouns apart.
        """
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return [{"name": name, "params": list(part.parameters())} for name, part in parts.items()]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write a Stable Diffusion pipeline in half precision, with the autoencoder that is already in the folder.

        Raises:
            ValueError: If the autoencoder has not been trained yet.
        """
        root = Path(self.export_dir)
        if not (root / "vae" / "config.json").exists():
            raise ValueError(
                f"{root}/vae is missing: run python train.py +experiment=world/sd_vae, then this with resume=true"
            )
        self.unet.set_default_attn_processor()
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(root / "vae"),
            text_encoder=self.text_encoder.half(),
            tokenizer=self.tokenizer,
            unet=self.unet.half(),
            scheduler=DDIMScheduler(**SCHEDULER, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(root)
        write_known_words(root, taught_words())
        return {"text-to-image pipeline": str(root)}


def _text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    return CLIPTextModel(config)


def _unet(widths: list[int], latent_channels: int, text_width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
