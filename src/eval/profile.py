"""A scoring convention as one object: encoders, scale, pairing and text. Its name stands with every number."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from src.data.ranges import Positive
from src.eval.encoders.cache import CachedEncoder, CachedTextEncoder
from src.eval.encoders.models import ImageEncoder, TextImageEncoder
from src.eval.judge import Judge
from src.eval.scores.similarity import clip_t, own_reference, pair_mean, within_set
from src.eval.vision_judge import VisionJudge, VisionModelFolder

TEXTS = {
    "class_noun": "the prompt with the class noun in place of the concept",
    "full": "the whole prompt, style words included",
    "without_style": "the prompt without its style words",
}
"""What CLIP-T compares an image with."""

PAIRINGS = {
    "all": "every generated image with every reference",
    "one_each": "every generated image with one reference",
    "within_set": "the generated images of a set with each other",
}
"""Which images are compared with which."""


class Profile:
    """What must be equal for two numbers to be put side by side.

    Args:
        name: Such as ``dreambooth``: a file of ``conf/metrics``.
        clip: Encoder of CLIP-T and CLIP-I.
        dino: Encoder of DINO.
        text: One of ``TEXTS``.
        pairing: One of ``PAIRINGS``.
        text_scale: Factor of CLIP-T: 1 for raw cosines, 2.5 for CLIPScore (arXiv 2104.08718).
        text_clamp: Whether a negative CLIP-T counts as 0, image by image.
        cache_dir: Where embeddings of images are kept between runs; None keeps none.
        judge: Reads the looks of concepts off pictures, for protocols that compare them where looks are known.
        vlm: Rates pictures, or the folder of a vision-language model that does; for ``protocol=concept``.

    Raises:
        ValueError: If a rule does not exist.
    """

    def __init__(
        self,
        name: str,
        clip: TextImageEncoder,
        dino: ImageEncoder,
        text: str,
        pairing: str,
        text_scale: Positive = 1.0,
        text_clamp: bool = False,
        cache_dir: str | None = None,
        judge: Judge | None = None,
        vlm: VisionJudge | VisionModelFolder | None = None,
    ) -> None:
        for key, value, known in (("text", text, TEXTS), ("pairing", pairing, PAIRINGS)):
            if value not in known:
                raise ValueError(f"the profile {name} has {key}={value!r}; choose one of: {', '.join(known)}")
        self.name = name
        self.clip = clip if cache_dir is None else CachedTextEncoder(clip, cache_dir)
        self.dino = dino if cache_dir is None else CachedEncoder(dino, cache_dir)
        self.text, self.pairing, self.text_scale, self.text_clamp = text, pairing, text_scale, text_clamp
        self.judge = judge
        self.vlm = VisionJudge(vlm) if isinstance(vlm, str) else vlm

    def text_score(self, images: Tensor, texts: Tensor) -> Tensor:
        """CLIP-T of each image with its own text, scaled and clamped, ``(N,)``; arguments as of ``clip_t``."""
        return clip_t(images, texts, self.text_scale, self.text_clamp)

    def image_score(self, generated: Tensor, references: Tensor | None = None) -> Tensor:
        """Similarity of each generated image by the pairing rule.

        Args:
            generated: Unit embeddings ``(N, D)`` of one set.
            references: Unit embeddings ``(M, D)``; ``M`` is 1 or N where each image has one. None within a set.

        Returns:
            Shape ``(N,)``.

        Raises:
            ValueError: If references are missing, or their number does not fit the rule.
        """
        if self.pairing == "within_set":
            return within_set(generated)
        if references is None:
            raise ValueError(f"the profile {self.name} compares {PAIRINGS[self.pairing]}, but there are no references")
        return pair_mean(generated, references) if self.pairing == "all" else own_reference(generated, references)

    def scored_text(self, texts: Mapping[str, str]) -> str:
        """The text by the profile's rule, of those that a protocol offers by rule.

        Raises:
            ValueError: If it is not among them.
        """
        self.require(texts, PAIRINGS)
        return texts[self.text]

    def require(self, texts: Collection[str], pairings: Collection[str]) -> None:
        """Refuse rules that a protocol cannot follow, before it draws anything.

        Args:
            texts: Members of ``TEXTS`` that the protocol offers.
            pairings: Members of ``PAIRINGS`` that it offers.

        Raises:
            ValueError: If the profile asks for another.
        """
        for rule, offered, all_rules in ((self.text, texts, TEXTS), (self.pairing, pairings, PAIRINGS)):
            if rule not in offered:
                ours = " or ".join(all_rules[one] for one in offered)
                raise ValueError(
                    f"the profile {self.name} scores {all_rules[rule]}, this protocol {ours}; "
                    "choose another metrics=NAME of conf/metrics"
                )

    def rules(self) -> dict[str, Any]:
        """Everything but the encoders that decides a number."""
        return {
            "text": self.text,
            "pairing": self.pairing,
            "text_scale": self.text_scale,
            "text_clamp": self.text_clamp,
        }

    def identity(self) -> dict[str, Any]:
        """Name, encoders (weights and preprocessing among them) and rules; as ``metrics.json`` holds them."""
        judges = {"judge": self.judge, "vlm": self.vlm}
        asked = {name: one.identity for name, one in judges.items() if one is not None}
        return {
            "profile": self.name,
            "encoders": {"clip": self.clip.identity, "dino": self.dino.identity, **asked},
            "rules": self.rules(),
        }


def same_profile_or_raise(identities: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to join numbers that were made in different ways.

    Args:
        identities: What ``Profile.identity`` gave, or whole contents of ``metrics.json``; further keys do not matter.

    Raises:
        ValueError: If they are not all of one profile, with the same encoders and rules.
    """
    for other in identities[1:]:
        ours, theirs = _flat(identities[0]), _flat(other)
        different = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
        if different:
            key = different[0]
            raise ValueError(
                f"scores with another {key} are not put side by side ({ours.get(key)!r} and {theirs.get(key)!r}); "
                "score both with one metrics=NAME"
            )


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without further keys; what a part lacks is missing, and so differs."""
    encoders = {f"encoder {name}": value for name, value in identity.get("encoders", {}).items()}
    return {"profile": identity.get("profile")} | encoders | dict(identity.get("rules", {}))
