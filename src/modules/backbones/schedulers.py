"""Samplers by the names that people know them by, built from a checkpoint's own noise schedule."""

from importlib.util import find_spec
from typing import Any

import diffusers

KARRAS = "_karras"
"""Ending of a name whose noise levels are spaced as by Karras et al. (arXiv 2206.00364)."""
_DPM, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", _DPM),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", _DPM),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", _SDE),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""Name to the class in diffusers, and what is set in it."""
WITHOUT_KARRAS = ("ddim", "ddpm", "pndm", "euler_a", "lcm", "tcd")
OF_FLOWS = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_sde", "deis", "unipc")
"""Those that also follow a flow, which has levels of noise of its own."""
NAMES = tuple(sorted([*SCHEDULERS, *(f"{name}{KARRAS}" for name in SCHEDULERS if name not in WITHOUT_KARRAS)]))


def check_scheduler(name: str | None) -> None:
    """Refuse a name that stands for no sampler; None is the checkpoint's own.

    Raises:
        ValueError: If it is one, or needs a package that is not installed.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"backbone.scheduler is {name!r}; choose one of {', '.join(NAMES)}")
    if name is not None and name.startswith("lms") and find_spec("scipy") is None:
        raise ValueError(f"backbone.scheduler={name} integrates with scipy, which is not here; pip install scipy")


def scheduler_like(own: Any, name: str) -> Any:
    """Make a sampler of this name with the betas, the prediction and the steps of another.

    Args:
        own: The checkpoint's own.
        name: One of ``NAMES``.

    Raises:
        ValueError: As in ``check_scheduler``, or if the checkpoint's own noise has no such schedule, or is a flow that
            this sampler does not follow.
    """
    check_scheduler(name)
    if not hasattr(own, "betas"):
        raise ValueError(f"backbone.scheduler needs a noise schedule of betas, and a {type(own).__name__} has none")
    if own.config.get("prediction_type") == "flow_prediction" and name not in OF_FLOWS:
        raise ValueError(f"backbone.scheduler={name} follows no flow; choose one of {', '.join(OF_FLOWS)}")
    base = name.removesuffix(KARRAS)
    kind, changes = SCHEDULERS[base]
    spacing = {} if base in WITHOUT_KARRAS else {"use_karras_sigmas": name.endswith(KARRAS)}
    return getattr(diffusers, kind).from_config(own.config, **changes, **spacing)
