"""Load Switti's published folders, each with a config.json and one file of weights, into our classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from src.data.first_looks import ModelPlace
from src.data.ranges import Sampling
from src.data.schema import RefusedFileError, read_json
from src.modules.backbones.tensors import DTYPES
from src.modules.next_scale.loading import Placement, filled, published_parts, read_weights
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.pipeline import SwittiPipeline
from src.modules.next_scale.switti.transformer import SCHEDULES, SwittiTransformer

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RENAMED = {
    "quant_resi.qresi_ls.": "phi.",
    "downsample.conv.": "resampling.",
    "upsample.conv.": "resampling.",
    "head_nm.ada_lin.1.": "head_ada_lin.",
    "ada_lin.1.": "ada_lin.",
}
"""Parts of published names that we call otherwise, and our names."""
DERIVED = {"lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV"}
"""Tensors that published files hold but the model does not need: they follow from the schedule or count codes."""


def load_pipeline(
    transformer: ModelPlace,
    vae: ModelPlace,
    text_encoder: ModelPlace,
    text_encoder_2: ModelPlace,
    dtype: str = "bfloat16",
    sampling: Sampling | None = None,
    placement: Placement | None = None,
) -> SwittiPipeline:
    """Load the four published parts; ``save_pretrained`` of the result writes a folder in diffusers' layout.

    Args:
        transformer: Hub id or local folder of the transformer, such as ``yresearch/Switti``.
        vae: Hub id or local folder of the VQ-VAE.
        text_encoder: Hub id or local folder of CLIP ViT-L/14, with its tokenizer.
        text_encoder_2: Hub id or local folder of OpenCLIP ViT-bigG/14, with its tokenizer.
        dtype: Working precision; the parts that choose codes and that embed crops stay in float32.
        sampling: The model's own values of arguments that a call leaves out, see ``SwittiPipeline``.
        placement: Where the parts work; by default on the CPU.

    Raises:
        ValueError: If a folder is missing, incomplete or damaged, the parts do not match, or ``dtype`` is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"backbone.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    for path in (transformer, vae, text_encoder, text_encoder_2):
        if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
            raise ValueError(f"there is no folder {path}; give a hub id or a folder")
    words = [str(Path(path).expanduser()) if path.startswith("~") else path for path in (text_encoder, text_encoder_2)]
    encoders = [CLIPTextModel.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True) for path in words]
    tokenizers = [CLIPTokenizer.from_pretrained(path) for path in words]
    model = load_transformer(_folder(transformer), DTYPES[dtype])
    image_tokenizer = load_vqvae(_folder(vae), DTYPES[dtype])
    pipeline = SwittiPipeline(
        model, image_tokenizer, encoders[0], encoders[1], tokenizers[0], tokenizers[1], sampling=sampling
    )
    names = {"text_encoder": words[0], "text_encoder_2": words[1]}
    pipeline.parts = published_parts(transformer=_folder(transformer), vae=_folder(vae), **names)
    return (placement or Placement()).placed(pipeline)


def load_transformer(folder: Path, dtype: torch.dtype = torch.float32) -> SwittiTransformer:
    """Read a folder such as ``yresearch/Switti``.

    Raises:
        ValueError: If it is incomplete, damaged, or of a variant that nobody published.
    """
    tensors = read_tensors(folder)
    config = transformer_config(_json(folder / "config.json"), tensors, folder)
    with torch.device("meta"):
        model = SwittiTransformer(**config)
    filled(model, tensors, folder, dtype, SwittiTransformer.exact)
    return model


def load_vqvae(folder: Path, dtype: torch.dtype = torch.float32) -> VQVAE:
    """Read a folder such as ``yresearch/VQVAE-Switti``; the shapes tell the architecture.

    Raises:
        ValueError: If it is incomplete or damaged.
    """
    tensors = read_tensors(folder)
    with torch.device("meta"):
        model = VQVAE(**vqvae_config(tensors, folder))
    filled(model, tensors, folder, dtype, VQVAE.exact)
    return model


def transformer_config(published: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """Read the arguments of ``SwittiTransformer`` from its published configuration and the shapes of its tensors.

    Raises:
        ValueError: If ``config.json`` says too little, or describes what is not implemented.
    """
    missing = [name for name in ("depth", "use_ar", "use_crop_cond") if name not in published]
    if missing or ("patch_nums" not in published and published.get("reso") not in SCHEDULES):
        sizes = ", ".join(map(str, SCHEDULES))
        raise ValueError(
            f"{source}/config.json must have depth, use_ar, use_crop_cond, and reso ({sizes}) or patch_nums; it has "
            f"{', '.join(f'{name}={value}' for name, value in published.items())}"
        )
    if not (published.get("rope", True) and published.get("use_swiglu_ffn", True)):
        raise ValueError(
            f"{source} is a Switti without rotary positions or gated feed-forward layers; none was published"
        )
    depth = published["depth"]
    return {
        "depth": depth,
        "width": published.get("embed_dim", 64 * depth),
        "num_heads": published.get("num_heads", depth),
        "sides": tuple(published.get("patch_nums") or SCHEDULES[published["reso"]]),
        "text_dim": _shape(tensors, "blocks.0.cross_attn.to_kv.weight", source)[1],
        "pooled_dim": _shape(tensors, "text_pooler.weight", source)[1],
        "latent_channels": _shape(tensors, "word_embed.weight", source)[1],
        "num_codes": _shape(tensors, "head.weight", source)[0],
        "rope_theta": float(published.get("rope_theta", 10000)),
        "rope_size": published.get("rope_size", 128),
        **{name: published[name] for name in ("use_ar", "use_crop_cond")},
    }


def vqvae_config(tensors: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """Read the arguments of ``VQVAE`` from the shapes of its tensors.

    Raises:
        ValueError: If a tensor that tells them is missing.
    """
    base = _shape(tensors, "encoder.conv_in.weight", source)[0]
    blocks = [name.split(".")[2:5:2] for name in tensors if name.startswith("encoder.down.") and ".block." in name]
    levels = len({level for level, _ in blocks})
    widths = [_shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", source)[0] for level in range(levels)]
    num_codes, channels = _shape(tensors, "quantize.embedding.weight", source)
    return {
        "latent_channels": channels,
        "num_codes": num_codes,
        "base_channels": base,
        "channel_multipliers": tuple(width // base for width in widths),
        "layers_per_block": len({block for level, block in blocks if level == "0"}),
    }


def renamed(name: str) -> str:
    """Translate the published name of a tensor into ours."""
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a folder that a model needs, under our names.

    Raises:
        ValueError: If there is no file of weights, or it cannot be read without running code.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {' nor '.join(WEIGHTS)}; give a published folder")
    return {renamed(name): tensor for name, tensor in read_weights(path).items() if name not in DERIVED}


def _shape(tensors: Mapping[str, Tensor], name: str, source: Path) -> torch.Size:
    if name not in tensors:
        raise ValueError(f"{source} lacks {name}; give a published folder of this part")
    return tensors[name].shape


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path.parent} has no config.json; give a published folder")
    content = read_json(path, "the configuration of a model")
    if not isinstance(content, dict):
        raise RefusedFileError(f"{path} is no configuration of a model: a JSON object is expected")
    return content


def _folder(path: str) -> Path:
    local = Path(path).expanduser()
    return local if local.is_dir() else Path(snapshot_download(path, allow_patterns=["config.json", *WEIGHTS]))
