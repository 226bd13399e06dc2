"""Cross-attention layers in the original files of Stable Diffusion and SDXL, whose names other programs use."""

import re

LAYER = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.(transformer_blocks\.(\d+)\.attn2)")


def original_name(layer: str, layers_per_block: int = 2) -> str:
    """Name a layer as the original files do.

    Args:
        layer: Its name in diffusers, such as ``down_blocks.1.attentions.0.transformer_blocks.0.attn2``.
        layers_per_block: Residual blocks of one level on the way down.

    Returns:
        Its name there, such as ``input_blocks.4.1.transformer_blocks.0.attn2``.

    Raises:
        ValueError: If the UNets of Stable Diffusion and SDXL have no such layer.
    """
    found = LAYER.fullmatch(layer)
    if not found:
        raise ValueError(f"there is no layer {layer} in Stable Diffusion 1.x, 2.x or SDXL; give one of their models")
    side, level, number, inside, _ = found.groups()
    if side == "mid":
        return f"middle_block.1.{inside}"
    # Down: the first convolution, then the blocks of a level and a change of size. Up: one block more a level.
    block = (layers_per_block + 1) * int(level) + int(number) + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{block}.1.{inside}"
