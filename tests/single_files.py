"""Write a pipeline as one file in the original layout, under the names that its weights have there."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, cat

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"} | {
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"
}  # fmt: skip
ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"} | {
    f"{name}_embedding.linear_{layer}": f"{there}.{2 * (layer - 1)}"
    for name, there in (("time", "time_embed"), ("add", "label_emb.0"))
    for layer in (1, 2)
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"} | {
    "self_attn.out_proj": "attn.out_proj"
}
CLIP_ENDS = {"embeddings.position_embedding.weight": "positional_embedding"} | {
    "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"
}  # fmt: skip


def replaced(name: str, there: dict[str, str]) -> str:
    for ours, theirs in there.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\g<1>{theirs}", name)
    return name


def unet_names(unet: Any) -> dict[str, str]:
    """Name of each weight of a UNet to its name in the original layout."""
    layers = unet.config.layers_per_block
    found = {}
    for name in unet.state_dict():
        where, *rest = re.split(r"\.(?=(?:resnets|attentions|downsamplers|upsamplers)\.)", name, maxsplit=1)
        if not rest:
            found[name] = replaced(name, ENDS)
            continue
        kind, number, inner = rest[0].split(".", 2)
        block, at = (int(where.split(".")[1]) if "." in where else 0), int(number)
        if kind == "resnets":
            inner = replaced(inner, RESNET)
        slot = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 1}[kind]
        if where == "mid_block":
            place = f"middle_block.{2 * at + slot}"
        elif kind == "downsamplers":
            place, inner = f"input_blocks.{(block + 1) * (layers + 1)}.0", inner.replace("conv", "op")
        elif kind == "upsamplers":
            slot += any(key.startswith(f"{where}.attentions") for key in unet.state_dict())
            place = f"output_blocks.{block * (layers + 1) + layers}.{slot}"
        elif where.startswith("down"):
            place = f"input_blocks.{1 + block * (layers + 1) + at}.{slot}"
        else:
            place = f"output_blocks.{block * (layers + 1) + at}.{slot}"
        found[name] = f"{place}.{inner}"
    return found


def vae_weights(vae: Any) -> dict[str, Tensor]:
    """The weights of an autoencoder in the original layout."""
    last, found = len(vae.config.block_out_channels) - 1, {}
    for name, tensor in vae.state_dict().items():
        there = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", name)
        there = re.sub(r"down_blocks\.(\d+)", r"down.\1", there).replace("conv_norm_out", "norm_out")
        there = re.sub(r"(mid_block|resnets)\.resnets\.(\d)", lambda found: f"mid.block_{int(found[2]) + 1}", there)
        there = there.replace("resnets", "block").replace("samplers.0.conv", "sample.conv")
        there = there.replace("conv_shortcut", "nin_shortcut")
        if "attentions" in there:
            there = replaced(there.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # It was a convolution there.
        found[there] = tensor
    return found


def clip_weights(encoder: Any) -> dict[str, Tensor]:
    """The weights of a CLIP text encoder as ``transformers`` named them, when these files were made."""
    named = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    return {name if name.startswith("text_projection") else f"text_model.{name}": one for name, one in named.items()}


def open_clip_weights(encoder: Any) -> dict[str, Tensor]:
    """The weights of a text encoder as OpenCLIP names them, with one matrix for queries, keys and values."""
    found = {}
    for name, tensor in clip_weights(encoder).items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif ".q_proj." in name:
            rest = [encoder.state_dict()[key] for key in encoder.state_dict() if key.endswith(name)]
            keys = [
                next(k for k in encoder.state_dict() if k.endswith(name.replace("q_proj", o)))
                for o in ("k_proj", "v_proj")
            ]
            there = re.sub(
                r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.", r"transformer.resblocks.\1.attn.in_proj_", name
            )
            found[there] = cat([*rest, *(encoder.state_dict()[key] for key in keys)])
        elif not re.search(r"\.[kv]_proj\.", name):
            there = replaced(name, CLIP_ENDS) if "layers" not in name else replaced(name, CLIP)
            found[there.replace("encoder.layers", "transformer.resblocks")] = tensor
    return found


def write_single_file(pipeline: Any, path: Path, open_clip: bool = False, **extra: Tensor) -> Path:
    """Write all weights of a Stable Diffusion or SDXL pipeline to one file.

    Args:
        pipeline: The pipeline.
        path: The file.
        open_clip: Whether the text encoder is OpenCLIP's, as in Stable Diffusion 2.x.
        extra: Further tensors.
    """
    weights = pipeline.unet.state_dict()
    parts = {"model.diffusion_model": {there: weights[name] for name, there in unet_names(pipeline.unet).items()}}
    parts["first_stage_model"] = vae_weights(pipeline.vae)
    if hasattr(pipeline, "text_encoder_2"):
        parts["conditioner.embedders.0.transformer"] = clip_weights(pipeline.text_encoder)
        parts["conditioner.embedders.1.model"] = open_clip_weights(pipeline.text_encoder_2)
    elif open_clip:
        parts["cond_stage_model.model"] = open_clip_weights(pipeline.text_encoder)
    else:
        parts["cond_stage_model.transformer"] = clip_weights(pipeline.text_encoder)
    tensors = {f"{part}.{name}": one for part, named in parts.items() for name, one in named.items()}
    save_file({name: one.contiguous().clone() for name, one in {**tensors, **extra}.items()}, path)
    return path
