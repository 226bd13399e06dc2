"""Frozen weights that are kept in fewer bits or on another device, and fetched where they are needed."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _Fetched(NamedTuple):
    """A frozen weight that the backward pass will need, by the parameter that it can be fetched from anew."""

    weight: nn.Parameter
    like: Tensor
    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any


def is_hooked(module: nn.Module) -> bool:
    """Whether diffusers' hooks act on a part, such as those of group offloading or layerwise casting."""
    return any(hasattr(part, "_diffusers_hook") for part in module.modules())


def weights_fetched_again(denoiser: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a forward pass whose backward pass fetches frozen weights anew.

    Diffusers' hooks put weights away after each layer: the backward pass would find them on another device or in
    another precision, or keep all of them where they were. Without such hooks nothing changes.

    Args:
        denoiser: The frozen network.
    """
    if not is_hooked(denoiser) or not torch.is_grad_enabled():
        return contextlib.nullcontext()
    frozen = {id(weight) for weight in denoiser.parameters() if not weight.requires_grad}

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
    contexts = contextlib.nullcontext, _Aliased
    return checkpoint(
        module.__call__, *inputs, use_reentrant=False, context_fn=lambda: tuple(one() for one in contexts)
    )


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
