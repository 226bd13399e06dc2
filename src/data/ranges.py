"""Ranges that arguments declare in their annotations; a configuration is held to them before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, MultipleOf

MAY_BE_INFINITE = "may be infinite"
"""Marks a number that infinity makes sense for; every other number is finite."""


# By identity: a union hashes what its members are annotated with.
@dataclass(frozen=True, eq=False)
class Entries:
    """What some entries of a mapping must be.

    Attributes:
        kinds: Name to annotation; other names are free.
    """

    kinds: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Spelled:
    """How a text is spelled.

    Attributes:
        pattern: Regular expression of the whole text.
        words: The same in words, such as ``without slashes``.
    """

    pattern: str
    words: str


FolderName = Annotated[str, Spelled(r"(?!\.)[^/\\\x00-\x1f]{1,200}", "that names one folder, without slashes")]
"""The name of a folder, which cannot lead out of the one that holds it."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least one."""
Number = Annotated[int, Ge(0)]
"""A whole number that may be zero."""
Positive = Annotated[float, Gt(0)]
"""A number above zero."""
Weight = Annotated[float, Ge(0)]
"""A number that may be zero, such as a weight or a rate."""
Share = Annotated[float, Interval(ge=0, le=1)]
"""A share or a probability."""
Share1 = Annotated[float, Interval(gt=0, le=1)]
"""A share that is not nothing."""
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""A decay, or the probability of leaving something out."""
MOST = 1.5
"""The highest strength of a concept."""
Strength = Annotated[float, Interval(ge=0, le=MOST)]
"""How strongly a concept is meant: 0 for the plain noun, 1 for the concept as it was learnt."""
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
"""What NumPy, too, takes for a seed."""
Side = Annotated[int, Interval(ge=8, le=16384), MultipleOf(8)]
"""The side of an image in pixels; latents are an eighth of it."""
BatchSize = Annotated[int, Interval(ge=1, le=65536)]
"""Samples or images at a time."""
Workers = Annotated[int, Interval(ge=0, le=1024)]
"""Processes that read data."""

Ratio = Annotated[float, Interval(ge=1, le=100)]
"""Width to height, or height to width."""
Rank = Annotated[int, Interval(ge=1, le=4096)]
"""The rank of a low-rank update; no layer is wider than a few thousand."""
Dominance = Annotated[float, Ge(0), MAY_BE_INFINITE]
"""How much the first of several parts counts; infinity leaves the others out."""

Guidance = float | Sequence[float] | None
Sampling = Annotated[
    Mapping[str, Any],
    Entries(
        {
            "num_inference_steps": Annotated[int, Interval(ge=1, le=1000)] | None,
            "guidance_scale": Guidance,
            "negative_prompt": str | None,
            "resolution": Side | None,
            "blending_start": Share1 | None,
            "blending_end": BelowOne | None,
            "keep_context": bool | None,
            "top_k": Number | None,
            "top_p": Share | None,
        }
    ),
]
"""Settings of a call of a model; None stands for the model's own."""
