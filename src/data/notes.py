"""What a picture says of how it was drawn: text chunks of its PNG, for other programs and for ours.

``parameters`` is what most viewers show of a generated picture: prompt, negative prompt, and one line of settings.
``atelier`` is JSON with everything. There is no chunk ``prompt``: ComfyUI would take it for a workflow of its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from src.data.images import image_texts
from src.data.request import Identity, ImageStyle, Request

PARAMETERS, ATELIER = "parameters", "atelier"
NAMES = {"num_inference_steps": "Steps", "guidance_scale": "CFG scale"}
"""Settings of a call to what viewers know them as."""
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Note:
    """How one picture was drawn.

    Attributes:
        prompt: As it was asked for, with concepts as ``<name>``.
        seed: Seed of the initial noise.
        drawn_with: What the picture depends on beside prompt and seed.
        command: Arguments of the command that drew it, without its places; None where no command of ``generate.py``
            did.
        style: ``style`` or ``style_prompt`` to the image or the words of the style; empty without one.
        said: What the method has to say of the picture, such as its singular spectra.
    """

    prompt: str
    seed: int
    drawn_with: Identity
    command: Sequence[str] | None = None
    style: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)


def chunks(
    request: Request,
    size: tuple[int, int],
    drawn_with: Identity,
    sampling: Mapping[str, Any],
    command: Sequence[str] | None = None,
    said: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the chunks of a picture.

    Args:
        request: What was asked for.
        size: Width and height of the picture, in pixels.
        drawn_with: As of ``Note``.
        sampling: Settings of the call; those of ``NAMES`` and ``negative_prompt`` are told.
        command: As of ``Note``.
        said: As of ``Note``.
    """
    style = request.style
    told = {}
    if style is not None:
        told = {"style": style.path} if isinstance(style, ImageStyle) else {"style_prompt": style.words}
    note = Note(request.prompt, request.seed, drawn_with, command, told, said or {})
    settings = {name: sampling[key] for key, name in NAMES.items() if sampling.get(key) is not None}
    settings |= {"Seed": request.seed, "Size": f"{size[0]}x{size[1]}", "Version": f"Atelier {_version()}"}
    negative = sampling.get("negative_prompt")
    lines = [
        request.prompt,
        *([f"Negative prompt: {negative}"] if negative else []),
        ", ".join(f"{name}: {value}" for name, value in settings.items()),
    ]
    return {PARAMETERS: "\n".join(lines), ATELIER: json.dumps(asdict(note))}


def _version() -> str:
    try:
        return version("atelier")
    except PackageNotFoundError:
        return "from a checkout"


def read_note(path: str) -> Note:
    """Read how a picture of ours was drawn.

    Raises:
        ValueError: If there is no such picture, or it says nothing, or no sense.
    """
    text = image_texts(path, ATELIER).get(ATELIER)
    if text is None:
        raise ValueError(
            f"{path} does not say how it was drawn: it is no PNG of generate.py, or another program has written it anew"
        )
    try:
        return _checked(json.loads(text) if len(text) <= MOST_BYTES else None)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"what {path} says of how it was drawn makes no sense; was it edited?") from None


def _checked(told: Any) -> Note:
    note = Note(**told)
    texts = (*(note.command or ()), *note.style.keys(), *note.style.values(), *note.drawn_with.values(), note.prompt)
    if not all(isinstance(each, str) for each in texts) or type(note.seed) is not int:
        raise TypeError("texts and a number were expected")
    return note
