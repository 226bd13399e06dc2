"""What to draw, with and without the style to draw it in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StylePrompt:
    """A prompt without any style.

    Attributes:
        content: Such as ``a cat``.
        category: The superclass that prompts of arXiv 2507.04482 name, such as ``Animals``; empty to leave it out.
    """

    content: str
    category: str = ""

    @property
    def plain(self) -> str:
        """Without the style: ``a cat, animals``."""
        return f"{self.content}, {self.category.lower()}" if self.category else self.content

    def styled(self, style: str) -> str:
        """In a style: ``a cat, animals, in watercolor painting style``; ``flat style`` stays without a second "style".

        Args:
            style: Descriptor, such as ``watercolor painting``.
        """
        return f"{self.plain}, in {style.removesuffix('style').strip()} style"
