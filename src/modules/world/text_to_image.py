"""Pretrains the world's text-to-image model: text encoder and UNet together, on latents of the linear code."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from src.data.world.tokenizers import write_clip_tokenizer
from src.data.world.vocabulary import COLORS, NOUNS, PATTERNS
from src.modules.training.diffusion import diffusion_target, draw_noise, per_sample_mse, step_generator
from src.modules.training.ema import AveragedModule


class ObjectPhrases:
    """Tells "a red striped dog" from the rest of a caption, in token ids.

    Args:
        tokenizer: Has every word of the world as one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.kinds = [_ids(tokenizer, words) for words in (tuple(COLORS), PATTERNS, NOUNS)]
        self.article = _ids(tokenizer, ("a",))

    def places(self, ids: Tensor) -> Tensor:
        """The phrase that each token of ``ids`` ``(B, L)`` belongs to: 1 and up in order, 0 outside of phrases.

        A phrase is colour, pattern and noun as far as they are named, and the article right before them; it ends at
        the noun.
        """
        named = torch.isin(ids, torch.cat(self.kinds))
        article = torch.isin(ids, self.article) & torch.roll(named, -1, dims=1)
        nouns = torch.isin(ids, self.kinds[-1]).long()
        return (nouns.cumsum(1) - nouns + 1) * (named | article)

    def others(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The same captions of other objects: every colour, pattern and noun is drawn anew."""
        for kind in self.kinds:
            drawn = kind[torch.randint(len(kind), ids.shape, generator=generator)]
            ids = torch.where(torch.isin(ids, kind), drawn, ids)
        return ids

    def read_alone(self, encode: Callable[[Tensor], Tensor], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Text states ``(B, L, D)`` that tell of each object in its own phrase and nowhere else.

        A causal encoder tells of a noun in all rows after it too. Here the rows of a phrase come from the caption in
        which all *other* objects are drawn anew, and rows outside of phrases from the one in which all of them are.

        Args:
            encode: Token ids ``(N, L)`` to states ``(N, L, D)``.
            ids: Token ids, shape ``(B, L)``.
            generator: Of the other objects.
        """
        places = self.places(ids)
        variants = places.amax(1) + 1
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


class TextToImagePretraining(AveragedModule):
    """A CLIPTextModel and a UNet2DConditionModel learn caption -> scene together.

    Args:
        export_dir: Pipeline folder that receives ``tokenizer``, ``text_encoder``, ``unet`` and ``scheduler``.
        block_out_channels: UNet widths on the 8 x 8 and 4 x 4 grids.
        latent_channels: Of the code.
        text_width: Width of the text encoder.
        text_layers: Its depth.
        learning_rate: Peak of the UNet; linear warm-up, cosine decay over ``max_steps``.
        text_learning_rate: Peak of the text encoder. At the UNet's rate it collapses: it keeps the background, which
            most pixels show, and no longer tells colours and nouns apart.
        caption_dropout: Share of empty captions, for classifier-free guidance.
        phrases_alone: Share of captions whose objects can be read from their own phrases alone; see ``ObjectPhrases``.
            Without it the UNet reads colours from the noun's row and shapes from the rows after it.
        ema_decay: Of the weights that are exported.
        init_from: Pipeline folder whose text encoder and UNet to start from; None for random weights.
        seed: Of noise, timesteps, dropout and the other objects of captions read alone.

    Raises:
        ValueError: If ``phrases_alone`` is no share.
    """

    def __init__(
        self,
        export_dir: str,
        block_out_channels: list[int],
        latent_channels: int = 24,
        text_width: int = 128,
        text_layers: int = 3,
        learning_rate: float = 1.5e-3,
        text_learning_rate: float = 3e-4,
        caption_dropout: float = 0.1,
        phrases_alone: float = 0.5,
        ema_decay: float = 0.9995,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= phrases_alone <= 1:
            raise ValueError(f"method.phrases_alone is {phrases_alone}; give a share of the captions, 0 to 1")
        self.save_hyperparameters()
        words = Path(export_dir) / "tokenizer"
        if not (words / "vocab.json").exists():
            write_clip_tokenizer(words)
        self.tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=MAX_TOKENS)
        self.phrases = ObjectPhrases(self.tokenizer)
        torch.manual_seed(seed)
        self.text_encoder = _text_encoder(self.tokenizer, text_width, text_layers)
        self.unet = _unet(block_out_channels, latent_channels, text_width)
        if init_from:
            self.unet = UNet2DConditionModel.from_pretrained(init_from, subfolder="unet", dtype=torch.float32)
            self.text_encoder = CLIPTextModel.from_pretrained(
                init_from, subfolder="text_encoder", dtype=torch.float32, attn_implementation="eager"
            )
        # Scaled-dot-product kernels for small heads in bfloat16 are slow on CPUs: twice the step time.
        self.unet.set_attn_processor(AttnProcessor())
        self.scheduler = DDPMScheduler(**SCHEDULER)
        self.follow([*self.unet.parameters(), *self.text_encoder.parameters()], ema_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean velocity error of one batch."""
        generator = step_generator(self.hparams.seed, int(batch["step"]), self.global_rank)
        dropped = torch.rand(len(batch["caption"]), generator=generator) < self.hparams.caption_dropout
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        text = self._mixed_text(self._ids(captions), generator)
        loss = self._losses(batch["latents"], text, [generator] * len(captions)).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same error on fixed noise and timesteps."""
        generators = [step_generator(1, index, batch_idx) for index in range(len(batch["caption"]))]
        text = self._encode(self._ids(batch["caption"]))
        loss = self._losses(batch["latents"], text, generators).mean()
        self.log("val/loss", loss, batch_size=len(generators), prog_bar=True, sync_dist=True)

    def _ids(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def _encode(self, ids: Tensor) -> Tensor:
        return self.text_encoder(ids.to(self.device)).last_hidden_state

    def _mixed_text(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Text states of a training batch: the first ``phrases_alone`` of it read alone, the others as they are."""
        alone = round(self.hparams.phrases_alone * len(ids))
        # Attention takes no empty batch.
        states = [self.phrases.read_alone(self._encode, ids[:alone], generator)] if alone else []
        states += [self._encode(ids[alone:])] if alone < len(ids) else []
        return torch.cat(states)

    def _losses(self, latents: Tensor, text: Tensor, generators: list[torch.Generator]) -> Tensor:
        noise, timesteps = draw_noise(latents, self.scheduler.config.num_train_timesteps, generators)
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.unet(noisy_latents, timesteps, text).sample
        return per_sample_mse(prediction, diffusion_target(self.scheduler, latents, noise, timesteps))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay."""
        groups = [
            {"params": self.unet.parameters(), "lr": self.hparams.learning_rate},
            {"params": self.text_encoder.parameters(), "lr": self.hparams.text_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
        steps = self.trainer.max_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self) -> dict[str, str]:
        """Write the averaged weights as a Stable Diffusion pipeline, half precision, with the autoencoder beside them.

        Raises:
            ValueError: If the autoencoder has not been trained yet.
        """
        root = Path(self.hparams.export_dir)
        if not (root / "vae" / "config.json").exists():
            raise ValueError(
                f"{root}/vae is missing: run python train.py +experiment=world/sd_vae, then this with resume=true"
            )
        self.ema.copy_to([*self.unet.parameters(), *self.text_encoder.parameters()])
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
