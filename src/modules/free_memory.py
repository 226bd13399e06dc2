"""Whether something fits into memory, asked before it is tried."""

import logging

import psutil
import torch

_log = logging.getLogger(__name__)
GIBIBYTE = 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that can be had without swapping; on a GPU with those that torch holds and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def room_or_raise(nbytes: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse to start on what cannot end well.

    Args:
        nbytes: That will be needed.
        device: Where.
        what: The thing that needs them.
        advice: What to type instead.

    Raises:
        ValueError: If they are not free.
    """
    free = free_memory(device)
    _log.info("%s: %.2f GiB of %.1f GiB that are free", what, nbytes / GIBIBYTE, free / GIBIBYTE)
    if nbytes > free:
        raise ValueError(
            f"{what} would take {nbytes / GIBIBYTE:.1f} GiB, but {free / GIBIBYTE:.1f} GiB are free; {advice}"
        )
