"""Pretrain the world's scale-wise model: text encoder and transformer together, on bits of the image tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from src.data.known_words import write_known_words
from src.data.ranges import BelowOne, Count, Seed, Share
from src.data.world.tokenizers import taught_words, write_t5_tokenizer
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.next_scale.infinity.training import bit_lesson, bit_losses, random_flips, token_weights
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.schedule import ScaleSchedules
from src.modules.training.learner import Learner, TrainingRecord

MAX_TOKENS = 64
RATIO, BUDGET = "1.000", "all"


@dataclass(frozen=True)
class TransformerSize:
    """Size of an ``InfinityTransformer``.

    Attributes:
        depth: Number of blocks.
        width: Width of a token.
        num_heads: Number of attention heads.
    """

    depth: Count = 6
    width: Count = 192
    num_heads: Count = 4


class ScaleWisePretraining(Learner):
    """Trains a T5EncoderModel and an InfinityTransformer together, caption -> bits, with bitwise self-correction.

    Args:
        export_dir: Pipeline folder that holds ``vae`` and receives everything else.
        scale_schedule: Rows and columns of each grid, as the image tokenizer was trained with.
        size: Size of the transformer.
        text_width: Width of the text encoder, a multiple of its 4 heads.
        text_layers: Number of blocks of the text encoder.
        caption_dropout: Share of captions replaced by the table for missing text, for classifier-free guidance.
        flip_strength: Largest probability of a wrong bit in a scale's input.
        reweight_by_scale: Whether a scale is weighted by the square root of its number of tokens instead of the number.
        init_from: Pipeline folder whose text encoder and transformer to start from; None for random weights.
        seed: Seed of the initial weights, flips and dropout.

    Raises:
        ValueError: If the image tokenizer has not been trained yet.
    """

    validates_average: ClassVar[bool] = False
    weights: Tensor

    def __init__(
        self,
        export_dir: str,
        scale_schedule: list[list[int]],
        size: TransformerSize | None = None,
        text_width: Count = 128,
        text_layers: Count = 3,
        caption_dropout: BelowOne = 0.1,
        flip_strength: Share = 0.3,
        reweight_by_scale: bool = True,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.seed = export_dir, seed
        self.caption_dropout, self.flip_strength = caption_dropout, flip_strength
        self.pipeline_config: dict[str, Any] = {
            "scale_grids": {RATIO: scale_schedule},
            "scale_prefixes": {BUDGET: len(scale_schedule)},
        }
        self.schedule = ScaleSchedules(*self.pipeline_config.values()).schedule(RATIO, BUDGET)
        folder = Path(export_dir)
        self.vae = _image_tokenizer(folder / "vae").requires_grad_(False)
        # Embeddings belong to the vocabulary that they were trained with, so a resumed run keeps the one in its folder.
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            write_t5_tokenizer(folder / "tokenizer", MAX_TOKENS)
        self.tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
        torch.manual_seed(seed)
        text_encoder = _text_encoder(len(self.tokenizer), text_width, text_layers)
        size, bits = size or TransformerSize(), self.vae.config.latent_channels
        self.transformer = InfinityTransformer(
            size.depth, size.width, size.num_heads, bits, False, text_width, MAX_TOKENS, len(scale_schedule)
        )
        if init_from:
            self.transformer = InfinityTransformer.from_pretrained(
                init_from, subfolder="transformer", dtype=torch.float32
            )
            text_encoder = T5EncoderModel.from_pretrained(init_from, subfolder="text_encoder", dtype=torch.float32)
        # Registered after the transformer, which is the order of the averaged weights in earlier checkpoints.
        self.text_encoder = text_encoder
        self.register_buffer("weights", token_weights(self.schedule, reweight_by_scale), persistent=False)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the cross-entropy of a bit for each image ``(B,)``, from inputs with flipped bits."""
        return self.bit_errors(batch, self.caption_dropout, self.flip_strength, generators[0])

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the same error with no flipped bits and all captions."""
        return self.bit_errors(batch, 0.0, 0.0, generators[0])

    def bit_errors(
        self, batch: dict[str, Any], caption_dropout: float, flip_strength: float, generator: Generator
    ) -> Tensor:
        """Compute the cross-entropy of a bit, weighted over scales, for each image ``(B,)``."""
        with torch.no_grad():
            features = self.vae.encode(batch["pixel_values"])
            flips = random_flips(features, self.schedule, False, flip_strength, generator)
            lesson = bit_lesson(features, self.schedule, False, flips)
        text, mask = self._text(batch["caption"], caption_dropout, generator)
        logits = self.transformer(lesson.tokens, self.transformer.condition(text, mask), self.schedule)
        return (bit_losses(logits, lesson.bits) * self.weights).sum(1)

    def _text(self, captions: list[str], dropout: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """Encode captions to states ``(B, T, E)`` and a mask; the table for missing text replaces dropped captions."""
        tokens = self.tokenizer(captions, padding="longest", return_tensors="pt").to(self.device)
        text = self.text_encoder(**tokens).last_hidden_state.float()
        dropped = (torch.rand(len(captions), generator=generator) < dropout).to(self.device)
        nothing = self.transformer.unconditional[: text.shape[1]]
        return torch.where(dropped[:, None, None], nothing, text), tokens.attention_mask.bool()

    def groups(self) -> list[dict[str, Any]]:
        """Group matrices and the rest, without weight decay, by part: at one rate the text encoder may collapse."""
        groups: list[dict[str, Any]] = []
        for name in ("transformer", "text_encoder"):
            part = getattr(self, name)
            matrices = [module.weight for module in part.modules() if isinstance(module, torch.nn.Linear)]
            of_matrices = {id(parameter) for parameter in matrices}
            others = [parameter for parameter in part.parameters() if id(parameter) not in of_matrices]
            groups += [{"name": name, "params": matrices}, {"name": name, "params": others, "weight_decay": 0.0}]
        return groups

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write an Infinity pipeline in half precision, with the image tokenizer unchanged."""
        pipeline = InfinityPipeline(
            self.transformer.half(), self.vae, self.text_encoder.half(), self.tokenizer, **self.pipeline_config
        )
        pipeline.save_pretrained(self.export_dir)
        write_known_words(self.export_dir, taught_words())
        return {"text-to-image pipeline": self.export_dir}


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
