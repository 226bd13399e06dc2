"""Load Infinity's published files into our classes: translate names and layouts, read the architecture from shapes."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from src.data.first_looks import ModelPlace
from src.data.ranges import Sampling
from src.modules.backbones.tensors import DTYPES
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loading import Placement, filled, published_parts, read_weights

RENAMED = (
    (r"^cfg_uncond$", "unconditional"),
    (r"^pos_start$", "start"),
    (r"^text_proj_for_sos\.ca\.mat_q$", "text_pooling.query"),
    (r"^text_proj_for_sos\.ca\.", "text_pooling."),
    (r"^text_proj_for_ca\.", "text_proj."),
    (r"^lvl_embed\.", "scale_embed."),
    (r"^shared_ada_lin\.1\.", "shared_ada."),
    (r"^head_nm\.ada_lin\.1\.", "head_ada."),
    (r"\.ada_gss$", ".ada"),
    (r"\.sa\.scale_mul_1H11$", ".self_attention.log_temperature"),
    (r"\.sa\.", ".self_attention."),
    (r"\.ca\.", ".cross_attention."),
    (r"\.ca_norm\.", ".cross_norm."),
    (r"\.ffn\.", "."),
    (r"\.mat_q\.", ".to_q."),
    (r"\.v_bias$", ".to_v.bias"),
)
"""Rules that turn published names of the transformer's tensors into ours, applied in this order."""
DERIVED = r"(^|\.)(zero_k_bias|lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen)$"
"""Tensors that published files hold but the model does not need: they are zero or follow from the schedule."""
UNUSED = r"^quantizer?\.lfq\.mask$"
WRAPPER = r"(\.(conv|norm))+\.(weight|bias)$"
"""Published names of the tokenizer wrap convolutions and norms once, twice or not at all (``conv.conv.weight``)."""


def load_pipeline(
    transformer: ModelPlace,
    vae: ModelPlace,
    text_encoder: ModelPlace,
    dtype: str = "bfloat16",
    ema: bool = False,
    sampling: Sampling | None = None,
    placement: Placement | None = None,
) -> InfinityPipeline:
    """Load the published parts; ``save_pretrained`` of the result writes a folder in diffusers' layout.

    Args:
        transformer: File or sharded folder of the transformer, local or as ``OWNER/REPOSITORY/NAME`` on the hub.
        vae: File or folder of the image tokenizer, given alike.
        text_encoder: Hub id or local folder of the T5 encoder, with its tokenizer.
        dtype: Working precision; the parts that choose bits stay in float32.
        ema: Whether to take the averaged weights of a trainer's checkpoint.
        sampling: The model's own values of arguments that a call leaves out, see ``InfinityPipeline``.
        placement: Where the parts work; by default on the CPU.

    Raises:
        ValueError: If a file is missing, incomplete or damaged, the parts do not match, or ``dtype`` is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"backbone.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    image_tokenizer = load_tokenizer(_local(vae), DTYPES[dtype])
    model = load_transformer(_local(transformer), image_tokenizer.config.latent_channels, DTYPES[dtype], ema)
    encoder = T5EncoderModel.from_pretrained(text_encoder, dtype=DTYPES[dtype])
    words = AutoTokenizer.from_pretrained(text_encoder)
    pipeline = InfinityPipeline(model, image_tokenizer, encoder, words, sampling=sampling)
    pipeline.parts = published_parts(transformer=_local(transformer), vae=_local(vae), text_encoder=text_encoder)
    pipeline.parts["settings"] = f"ema={ema}"
    return (placement or Placement()).placed(pipeline)


def load_transformer(
    path: Path, latent_channels: int, dtype: torch.dtype = torch.float32, ema: bool = False
) -> InfinityTransformer:
    """Read a published file, a sharded folder or a trainer's checkpoint; the shapes tell the architecture.

    Args:
        path: The file or folder.
        latent_channels: Bits of a cell of the image tokenizer: they tell whether a token is one cell or 2 x 2.
        dtype: Precision of all but the exact parts.
        ema: Whether to take the averaged weights of a trainer's checkpoint.

    Raises:
        ValueError: If it is incomplete, damaged, or was trained with another image tokenizer.
    """
    state = transformer_state(_of_trainer(read_weights(path), ema, path))
    config = transformer_config(state, path)
    if config["token_bits"] not in (latent_channels, 4 * latent_channels):
        raise ValueError(
            f"{path} draws tokens of {config['token_bits']} bits, but the image tokenizer has {latent_channels} in a "
            "cell; give the one that it was trained with, such as infinity_vae_d32reg.pth for infinity_2b_reg.pth"
        )
    with torch.device("meta"):
        model = InfinityTransformer(**config, patchify=config["token_bits"] != latent_channels)
    filled(model, state, path, dtype, InfinityTransformer.exact)
    return model


def _of_trainer(stored: Mapping[str, Any], ema: bool, source: object) -> Mapping[str, Tensor]:
    """Pick the transformer's tensors; a trainer's checkpoint holds them twice, beside other things."""
    if "trainer" not in stored:
        return stored
    name = "gpt_ema_fsdp" if ema else "gpt_fsdp"
    if name not in stored["trainer"]:
        raise ValueError(f"{source} is a trainer's checkpoint without {name}; give another, or ema={not ema}")
    return stored["trainer"][name]


def load_tokenizer(path: Path, dtype: torch.dtype = torch.float32) -> BSQTokenizer:
    """Read a published image tokenizer; the shapes tell the architecture.

    Raises:
        ValueError: If it is incomplete, damaged, or of another architecture.
    """
    stored = read_weights(path)
    state = tokenizer_state(stored.get("vae", stored))
    with torch.device("meta"):
        model = BSQTokenizer(**tokenizer_config(state, path))
    filled(model, state, path, dtype, BSQTokenizer.exact)
    return model


def transformer_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict for ``InfinityTransformer``; the tensors share memory with the published ones."""
    flat = _without_chunks({name: tensor for name, tensor in published.items() if not re.search(DERIVED, name)})
    return {name: tensor for old, stored in flat.items() for name, tensor in _ours(_renamed(old), stored)}


