"""How a backbone saves memory: weights in fewer bits or in main memory, activations that are computed again."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Storage = Literal["float8_e4m3fn", "float8_e5m2"]
Waiting = Literal["autoencoder", "encoders", "all"]
TILE = 512
"""Largest side of a tile in pixels, in which pictures are decoded with ``tiling``."""
BACKEND = "inductor"
"""What torch compiles with; it needs a C++ compiler, and Triton for a GPU."""
OF_TEXT = (r"attn2\.to_k$", r"attn2\.to_v$")
"""Projections of text, which concepts are made of: they keep all their bits."""
UNCAST = (*DEFAULT_SKIP_MODULES_PATTERN, r"\.wo$", r"^lm_head$")
"""Layers of text encoders that keep theirs, as do embeddings, whose weights a language model's head may share: T5
rounds what enters ``wo`` to the precision of that."""


@dataclass(frozen=True)
class Memory:
    """What is done to save memory, by diffusers' own means; as it stands nothing is.

    Attributes:
        weights: Precision that most of the denoiser's weights are kept in, in a quarter of float32's bytes; each layer
            computes in the backbone's own. None for all bits.
        encoders: The same of the weights of text encoders, such as T5 of FLUX.
        offload: What waits in main memory, and is fetched layer by layer: the ``autoencoder``, the ``encoders`` of
            images and text, or ``all`` with the denoiser. None for nothing.
        compute_again: Whether a training computes activations again in the backward pass instead of keeping them.
        slicing: Whether the pictures of a batch are encoded and decoded one by one.
        tiling: Whether pictures of more than ``TILE`` pixels a side are encoded and decoded in tiles.

    Raises:
        ValueError: If ``weights``, ``encoders`` or ``offload`` is none of these.
    """

    weights: Storage | None = None
    encoders: Storage | None = None
    offload: Waiting | None = None
    compute_again: bool = False
    slicing: bool = False
    tiling: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        storage = get_args(Storage)
        for name, known in {"weights": storage, "encoders": storage, "offload": get_args(Waiting)}.items():
            if (value := getattr(self, name)) not in (None, *known):
                raise ValueError(f"backbone.memory.{name} is {value!r}; choose one of {', '.join(known)}, or null")

    @classmethod
    def of(cls, given: "Memory | Mapping[str, Any] | None") -> Self:
        """Make one of settings.

        Raises:
            ValueError: If there is no such setting.
        """
        if isinstance(given, cls):
            return given
        settings: Mapping[str, Any] = given or {}  # type: ignore[assignment]
        known = [one.name for one in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"backbone.memory has no {name!r}; choose among {', '.join(known)}")
        return cls(**settings)

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that differ from the defaults, as on the command line."""
        return {f"backbone.memory.{name}": value for name, value in asdict(self).items() if value}

    @property
    def content(self) -> dict[str, str]:
        """What changes what is learnt."""
        return {f"memory.{name}": kept for name in ("weights", "encoders") if (kept := getattr(self, name))}

    @property
    def seen(self) -> str:
        """What changes a picture, in a few words; empty if nothing does."""
        encoders = self.encoders and f"encoders in {self.encoders}"
        return " ".join(told for told in (self.weights, encoders, "tiling" if self.tiling else "") if told)

    def apply(self, pipeline: DiffusionPipeline, denoiser: Any, compiled: bool = False) -> Self:
        """Prepare a pipeline, whatever the device; what reads its weights must have read them.

        Args:
            pipeline: Holds the autoencoder.
            denoiser: The denoiser.
            compiled: Whether torch compiles its repeated blocks.

        Raises:
            ValueError: If diffusers cannot do it with this denoiser.
        """
        of = f"diffusers can do so with no {type(denoiser).__name__}"
        if self.compute_again and not denoiser._supports_gradient_checkpointing:
            raise ValueError(f"backbone.memory.compute_again computes activations again, and {of}: leave it out")
        if self.offload == "all" and not denoiser._supports_group_offloading:
            raise ValueError(
                f"backbone.memory.offload=all fetches layer by layer, and {of}: give backbone.memory.offload=encoders"
            )
        if self.weights:
            kept = (*DEFAULT_SKIP_MODULES_PATTERN, *OF_TEXT, *(denoiser._skip_layerwise_casting_patterns or ()))
            storage = getattr(torch, self.weights)
            apply_layerwise_casting(denoiser, storage, denoiser.dtype, skip_modules_pattern=kept)
        if self.encoders:
            storage = getattr(torch, self.encoders)
            for name, part in pipeline.components.items():
                if name.startswith("text_encoder") and isinstance(part, nn.Module):
                    apply_layerwise_casting(part, storage, part.dtype, UNCAST, skip_modules_classes=(nn.Embedding,))
        if self.compute_again:
            compute_again(denoiser)
        if self.slicing:
            pipeline.vae.enable_slicing()
        if self.tiling:
            if hasattr(pipeline.vae, "tile_sample_min_size"):
                scale = pipeline.vae.tile_sample_min_size // pipeline.vae.tile_latent_min_size
                pipeline.vae.tile_sample_min_size = min(pipeline.vae.tile_sample_min_size, TILE)
                pipeline.vae.tile_latent_min_size = pipeline.vae.tile_sample_min_size // scale
            pipeline.vae.enable_tiling()  # Others, such as Sana's, have tiles of that size or less of their own.
        if compiled:
            # Torch looks for hooks that come later only if it is told: methods act through them.
            torch._dynamo.config.skip_nnmodule_hook_guards = False  # type: ignore[attr-defined]
            denoiser.compile_repeated_blocks(backend=BACKEND)
        return self

    def place(self, pipeline: DiffusionPipeline, denoiser: Any, device: torch.device) -> None:
        """Move a pipeline to its device, but for what waits in main memory."""
        if self.offload is None:
            pipeline.to(device)
            return
        for part in pipeline.components.values():
            if not isinstance(part, nn.Module):
                continue
            waits = part is pipeline.vae or self.offload == "all" or self.offload == "encoders" and part is not denoiser
            if not waits:
                part.to(device)
            elif not getattr(part, "_waits", False):
                apply_group_offloading(part, device, torch.device("cpu"), offload_type="leaf_level")
                part._waits = True  # type: ignore[assignment]


