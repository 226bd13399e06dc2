"""The most memory that a process has taken, on its accelerator or in main memory."""

import sys

import torch


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most bytes that this process has allocated on an accelerator; for the CPU its largest resident set.

    Args:
        device: The device; None for the accelerator that torch names, if there is one. One that keeps no record of its
            peak (mps) tells what its driver holds now.
    """
    device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        backend = torch.get_device_module(device)
        if hasattr(backend, "max_memory_allocated"):
            return int(backend.max_memory_allocated(device))
        return int(backend.driver_allocated_memory())
    # Windows has no such module.
    import resource

    # The unit is bytes on macOS, kibibytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
