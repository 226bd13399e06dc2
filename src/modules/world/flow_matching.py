"""Pretrain the world's second text-to-image model: an MM-DiT, on the latents and the text of the first.

Stable Diffusion 3 (Esser et al., 2024, arXiv 2403.03206): text and image are two streams of one transformer, which
attend to both together; it learns a straight path from noise to image (flow matching). The text encoders stay frozen.

Shapes: B images, L tokens, D text width, C latent channels.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Generator, Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from src.data.known_words import write_known_words
from src.data.ranges import BelowOne, Count, Seed, Share
from src.data.world.tokenizers import taught_words
from src.modules.training.diffusion import draw_flow, per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord
from src.modules.world.text_to_image import ObjectPhrases

MAX_TOKENS = 32
"""No caption of the world is longer, and every row costs time in each layer."""
SHARD = "20MB"
"""Largest file of weights, for repositories do not take large ones."""


class FlowMatchingPretraining(Learner):
    """Trains an SD3Transformer2DModel, caption -> scene, by flow matching.

    Both text encoders come from a Stable Diffusion of the world. The first keeps all its layers and reads a word in its
    context; the second keeps one, so that its states, which are those before its last layer, tell of each word alone.

    Args:
        export_dir: Pipeline folder that is written.
        teacher: Pipeline folder whose tokenizer, text encoder and autoencoder it takes.
        num_layers: Number of joint blocks.
        num_heads: Heads of attention, 64 wide each; together they are the width of the transformer.
        latent_channels: Channels of the latents.
        caption_dropout: Share of empty captions, for classifier-free guidance.
        phrases_alone: Share of captions whose objects only their own phrases tell of, see ``ObjectPhrases``.
        init_from: Pipeline folder whose transformer to start from; None for random weights.
        seed: Seed of noise, times, dropout and the objects that are drawn anew.
    """

    validates_average: ClassVar[bool] = False

    def __init__(
        self,
        export_dir: str,
        teacher: str,
        num_layers: Count = 6,
        num_heads: Count = 4,
        latent_channels: Count = 24,
        caption_dropout: BelowOne = 0.1,
        phrases_alone: Share = 0.5,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.teacher, self.seed = export_dir, teacher, seed
        self.caption_dropout, self.phrases_alone = caption_dropout, phrases_alone
        self.tokenizer = CLIPTokenizer.from_pretrained(Path(teacher) / "tokenizer", model_max_length=MAX_TOKENS)
        self.phrases = ObjectPhrases(self.tokenizer)
        encoder = CLIPTextModel.from_pretrained(
            teacher, subfolder="text_encoder", dtype=torch.float32, attn_implementation="eager"
        )
        # In a tuple, where a checkpoint does not look: they are frozen.
        self.text_encoders = (_projected(encoder, encoder.config.num_hidden_layers), _projected(encoder, 1))
        torch.manual_seed(seed)
        width = 2 * encoder.config.hidden_size
        self.transformer = _transformer(num_layers, num_heads, latent_channels, width)
        with torch.no_grad():
            # Raw states of CLIP have any spread, and a layer drawn for unit variance would hardly hear small ones.
            states, _ = self._encode(self._ids(sorted(taught_words())))
            self.transformer.context_embedder.weight /= states.flatten(0, 1).std(0).clamp(min=1e-3)
        if init_from:
            self.transformer = SD3Transformer2DModel.from_pretrained(
                init_from, subfolder="transformer", dtype=torch.float32
            )
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the velocity error of each sample ``(B,)``; some of them lose their caption."""
        generator = generators[0]
        dropped = torch.rand(len(batch["caption"]), generator=generator) < self.caption_dropout
        captions = ["" if drop else text for drop, text in zip(dropped, batch["caption"], strict=True)]
        with torch.no_grad():
            text = self._mixed_text(self._ids(captions), generator)
        return self._errors(batch["latents"], *text, [generator] * len(captions))

    def validation_generators(self, batch: dict[str, Any], batch_idx: int) -> list[Generator]:
        """Make one generator for each sample, the same for every seed of the training."""
        return [step_generator(1, index, batch_idx) for index in range(len(batch["caption"]))]

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the same error with all captions, on fixed noise and times."""
        return self._errors(batch["latents"], *self._encode(self._ids(batch["caption"])), generators)

    def _ids(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def _encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids ``(B, L)`` to states ``(B, L, D)`` and pooled text ``(B, D)``, the encoders side by side."""
        encoders = [encoder.to(self.device) for encoder in self.text_encoders]
        found = [encoder(ids.to(self.device), output_hidden_states=True) for encoder in encoders]
        states = torch.cat([each.hidden_states[-2] for each in found], dim=-1)
        return states, torch.cat([each.text_embeds for each in found], dim=-1)

    def _mixed_text(self, ids: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Encode a training batch: the first ``phrases_alone`` of it with ``read_alone``, the others as usual."""
        states, pooled = self._encode(ids)
        alone = round(self.phrases_alone * len(ids))
        if alone:
            read = self.phrases.read_alone(lambda some: self._encode(some)[0], ids[:alone], generator)
            states = torch.cat([read, states[alone:]])
        return states, pooled

    def _errors(self, latents: Tensor, states: Tensor, pooled: Tensor, generators: list[Generator]) -> Tensor:
        """Compare the predicted velocity with ``noise - x_0`` at ``x_s = (1 - s) x_0 + s noise``, s logit-normal."""
        noise, sigmas = draw_flow(latents, generators)
        share = sigmas.view(-1, 1, 1, 1)
        prediction = self.transformer(
            (1 - share) * latents + share * noise,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=sigmas * self.scheduler.config.num_train_timesteps,
        ).sample
        return per_sample_mse(prediction, noise - latents)

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write a Stable Diffusion 3 pipeline without T5 in half precision."""
        root = Path(self.export_dir)
        vae = AutoencoderKL.from_pretrained(self.teacher, subfolder="vae", dtype=torch.float16)
        vae.register_to_config(shift_factor=0.0)  # This pipeline also shifts latents.
        pipeline = StableDiffusion3Pipeline(
            transformer=self.transformer.half(),
            scheduler=self.scheduler,
            vae=vae,
            text_encoder=self.text_encoders[0].half(),
            tokenizer=self.tokenizer,
            text_encoder_2=self.text_encoders[1].half(),
            tokenizer_2=self.tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )
        pipeline.save_pretrained(root, max_shard_size=SHARD)
        write_known_words(root, taught_words())
        return {"text-to-image pipeline": str(root)}


def _projected(encoder: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    """Copy the first layers of a text encoder; its projection of the pooled state changes nothing."""
    config = deepcopy(encoder.config)
    config.num_hidden_layers, config.projection_dim = layers, config.hidden_size
    copied = CLIPTextModelWithProjection(config)
    own = encoder.state_dict()
    copied.text_model.load_state_dict({name: own[name] for name in copied.text_model.state_dict()})
    nn.init.eye_(copied.text_projection.weight)
    return copied.requires_grad_(False).eval()


def _transformer(num_layers: int, num_heads: int, latent_channels: int, text_width: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=num_layers,
        attention_head_dim=64,
        num_attention_heads=num_heads,
        joint_attention_dim=text_width,
        caption_projection_dim=64 * num_heads,
        pooled_projection_dim=text_width,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
