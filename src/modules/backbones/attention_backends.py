"""What computes a transformer's attention, by short names for diffusers' own switch."""

from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

BACKENDS = {
    "native": AttentionBackendName.NATIVE,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "efficient": AttentionBackendName._NATIVE_EFFICIENT,
    "math": AttentionBackendName._NATIVE_MATH,
    "flash": AttentionBackendName.FLASH,
    "flash_3": AttentionBackendName._FLASH_3,
    "flex": AttentionBackendName.FLEX,
    "xformers": AttentionBackendName.XFORMERS,
}
"""Name to diffusers' name of what computes the same attention but for rounding, with gradient.

SageAttention, which computes in 8 bits and without gradient, is none of them, nor is what is fetched from the hub.
"""


def check_attention(name: str | None, is_switched: bool, kind: str) -> None:
    """Refuse a name that stands for nothing that is here; None is the model's own.

    Args:
        name: One of ``BACKENDS``.
        is_switched: Whether diffusers' switch reaches the attention of this kind of model.
        kind: The kind of model, in an error.

    Raises:
        ValueError: If it is none of them, needs a package that is not installed, or cannot be switched.
    """
    if name is None:
        return
    if name not in BACKENDS:
        raise ValueError(f"backbone.attention is {name!r}; choose one of {', '.join(BACKENDS)}, or null")
    if not is_switched:
        raise ValueError(
            f"backbone.attention={name} is for FLUX.1 and Qwen-Image: the attention of {kind} calls torch's own, which "
            "takes the fastest that fits; leave it out"
        )
    try:
        _check_attention_backend_requirements(BACKENDS[name])
    except RuntimeError as error:
        raise ValueError(f"backbone.attention={name} is not here: {error}") from error


def switch_attention(denoiser: Any, name: str | None) -> None:
    """Let a denoiser compute its attention so; what ``check_attention`` refuses must not come here."""
    if name is not None:
        denoiser.set_attention_backend(BACKENDS[name].value)
