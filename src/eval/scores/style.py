"""Scores of the images of one style: what they keep of their prompts, what of the style, and what leaked with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from src.data.styles import StylePrompt, StyleReference
from src.eval.profile import Profile
from src.eval.scores.leakage import collapse, copies, reference_leakage, retrieve, text_leakage
from src.eval.scores.similarity import diversity

SCORES = ("s_txt", "s_img")
PAIRED = ("leakage", "text_leakage", "collapse")
"""Differences from the control, the same prompts and seeds without the reference."""
GUARDS = ("recall_at_1", "taken_for_reference", "copied", "diversity")


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


class StyleScorer:
    """Prompts, style images and the rules of a profile, ready to score images.

    Args:
        profile: Encoders and rules. S_img is CLIP's likeness to the style image by the rule ``one_each``, DINO's within
            the images of one style and seed by ``within_set``. The space of leakage and copies is DINO's.
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

    def scores(self, style: StyleReference, images: Embedded) -> dict[str, Tensor]:
        """Of ``SCORES`` and ``GUARDS`` those that apply, each ``(N,)``."""
        texts = [self.profile.scored_text(_texts(prompt, style)) for prompt in self.prompts]
        found = {
            "s_txt": self.profile.text_score(images.clip, self.profile.clip.encode_texts(texts)[self.own]),
            "s_img": self._image_score(style, images),
        }
        if style.name in self.references:
            taken = retrieve(images.clip, self.plain, self.own, self.references[style.name].caption)
            found |= {"recall_at_1": taken.right.double(), "taken_for_reference": taken.leaked.double()}
        if style.name in self.references and len(self.references) > 1:
            pictures = torch.cat([reference.dino for reference in self.references.values()])
            found["copied"] = copies(images.dino, pictures).above.double()
        if self.num_seeds > 1:
            found["diversity"] = torch.cat([diversity(one) for one in images.dino.split(self.num_seeds)])
        return found

    def against(self, style: StyleReference, images: Embedded, control: Embedded) -> dict[str, Tensor]:
        """Of ``PAIRED`` those that apply, each ``(N,)``."""
        found = {"collapse": self._by_seed(collapse, images.dino, control.dino)}
        if style.name in self.references:
            reference = self.references[style.name]
            found["leakage"] = reference_leakage(images.dino, control.dino, reference.dino)
            found["text_leakage"] = text_leakage(images.clip, control.clip, reference.caption)
        return found

    def _image_score(self, style: StyleReference, images: Embedded) -> Tensor:
        if self.profile.pairing == "within_set":
            return self._by_seed(self.profile.image_score, images.dino)
        return self.profile.image_score(images.clip, self.references[style.name].clip)

    def _by_seed(self, measure: Callable[..., Tensor], *embeddings: Tensor) -> Tensor:
        """A measure within each set of images of all prompts with one seed; in the order of the images, ``(N,)``."""
        sets = [one.unflatten(0, (-1, self.num_seeds)).unbind(1) for one in embeddings]
        return torch.stack([measure(*members) for members in zip(*sets, strict=True)], dim=1).flatten()

    def _embedded_reference(self, style: StyleReference) -> EmbeddedReference:
        clip, dino, picture = self.profile.clip, self.profile.dino, [Path(style.path)]
        return EmbeddedReference(
            clip.encode_images(picture), dino.encode_images(picture), clip.encode_texts([style.content])
        )


def _texts(prompt: StylePrompt, style: StyleReference) -> dict[str, str]:
    """By the rules that a profile may have."""
    return {"full": prompt.styled(style.style), "without_style": prompt.plain}