def tokenizer_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a published state dict for ``BSQTokenizer``."""
    return {re.sub(WRAPPER, r".\3", name): tensor for name, tensor in published.items() if not re.search(UNUSED, name)}


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _without_chunks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number all blocks through: ``block_chunks.i.module.j`` becomes block ``i * chunk + j``."""
    pattern = re.compile(r"^block_chunks\.(\d+)\.module\.(\d+)\.")
    places = [(int(found[1]), int(found[2])) for name in tensors if (found := pattern.match(name))]
    chunk = 1 + max((place for _, place in places), default=0)
    return {
        pattern.sub(lambda found: f"blocks.{int(found[1]) * chunk + int(found[2])}.", name): tensor
        for name, tensor in tensors.items()
    }


def _ours(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor in our layout: queries and keys are one matrix, values another."""
    stem = name.removesuffix("mat_qkv.weight").removesuffix("mat_kv.weight")
    if stem == name:
        yield name, _shaped(name, tensor)
        return
    values = len(tensor) // (3 if name.endswith("mat_qkv.weight") else 2)
    keys = "to_qk" if name.endswith("mat_qkv.weight") else "to_k"
    yield f"{stem}{keys}.weight", tensor[:-values]
    yield f"{stem}to_v.weight", tensor[-values:]


def _shaped(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".ada"):
        return tensor.flatten(0, 2)
    if name.endswith(".log_temperature"):
        return tensor.reshape(-1, 1, 1)
    return tensor.transpose(0, 1) if name == "text_pooling.query" else tensor


def transformer_config(state: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """Read the arguments of ``InfinityTransformer`` from the shapes of its tensors.

    Raises:
        ValueError: If one of these tensors is missing.
    """
    blocks = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    text_length, text_channels = _shape(state, "unconditional", source)
    return {
        "depth": 1 + max(blocks, default=0),
        "width": _shape(state, "start", source)[-1],
        "num_heads": _shape(state, "blocks.0.self_attention.log_temperature", source)[0],
        "token_bits": _shape(state, "word_embed.weight", source)[1],
        "text_channels": text_channels,
        "max_text_length": text_length,
        "max_scales": _shape(state, "scale_embed.weight", source)[0],
    }


def tokenizer_config(state: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """Read the arguments of ``BSQTokenizer`` from the shapes of its tensors.

    Raises:
        ValueError: If one of these tensors is missing.
    """
    blocks = [name.split(".")[2:5:2] for name in state if re.match(r"encoder\.down\.\d+\.block\.", name)]
    levels = len({level for level, _ in blocks})
    base = _shape(state, "encoder.conv_in.weight", source)[0]
    widths = [_shape(state, f"encoder.down.{level}.block.0.conv1.weight", source)[0] for level in range(levels)]
    halvings = {name.split(".")[2] for name in state if re.match(r"encoder\.down\.\d+\.downsample\.", name)}
    return {
        "latent_channels": _shape(state, "encoder.conv_out.weight", source)[0],
        "base_channels": base,
        "channel_multipliers": [width // base for width in widths],
        "layers_per_block": len({block for level, block in blocks if level == "0"}),
        "patch_size": 2 ** len(halvings),
    }


def _shape(state: Mapping[str, Tensor], name: str, source: object) -> torch.Size:
    if name not in state:
        raise ValueError(f"{source} is not a published file of this part of Infinity: it lacks {name}")
    return state[name].shape


def _local(path: str) -> Path:
    """Return a local path as it is; fetch ``NAME`` of the hub path ``OWNER/REPOSITORY/NAME``."""
    found = Path(path).expanduser()
    if found.exists() or path.startswith((".", "/", "~")):
        return found
    owner, repository, name = path.split("/", 2) if path.count("/") > 1 else ("", "", "")
    if not name:
        raise ValueError(f"there is no {path}; give a local file or folder, or OWNER/REPOSITORY/NAME on the hub")
    return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=[name, f"{name}/*"])) / name
