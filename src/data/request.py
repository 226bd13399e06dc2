"""What a method is asked for: one image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One image to make: the same prompt and seed always give the same image, whatever else is asked for.

    Attributes:
        prompt: Text, possibly with concepts as ``<name>``.
        seed: Of the initial noise.
        name: What to call the image; it does not change it.
    """

    prompt: str
    seed: int
    name: str = ""
