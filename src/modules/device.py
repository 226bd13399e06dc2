"""Which device a configuration means."""

import torch

AUTO = "auto"
"""The GPU where there is one, else the CPU."""


def usable_device(name: str, key: str) -> torch.device:
    """The device of this name.

    Args:
        name: As torch names it, such as ``cuda:1``, or ``auto``.
        key: What set it, for the error.

    Raises:
        ValueError: If torch cannot use it on this machine.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{key} is {name!r}, which torch cannot use on this machine; give {key}=cpu, or cuda where there is a GPU"
        ) from error
