"""What a training of LaTexBlend is told: the subject, and what of the method is learnt with."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Subject:
    """What is learnt.

    Attributes:
        class_noun: What the subject is, such as ``dog``.
        concept: What prompts call it, as ``<name>``.
        references: Folder of its photos, noted in the bank for scoring.
    """

    incidental: ClassVar[tuple[str, ...]] = ("references",)

    class_noun: str
    concept: str = "subject"
    references: str = ""


@dataclass(frozen=True)
class Objective:
    """What is minimised: the flows, their prompts, and how their losses are added.

    Attributes:
        base_flow: False for the ablation: the whole prompt with V* goes through the trained projections.
        templates: ``pool``, drawn independently for the two flows, or ``fixed``.
        prior_loss_weight: Weight of the class images; 0 switches them off.
        faithful: The reference code's scalings instead of ours: the instance loss is summed over latent channels, and
            SDXL's pooled text comes from the prompt with V*.

    Raises:
        ValueError: If there are no such templates.
    """

    base_flow: bool = True
    templates: str = "pool"
    prior_loss_weight: float = 1.0
    faithful: bool = False

    def __post_init__(self) -> None:
        """Check."""
        if self.templates not in ("pool", "fixed"):
            raise ValueError(f"method.learner.objective.templates is {self.templates!r}; choose pool or fixed")