class _Fetched(NamedTuple):
    """A frozen weight that the backward pass will need, by the parameter that it can be fetched from anew."""

    weight: nn.Parameter
    like: Tensor
    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any


def computing_device(pipeline: Any, denoiser: Any) -> torch.device:
    """Return where a denoiser is, or computes where hooks of accelerate move it."""
    is_moved = hasattr(denoiser, "_hf_hook") or denoiser.device.type == "meta"
    return pipeline._execution_device if is_moved else denoiser.device


def refuse_rounded(layers: Mapping[str, Any]) -> None:
    """Refuse to change weights that are kept in fewer bits, which would round the change away.

    Args:
        layers: Name to layer.

    Raises:
        ValueError: If there is one.
    """
    few = [getattr(torch, name) for name in get_args(Storage)]
    if rounded := next((name for name, layer in layers.items() if layer.weight.dtype in few), None):
        raise ValueError(
            f"what this method changes of {rounded} would be rounded away in 8 bits; add backbone.memory.weights=null "
            "backbone.memory.encoders=null"
        )


def is_hooked(module: nn.Module) -> bool:
    """Whether diffusers' hooks act on a part, such as those of group offloading or layerwise casting."""
    return any(hasattr(part, "_diffusers_hook") for part in module.modules())


def weights_fetched_again(*parts: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a forward pass whose backward pass fetches frozen weights anew.

    Diffusers' hooks put weights away after each layer: the backward pass would find them on another device or in
    another precision, or keep all of them where they were. Without such hooks nothing changes.

    Args:
        parts: The frozen networks that are called.
    """
    if not any(map(is_hooked, parts)) or not torch.is_grad_enabled():
        return contextlib.nullcontext()
    frozen = {id(weight) for part in parts for weight in part.parameters() if not weight.requires_grad}

    def pack(tensor: Tensor) -> Any:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in frozen:
            # Of an output, the tensor itself would hold on to the graph that holds on to it.
            return tensor.detach()
        assert isinstance(base, nn.Parameter)
        return _Fetched(base, tensor.new_empty(0), tuple(tensor.size()), tensor.stride(), tensor.storage_offset())

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Fetched):
            return packed
        weight = packed.weight.detach().to(packed.like)
        return weight.as_strided(packed.size, packed.stride, packed.offset)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def compute_again(denoiser: Any) -> None:
    """Let the backward pass compute activations again instead of keeping them, also where hooks cast weights.

    What is installed in the denoiser must stay so during the backward pass.
    """
    denoiser.enable_gradient_checkpointing(_checkpointed)


def _checkpointed(module: nn.Module, *inputs: Any) -> Any:
    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _Aliased()

    return checkpoint(module.__call__, *inputs, use_reentrant=False, context_fn=contexts)


class _Aliased:
    """While active, what torch's checkpoint keeps of a frozen weight is not changed by a hook that casts the weight.

    Torch keeps a weight without a gradient itself, whose data a hook exchanges after the layer.
    """

    def __enter__(self) -> None:
        pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(False)
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: pack(tensor.detach()), unpack)
        self.hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
