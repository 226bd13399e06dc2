"""Measure what each rung of the ladder for small cards saves, on the full-size SDXL, without its weights and a card.

Torch's fake tensors go through every layer: they have type and size, and no values.

Bytes of weights are those of the parameters as they lie in memory. Bytes of activations are those of the tensors that
a training step of LaTexBlend's kind keeps for its backward pass, frozen weights left out. Bytes of pictures are the
largest output of a layer of the autoencoder's decoder. Nothing of it was run on a GPU.

    python -m benchmarks.card_memory          # prints the tables of card_memory.md
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from src.modules.backbones.architectures import SDXL
from src.modules.backbones.memory import Memory
from src.modules.latexblend.bank import transformed_projections

UNET = SDXL.modules["unet"][1]
"""The published configuration."""
GB = 1e9


def main() -> None:
    """Measure, and print the tables."""
    torch.set_default_dtype(torch.bfloat16)
    print("| the denoiser's weights | GB |\n| --- | --- |")
    for name, memory in (("bfloat16", Memory()), ("weights=float8_e4m3fn", Memory(weights="float8_e4m3fn"))):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**UNET)
        memory.apply(None, unet)  # type: ignore[arg-type]
        print(f"| {name} | {weights(unet) / GB:.2f} |")
    largest = max(weights(leaf) for leaf in unet.modules() if not list(leaf.children()))
    print(f"| offload=all in 8 bits, the largest layer | {largest / GB:.2f} |")
    with FakeTensorMode():
        print("\n| kept for the backward pass | GB |\n| --- | --- |")
        for name, memory in (("everything", Memory()), ("compute_again=true", Memory(compute_again=True))):
            unet = UNet2DConditionModel(**UNET).requires_grad_(False).eval()
            memory.apply(None, unet)  # type: ignore[arg-type]
            print(f"| {name} | {saved(unet) / GB:.2f} |")
        print("\n| decoding 1024 x 1024, the largest output of a layer | GB |\n| --- | --- |")
        for name, memory in (("whole", Memory()), ("tiling=true", Memory(tiling=True))):
            print(f"| {name} | {largest_output(memory) / GB:.2f} |")


def weights(module: nn.Module) -> int:
    """Return the bytes of a module's parameters."""
    return sum(one.numel() * one.element_size() for one in module.parameters())


def saved(unet: nn.Module) -> int:
    """Return the bytes that a forward pass with a photo and a class image of 512 pixels each keeps for its gradient."""
    frozen = {id(one) for one in unet.parameters()}
    # As long as they are held, no two lie at the same place.
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in frozen:
            held[tensor.untyped_storage()._cdata] = tensor
        return tensor.detach()

    def counted(again: Callable) -> Callable:
        def call(module: nn.Module, *inputs: Any) -> Any:
            # What is computed again is computed from these, which are kept outside of autograd.
            for tensor in filter(torch.is_tensor, inputs):
                held[tensor.untyped_storage()._cdata] = tensor
            return again(module, *inputs)

        return call

    for module in unet.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = counted(module._gradient_checkpointing_func)  # type: ignore

    added = {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
    changes = torch.zeros(2, 77, 1, requires_grad=True)
    transform: Callable[[str, Tensor, Tensor], Tensor] = lambda name, hidden, projected: projected + changes  # noqa: E731
    with transformed_projections(unet, transform), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        unet(torch.randn(2, 4, 64, 64), torch.tensor([9, 9]), torch.randn(2, 77, 2048), added_cond_kwargs=added)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def largest_output(memory: Memory) -> int:
    """Return the bytes of the largest output of a layer of SDXL's decoder."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
    )
    memory.apply(type("Pipeline", (), {"vae": vae}), vae)  # type: ignore[arg-type]
    found = [0]

    def look(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel() * output.element_size())

    for module in vae.decoder.modules():
        module.register_forward_hook(look)
    with torch.no_grad():
        vae.decode(torch.randn(1, 4, 128, 128))
    return max(found)


if __name__ == "__main__":
    main()
