"""The projections from text to keys and values: what concepts act on, and what a model is known by."""

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from src.data.identity import projections_hash
from src.modules.backbones.checkpoint import Checkpoint


def cross_attention_projections(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Find the text projections of every cross-attention layer: ``k.<layer>`` and ``v.<layer>``, in module order.

    Raises:
        ValueError: If keys and values were fused, which leaves nothing to hook.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in denoiser.named_modules():
        if name.endswith("attn2"):
            if getattr(module, "fused_projections", False):
                raise ValueError("fuse_qkv_projections() is on; call unet.unfuse_qkv_projections() first")
            found[f"k.{name}"], found[f"v.{name}"] = module.to_k, module.to_v
    return found


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
