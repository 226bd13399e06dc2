"""Scores of the images of one style: what they keep of their prompts, what of the style, and what leaked with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from src.data.styles import StylePrompt, StyleReference
from src.eval.profile import Profile
from src.eval.scores.leakage import Retrieval, collapse, reference_leakage, retrieve, text_leakage
from src.eval.scores.similarity import copies, diversity


@dataclass(frozen=True)
class Embedded:
    """Images of all prompts in one style, prompt by prompt and seed by seed.

    Attributes:
        clip: Unit embeddings ``(N, D)``.
        dino: Unit embeddings ``(N, E)``.
    """

    clip: Tensor
    dino: Tensor


@dataclass(frozen=True)
class EmbeddedReference:
    """One style image.

    Attributes:
        clip: Unit embedding ``(1, D)``.
        dino: Unit embedding ``(1, E)``.
        caption: Unit embedding of the words for what it shows, ``(1, D)``.
    """

    clip: Tensor
    dino: Tensor
    caption: Tensor


@dataclass(frozen=True)
class StyleImages:
    """What scores see of one style: its images, and what they may be compared with.

    Attributes:
        profile: The rules. S_img is CLIP's likeness to the style image by the rule ``one_each``, DINO's within the
            images of one style and seed by ``within_set``. The space of leakage and copies is DINO's.
        images: The images that are scored.
        control: The same prompts and seeds without the reference; None where the control itself is scored.
        texts: What the profile compares each image with, ``(N, D)``.
        prompts: All prompts without their style, ``(P, D)``.
        own: The place among them of each image's prompt, ``(N,)``.
        reference: The style image; None for words, which nothing is like and nothing leaks from.
        pictures: All style images in DINO's space, ``(S, E)``.
        num_seeds: Images per prompt.
    """

    profile: Profile
    images: Embedded
    control: Embedded | None
    texts: Tensor
    prompts: Tensor
    own: Tensor
    reference: EmbeddedReference | None
    pictures: Sequence[Tensor]
    num_seeds: int

    def by_seed(self, measure: Callable[..., Tensor], *embeddings: Tensor) -> Tensor:
        """A measure within each set of images of all prompts with one seed; in the order of the images, ``(N,)``."""
        sets = [one.unflatten(0, (-1, self.num_seeds)).unbind(1) for one in embeddings]
        return torch.stack([measure(*members) for members in zip(*sets, strict=True)], dim=1).flatten()

    def taken(self) -> Retrieval | None:
        """What each image is taken for, among all prompts and the caption of the style image."""
        if self.reference is None:
            return None
        return retrieve(self.images.clip, self.prompts, self.own, self.reference.caption)


Score = Callable[[StyleImages], Tensor | None]
"""One number per image, ``(N,)``; None where the score does not apply."""


def _image_score(of: StyleImages) -> Tensor | None:
    if of.profile.pairing == "within_set":
        return of.by_seed(of.profile.image_score, of.images.dino)
    return of.profile.image_score(of.images.clip, of.reference.clip) if of.reference else None


def _leakage(of: StyleImages) -> Tensor | None:
    if of.reference is None or of.control is None:
        return None
    return reference_leakage(of.images.dino, of.control.dino, of.reference.dino)


def _text_leakage(of: StyleImages) -> Tensor | None:
    if of.reference is None or of.control is None:
        return None
    return text_leakage(of.images.clip, of.control.clip, of.reference.caption)


def _recall(of: StyleImages) -> Tensor | None:
    taken = of.taken()
    return taken.right.double() if taken else None


def _taken_for_reference(of: StyleImages) -> Tensor | None:
    taken = of.taken()
    return taken.leaked.double() if taken else None


def _copied(of: StyleImages) -> Tensor | None:
    several = of.reference is not None and len(of.pictures) > 1
    return copies(of.images.dino, torch.cat(list(of.pictures))).above.double() if several else None


def _diversity(of: StyleImages) -> Tensor | None:
    several = of.num_seeds > 1
    return torch.cat([diversity(one) for one in of.images.dino.split(of.num_seeds)]) if several else None


SCORES: dict[str, Score] = {
    "s_txt": lambda of: of.profile.text_score(of.images.clip, of.texts),
    "s_img": _image_score,
}
PAIRED: dict[str, Score] = {
    "leakage": _leakage,
    "text_leakage": _text_leakage,
    "collapse": lambda of: of.by_seed(collapse, of.images.dino, of.control.dino) if of.control else None,
}
"""Differences from the control, the same prompts and seeds without the reference."""
GUARDS: dict[str, Score] = {
    # What is drawn, whatever it is drawn in; equal to S_txt where the profile's text is the prompt without its style.
    "s_content": lambda of: of.profile.text_score(of.images.clip, of.prompts[of.own]),
    "recall_at_1": _recall,
    "taken_for_reference": _taken_for_reference,
    "copied": _copied,
    "diversity": _diversity,
}


EVERY = {**SCORES, **PAIRED, **GUARDS}
"""All three tables, in the order of their columns."""


class StyleScorer:
    """Prompts, style images and the rules of a profile, ready to score images.

    Args:
        profile: Encoders and rules.
        prompts: At least two.
        styles: Those that are words alone have no likeness to an image, and nothing leaks from them.
        num_seeds: Images per prompt and style.
    """

    def __init__(
        self, profile: Profile, prompts: Sequence[StylePrompt], styles: Sequence[StyleReference], num_seeds: int
    ) -> None:
        self.profile, self.prompts, self.num_seeds = profile, prompts, num_seeds
        self.plain = profile.clip.encode_texts([prompt.plain for prompt in prompts])
        self.own = torch.arange(len(prompts)).repeat_interleave(num_seeds)
        self.references = {style.name: self._embedded_reference(style) for style in styles if style.is_image}

    def embed(self, files: Sequence[Path]) -> Embedded:
        """Read and encode images."""
        return Embedded(self.profile.clip.encode_images(files), self.profile.dino.encode_images(files))

    def __call__(
        self, style: StyleReference, images: Embedded, control: Embedded | None = None
    ) -> dict[str, Tensor | None]:
        """Every score; None for those that do not apply, such as differences where there is no control."""
        rules = [{"full": prompt.styled(style.style), "without_style": prompt.plain} for prompt in self.prompts]
        texts = self.profile.clip.encode_texts([self.profile.scored_text(one) for one in rules])[self.own]
        seen = StyleImages(
            self.profile,
            images,
            control,
            texts,
            self.plain,
            self.own,
            self.references.get(style.name),
            [reference.dino for reference in self.references.values()],
            self.num_seeds,
        )
        return {name: score(seen) for name, score in EVERY.items()}

    def _embedded_reference(self, style: StyleReference) -> EmbeddedReference:
        clip, dino, picture = self.profile.clip, self.profile.dino, [Path(style.path)]
        return EmbeddedReference(
            clip.encode_images(picture), dino.encode_images(picture), clip.encode_texts([style.content])
        )
