"""Pretrains the world's scale-wise model: text encoder and transformer together, on bits of the image tokenizer."""

from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from src.data.world.tokenizers import write_t5_tokenizer
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.next_scale.infinity.training import bit_lesson, bit_losses, random_flips, token_weights
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.schedule import ScaleSchedules
from src.modules.training.diffusion import step_generator
from src.modules.training.ema import AveragedModule

MAX_TOKENS = 64
RATIO, BUDGET = "1.000", "all"


class ScaleWisePretraining(AveragedModule):
    """A T5EncoderModel and an InfinityTransformer learn caption -> bits together, with bitwise self-correction.

    Args:
        export_dir: Pipeline folder that holds ``vae`` and receives everything else.
        scale_schedule: Rows and columns of each grid, those that the image tokenizer was trained with.
        depth: Blocks of the transformer.
        width: Of the transformer.
        num_heads: Of the transformer.
        text_width: Width of the text encoder, a multiple of its 4 heads.
        text_layers: Its depth.
        learning_rate: Peak of the transformer; linear warm-up, cosine decay over ``max_steps``.
        text_learning_rate: Peak of the text encoder; at the transformer's it may collapse.
        caption_dropout: Share of captions that the table for no text stands in for, for classifier-free guidance.
        flip_strength: Largest probability of a wrong bit in a scale's input.
        reweight_by_scale: Whether a scale counts as the square root of its number of tokens, instead of that number.
        ema_decay: Of the weights that are exported.
        init_from: Pipeline folder whose text encoder and transformer to start from; None for random weights.
        seed: Of initial weights, flips and dropout.

    Raises:
        ValueError: If the image tokenizer has not been trained yet.
    """

    def __init__(
        self,
        export_dir: str,
        scale_schedule: list[list[int]],
        depth: int = 8,
        width: int = 256,
        num_heads: int = 4,
        text_width: int = 128,
        text_layers: int = 3,
        learning_rate: float = 1e-3,
        text_learning_rate: float = 3e-4,
        caption_dropout: float = 0.1,
        flip_strength: float = 0.3,
        reweight_by_scale: bool = True,
        ema_decay: float = 0.9995,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.pipeline_config: dict[str, Any] = {
            "scale_grids": {RATIO: scale_schedule},
            "scale_prefixes": {BUDGET: len(scale_schedule)},
        }
        self.schedule = ScaleSchedules(*self.pipeline_config.values()).schedule(RATIO, BUDGET)
        folder = Path(export_dir)
        self.vae = _image_tokenizer(folder / "vae").requires_grad_(False)
        # Embeddings go with the vocabulary that they were trained with: a resumed run keeps the one in its folder.
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            write_t5_tokenizer(folder / "tokenizer", MAX_TOKENS)
        self.tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
        torch.manual_seed(seed)
        self.text_encoder = _text_encoder(len(self.tokenizer), text_width, text_layers)
        bits = self.vae.config.latent_channels
        self.transformer = InfinityTransformer(
            depth, width, num_heads, bits, False, text_width, MAX_TOKENS, len(scale_schedule)
        )
        if init_from:
            self.transformer = InfinityTransformer.from_pretrained(
                init_from, subfolder="transformer", dtype=torch.float32
            )
            self.text_encoder = T5EncoderModel.from_pretrained(init_from, subfolder="text_encoder", dtype=torch.float32)
        self.register_buffer("weights", token_weights(self.schedule, reweight_by_scale), persistent=False)
        self.follow([*self.transformer.parameters(), *self.text_encoder.parameters()], ema_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean cross-entropy of a bit, weighted over scales, from inputs with wrong bits."""
        generator = step_generator(self.hparams.seed, int(batch["step"]), self.global_rank)
        loss = self._losses(batch, self.hparams.caption_dropout, self.hparams.flip_strength, generator).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same error with right bits and all captions."""
        losses = self._losses(batch, 0.0, 0.0, torch.Generator())
        self.log("val/loss", losses.mean(), batch_size=len(losses), prog_bar=True, sync_dist=True)

    def _losses(
        self, batch: dict[str, Any], caption_dropout: float, flip_strength: float, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            features = self.vae.encode(batch["pixel_values"])
            flips = random_flips(features, self.schedule, False, flip_strength, generator)
            lesson = bit_lesson(features, self.schedule, False, flips)
        text, mask = self._text(batch["caption"], caption_dropout, generator)
        logits = self.transformer(lesson.tokens, self.transformer.condition(text, mask), self.schedule)
        return (bit_losses(logits, lesson.bits) * self.weights).sum(1)

    def _text(self, captions: list[str], dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States ``(B, T, E)`` and their mask; the table for no text replaces those of dropped captions."""
        tokens = self.tokenizer(captions, padding="longest", return_tensors="pt").to(self.device)
        text = self.text_encoder(**tokens).last_hidden_state.float()
        dropped = (torch.rand(len(captions), generator=generator) < dropout).to(self.device)
        nothing = self.transformer.unconditional[: text.shape[1]]
        return torch.where(dropped[:, None, None], nothing, text), tokens.attention_mask.bool()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay; vectors and tables do not decay."""
        groups: list[dict[str, Any]] = []
        for part, rate in (
            (self.transformer, self.hparams.learning_rate),
            (self.text_encoder, self.hparams.text_learning_rate),
        ):
            matrices = [module.weight for module in part.modules() if isinstance(module, torch.nn.Linear)]
            of_matrices = {id(parameter) for parameter in matrices}
            others = [parameter for parameter in part.parameters() if id(parameter) not in of_matrices]
            groups += [{"params": matrices, "lr": rate}, {"params": others, "lr": rate, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.97), weight_decay=5e-3)
        steps = self.trainer.max_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self) -> dict[str, str]:
        """Write the averaged weights as an Infinity pipeline, half precision, with the image tokenizer as it was."""
        self.ema.copy_to(self.averaged)
        pipeline = InfinityPipeline(
            self.transformer.half(), self.vae, self.text_encoder.half(), self.tokenizer, **self.pipeline_config
        )
        pipeline.save_pretrained(self.hparams.export_dir)
        return {"text-to-image pipeline": self.hparams.export_dir}


def _image_tokenizer(folder: Path) -> BSQTokenizer:
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is missing: run python train.py +experiment=world/infinity_tokenizer first")
    return BSQTokenizer.from_pretrained(folder)


def _text_encoder(words: int, width: int, layers: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=words,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)
