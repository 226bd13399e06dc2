"""The projections from text to keys and values: what concepts act on, and what a model is known by."""

from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from src.data.identity import projections_hash
from src.modules.backbones.checkpoint import Checkpoint


def text_projections(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Find every projection from text to keys and values: ``k.<layer>`` and ``v.<layer>``, in module order.

    Cross-attention reads text alone (``attn2``). Joint attention has projections of its own for text
    (``add_k_proj``), or, where text and image are one row of tokens, as in FLUX's single blocks, shares them.

    Raises:
        ValueError: If keys and values were fused, which leaves nothing to hook.
    """
    found: dict[str, nn.Linear] = {}
    modules = dict(denoiser.named_modules())
    joint = {name for name, module in modules.items() if getattr(module, "add_k_proj", None) is not None}
    single = {name for name in modules if name.startswith("single_transformer_blocks.") and name.endswith(".attn")}
    # Where attention is joint, attn2 is what SD3.5 calls a second attention of the image to itself.
    chosen = joint | single or {name for name in modules if name.endswith("attn2")}
    for name in filter(chosen.__contains__, modules):
        module = modules[name]
        if getattr(module, "fused_projections", False) and not _is_unfused(module):
            raise ValueError(
                "fuse_qkv_projections() is on, which leaves no keys and values of text to act on; call "
                f"unfuse_qkv_projections() of the {type(denoiser).__name__} first"
            )
        found[f"k.{name}"] = module.add_k_proj if name in joint else module.to_k
        found[f"v.{name}"] = module.add_v_proj if name in joint else module.to_v
    return found


def _is_unfused(module: nn.Module) -> bool:
    """Whether a layer computes apart again: unfuse_qkv_projections() only takes the processor from an ``Attention``."""
    return isinstance(module, Attention) and not type(module.processor).__name__.startswith("Fused")


def fingerprint_on_disk(
    checkpoint: Checkpoint, pipeline: DiffusionPipeline, denoiser: nn.Module, layers: dict[str, nn.Linear]
) -> str:
    """Compute a model's fingerprint from its files; the arguments are those of ``projections_on_disk``."""
    (part,) = (name for name, one in pipeline.components.items() if one is denoiser)
    return projections_hash(projections_on_disk(checkpoint, part, denoiser, layers))


def projections_on_disk(
    checkpoint: Checkpoint, part: str, denoiser: nn.Module, layers: dict[str, nn.Linear]
) -> dict[str, list[Tensor]]:
    """Read the weights of projections as files have them: bfloat16 rounds them otherwise than fingerprints do.

    Args:
        checkpoint: What the denoiser was loaded from.
        part: The denoiser's name in the pipeline.
        denoiser: It.
        layers: Name of each projection to its layer in the denoiser.
    """
    names = {id(weights): name for name, weights in denoiser.named_parameters()}
    wanted = {layer: [names[id(weights)] for weights in linear.parameters()] for layer, linear in layers.items()}
    tensors = checkpoint.denoiser_tensors(part, [name for each in wanted.values() for name in each])
    return {layer: [tensors[name] for name in each] for layer, each in wanted.items()}
