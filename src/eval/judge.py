"""What reads the look of subjects off pictures, where ground truth is known; a profile may bring one along."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from src.data.images import Picture
from src.eval.concepts import Concept
from src.eval.protocols.layout import Box


class Judge(Protocol):
    """Compares pictures with the known looks of concepts, attribute by attribute.

    Attributes:
        attributes: What it reads, such as ``color``.
        identity: Everything that could change an answer, such as a hash of its weights.
    """

    attributes: Sequence[str]

    @property
    def identity(self) -> Mapping[str, Any]:
        """As above."""

    def knows(self, concepts: Sequence[Concept]) -> bool:
        """Tell whether the look of each concept is known."""

    def right(self, pictures: Sequence[Picture], boxes: Sequence[Box], concepts: Sequence[Concept]) -> Tensor:
        """Tell whether the object inside each picture's box has each concept's attributes, bool ``(N, C, A)``."""

    def telling(self, concepts: Sequence[Concept]) -> Tensor:
        """Tell in which attributes concepts differ, bool ``(A,)``."""

    def renders(self, prompt: str, concepts: Sequence[Concept], number: int) -> list[Image.Image]:
        """Draw true pictures of what a prompt asks for; it has a ``{}``, or ``{first}`` and ``{second}``."""
