"""Stable Diffusion 1.x, 2.x and XL as they were published: what a single file of their weights does not say.

A file in the original layout holds weights alone. Configurations, schedules and tokenizers are those of the published
models; CLIP's 49,408 words come from open_clip, which carries them, so that nothing has to be fetched.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
"""Byte-pair merges of CLIP; the rest of the file that holds them is of another model."""
BLOCKS: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
XL_BLOCKS: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
}
SCHEDULE: dict[str, Any] = {
    **{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000},
    **{"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
}


def _unet(side: int, width: int, heads: int | list[int], **others: Any) -> dict[str, Any]:
    size = {"sample_size": side, "cross_attention_dim": width, "attention_head_dim": heads, "layers_per_block": 2}
    return {**size, **others}


def _autoencoder(side: int, scaling_factor: float) -> dict[str, Any]:
    return {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        "sample_size": side,
        "scaling_factor": scaling_factor,
    }


def _clip(width: int, layers: int, heads: int, projection: int, act: str) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": MERGES + 512 + 2,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
        "hidden_act": act,
        "max_position_embeddings": 77,
        # Of the published files: with 2, the pooled state is that of the largest id, which ends the text.
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    }


@dataclass(frozen=True)
class Architecture:
    """One kind of model: all that its weights are not.

    Attributes:
        name: What sentences call it.
        pipeline: Stock pipeline that draws with it.
        published: Repository that these configurations are those of.
        modules: Part of the pipeline to its class and configuration.
        scheduler: Class of the noise schedule, and its configuration.
        padding: Part of the pipeline that is a tokenizer, to the token that fills up a text.
    """

    name: str
    pipeline: str
    published: str
    modules: Mapping[str, tuple[str, Mapping[str, Any]]]
    scheduler: tuple[str, Mapping[str, Any]]
    padding: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write a folder in diffusers' layout, without weights."""
        kind, schedule = self.scheduler
        index: dict[str, Any] = {"_class_name": self.pipeline, "scheduler": ["diffusers", kind]}
        _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": kind, **schedule})
        for part, (kind, config) in self.modules.items():
            index[part] = ["transformers" if kind.startswith("CLIP") else "diffusers", kind]
            _write(folder / part / "config.json", {"_class_name": kind, **config})
        for part, padding in self.padding.items():
            index[part] = ["transformers", "CLIPTokenizer"]
            write_clip_words(folder / part, padding)
        if self.pipeline == "StableDiffusionPipeline":
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
            index["requires_safety_checker"] = False
        else:
            index["force_zeros_for_empty_prompt"] = True
        _write(folder / "model_index.json", index)


def write_clip_words(folder: Path, padding: str = END) -> None:
    """Write the tokenizer of CLIP, which Stable Diffusion and SDXL share.

    Args:
        folder: Folder to write to; it is created if it does not exist.
        padding: Token that fills up a text.
    """
    # Found without an import, which takes seconds.
    package = find_spec("open_clip")
    assert package is not None and package.origin is not None, "open_clip is one of the dependencies"
    source = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    # The bytes in the order of their printable stand-ins: those that can be printed first.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(one) for one in (*printable, *range(0x100, 0x100 + 256 - len(printable)))]
    tokens = [*letters, *(f"{one}</w>" for one in letters), *(pair.replace(" ", "") for pair in merges), START, END]
    _write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    named = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **named})


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


SD1 = Architecture(
    "Stable Diffusion 1.x",
    "StableDiffusionPipeline",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    {
        "unet": ("UNet2DConditionModel", _unet(64, 768, 8, **BLOCKS)),
        "vae": ("AutoencoderKL", _autoencoder(512, 0.18215)),
        "text_encoder": ("CLIPTextModel", _clip(768, 12, 12, 768, "quick_gelu")),
    },
    ("PNDMScheduler", SCHEDULE),
    {"tokenizer": END},
)
SD2 = Architecture(
    "Stable Diffusion 2.x",
    "StableDiffusionPipeline",
    "stabilityai/stable-diffusion-2-1",
    {
        "unet": (
            "UNet2DConditionModel",
            _unet(96, 1024, [5, 10, 20, 20], **BLOCKS, use_linear_projection=True, upcast_attention=True),
        ),
        "vae": ("AutoencoderKL", _autoencoder(768, 0.18215)),
        "text_encoder": ("CLIPTextModel", _clip(1024, 23, 16, 512, "gelu")),
    },
    ("DDIMScheduler", {**SCHEDULE, "prediction_type": "v_prediction"}),
    {"tokenizer": "!"},
)
SDXL = Architecture(
    "SDXL",
    "StableDiffusionXLPipeline",
    "stabilityai/stable-diffusion-xl-base-1.0",
    {
        "unet": (
            "UNet2DConditionModel",
            _unet(
                128,
                2048,
                [5, 10, 20],
                **XL_BLOCKS,
                transformer_layers_per_block=[1, 2, 10],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
        ),
        "vae": ("AutoencoderKL", {**_autoencoder(1024, 0.13025), "force_upcast": True}),
        "text_encoder": ("CLIPTextModel", _clip(768, 12, 12, 768, "quick_gelu")),
        "text_encoder_2": ("CLIPTextModelWithProjection", _clip(1280, 32, 20, 1280, "gelu")),
    },
    ("EulerDiscreteScheduler", {**SCHEDULE, "timestep_spacing": "leading"}),
    {"tokenizer": END, "tokenizer_2": "!"},
)
