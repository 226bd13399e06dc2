"""Keys and values of earlier scales, in buffers of their final size, and the attention that reads them.

Shapes: O owners (rows with queries and keys of their own), M streams of an owner, H heads, L new tokens, D head width.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class KeyValueCache:
    """Keys and values of all blocks of a scale-wise model, and the self-attention that reads them.

    With structural attention correction (arXiv 2507.04482, Algorithm 1) the streams of one owner attend with the same
    queries and keys and differ in their values. Keys are then kept once, and one attention map serves all streams.

    Args:
        num_blocks: Number of the transformer's blocks.
        capacity: Number of tokens of all scales; None if a scale sees only itself, so that nothing has to be kept.
    """

    def __init__(self, num_blocks: int, capacity: int | None) -> None:
        self.capacity, self.streams = capacity, 1
        self.keys: list[Tensor | None] = [None] * num_blocks
        self.values: list[Tensor | None] = [None] * num_blocks
        self.lengths = [0] * num_blocks

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        """Let one block's new tokens attend to themselves and to all earlier scales.

        Args:
            block: Index of the block.
            queries: Queries of the new tokens, ``(O, H, L, D)``. Streams that own their earlier keys but share queries
                and keys at this scale get copies of them.
            keys: Keys of the new tokens, ``(O, H, L, D)``.
            values: Values of the new tokens, ``(O * (M - first_stream), H, L, D)``; an owner's streams are adjacent.
            scale: Factor of the dot products.
            first_stream: First stream that is still needed.

        Returns:
            What each stream reads, ``(O * (M - first_stream), H, L, D)``.
        """
        if self.streams == 1 and len(values) > len(queries):
            queries, keys = (t.repeat_interleave(len(values) // len(t), dim=0) for t in (queries, keys))
        owners, heads, length, width = queries.shape  # (O, H, L, D)
        wanted = self.streams - first_stream
        by_owner = values.view(owners, wanted, heads, length, width).permute(0, 2, 3, 1, 4)  # (O, H, L, M, D)
        all_keys, all_values = self._extended(block, keys, by_owner, first_stream)
        # The streams' values stand side by side on the last axis, so that one softmax serves them all.
        side_by_side = all_values.flatten(3)  # (O, H, T, M D), T tokens of all scales so far
        out = scaled_dot_product_attention(queries, all_keys, side_by_side, scale=scale)  # (O, H, L, M D)
        return out.view(owners, heads, length, wanted, width).permute(0, 3, 1, 2, 4).flatten(0, 1)

    def _extended(self, block: int, keys: Tensor, values: Tensor, first_stream: int) -> tuple[Tensor, Tensor]:
        if self.capacity is None:
            return keys, values
        start, stop = self.lengths[block], self.lengths[block] + keys.shape[2]
        kept_keys, kept_values = self.keys[block], self.values[block]
        if kept_keys is None or kept_values is None:
            owners, heads, _, width = keys.shape
            kept_keys = keys.new_empty(owners, heads, self.capacity, width)  # (O, H, capacity, D)
            kept_values = values.new_empty(owners, heads, self.capacity, self.streams, width)  # (O, H, capacity, M, D)
            self.keys[block], self.values[block] = kept_keys, kept_values
        kept_keys[:, :, start:stop] = keys
        kept_values[:, :, start:stop, first_stream:] = values
        self.lengths[block] = stop
        return kept_keys[:, :, :stop], kept_values[:, :, :stop, first_stream:]

    def fork(self, streams: int, shared: bool) -> None:
        """Turn every row into ``streams`` copies, beside each other.

        Args:
            streams: Number of copies of each row, itself included.
            shared: Whether the copies share the keys of the first; otherwise each becomes an owner.
        """
        assert self.streams == 1, "a cache is forked once"
        for block, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if keys is None or values is None:
                continue
            if shared:
                self.values[block] = _resized(values, values.shape[0], streams, self.lengths[block])
            else:
                self.keys[block] = keys.repeat_interleave(streams, dim=0)
                self.values[block] = values.repeat_interleave(streams, dim=0)
        self.streams = streams if shared else 1

    def keep(self, owners: slice | Tensor) -> None:
        """Forget all rows but these; indices of rows that are gone already are ignored."""
        for buffers in (self.keys, self.values):
            # Buffers are replaced one by one, so that all old and all new ones never exist together.
            for block, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[block] = buffer[owners if isinstance(owners, slice) else owners[owners < len(buffer)]]

    def clear(self) -> None:
        """Forget everything."""
        self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)
        self.lengths = [0] * len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for t in [*self.keys, *self.values] if t is not None)


def attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of ``(R, H, L, D)`` to ``(R, H, T, D)``; ``mask`` is false where nothing may be seen.

    Torch's fused kernel does this, except in half-precision training on CPUs, where its gradient takes three to seven
    times as long as that of plain products.
    """
    if queries.is_cuda or queries.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    logits = (queries * scale) @ keys.mT  # (R, H, L, T)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.float().softmax(-1).to(values.dtype) @ values


class MaskedAttention:
    """Self-attention of all scales in one pass, for training; it takes the place of a ``KeyValueCache``.

    Args:
        visible: Which token (row) sees which (column), boolean ``(N, N)``.
    """

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible

    def attend(
        self, block: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, first_stream: int = 0
    ) -> Tensor:
        """Attend under the mask; all tensors are ``(R, H, N, D)``."""
        return attention(queries, keys, values, scale, self.visible)


def _resized(values: Tensor, owners: int, streams: int, length: int) -> Tensor:
    _, heads, capacity, _, width = values.shape
    grown = values.new_empty(owners, heads, capacity, streams, width)
    grown[:, :, :length] = values[:, :, :length]
    return grown


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate adjacent pairs of channels (rotary embedding): ``(a, b) -> (a cos - b sin, a sin + b cos)``.

    Args:
        states: Queries or keys, ``(B, H, L, D)``.
        cosines: Cosines of the angles, ``(L, D / 2)``, float32.
        sines: Sines of the same angles, ``(L, D / 2)``, float32.
    """
    first, second = states.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, L, D / 2) each
    rotated = torch.stack([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
    return rotated.flatten(-2).to(states.dtype)
