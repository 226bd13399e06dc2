"""Which precision of Lightning's is the fastest on this machine, among those that keep weights in float32."""


def fastest_precision(accelerator: str) -> str:
    """Return ``bf16-mixed`` where the hardware multiplies in bfloat16, and ``32-true`` where that would be emulated.

    Emulated on a CPU of AVX-512, a step of LLMDiff takes more than twice as long as in float32. A processor of Apple's
    counts as one that emulates it: not all of them have it, and none was at hand.

    Args:
        accelerator: A trainer's.
    """
    # A second of imports, which a configuration that is only shown need not wait for.
    import torch

    if accelerator != "cpu" and torch.accelerator.is_available():
        has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        has_it = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"))
    return "bf16-mixed" if has_it else "32-true"
