"""Blend the style of references into a scale-wise generation: a hook for pipelines (arXiv 2507.04482, Algorithm 1)."""

import json
import logging

import torch
from torch import Tensor

from src.modules.next_scale.loop import Generation
from src.modules.next_scale.memory import Paths
from src.modules.style_svd.features import PrincipalFeatures, blended_features, principal_features

_log = logging.getLogger(__name__)
SMALL_GAP = 1e-3
"""Relative gap of the two largest singular values below which rounding decides which direction is dominant."""


class StyleBlending:
    """Hook that blends the principal features of styles into a generation and keeps its structure.

    After ``blend_after`` scales every image is drawn once in each of its styles: principal feature blending (PFB) edits
    the running sum ``F_3``. With structural attention correction (SAC) the unedited content path goes on beside these
    and lends them its queries and keys; its own image is not drawn to the end.

    Args:
        style: Principal features of the styles' running sums after ``blend_after`` scales, all styles of one image
            beside each other. None takes the second half of the batch as the styles of the first half: they are drawn
            up to that scale, and then dropped.
        weights: Weights of the singular directions, ``(C,)``; zeros blend nothing.
        blend_after: Number of scales after which features are blended; the paper's 3.
        correct_from: First pass, counted from 0, with structural attention correction; None for no correction.
        shared_noise: Whether all paths of an image draw with the same noise.
    """

    def __init__(
        self,
        style: PrincipalFeatures | None,
        weights: Tensor,
        blend_after: int = 3,
        correct_from: int | None = 3,
        shared_noise: bool = True,
    ) -> None:
        self.style, self.weights = style, weights
        self.blend_after, self.correct_from, self.shared_noise = blend_after, correct_from, shared_noise
        self.spectra: dict[str, PrincipalFeatures] = {}

    def __call__(self, scale_index: int, generation: Generation) -> None:
        """Blend, begin the correction, or drop the content paths, whichever is due after this scale."""
        if scale_index == self.blend_after - 1:
            self._blend(generation)
        elif scale_index + 1 == self.correct_from:
            generation.share_attention()
        if scale_index == generation.model.num_scales - 1:
            self._drop_content(generation)

    def paths(self, images: int) -> Paths:
        """Return the paths that a batch of so many images is forked into."""
        drawn = images // 2 if self.style is None else images
        styles = 1 if self.style is None else len(self.style.emphasised) // images
        return Paths(drawn, styles + (self.correct_from is not None), self.correct_from == self.blend_after)

    def records(self) -> list[str]:
        """Return for each drawn image the spectra of its own and of its style's feature, as JSON."""
        numbers = range(len(self.spectra["generated"].gaps))
        return [
            json.dumps({name: features.spectrum(number) for name, features in self.spectra.items()})
            for number in numbers
        ]

    def _blend(self, generation: Generation) -> None:
        style = self._styles(generation)
        styles = len(style.emphasised) // generation.images
        content = int(self.correct_from is not None)
        if content + styles > 1:
            generation.fork(content + styles, self.correct_from == self.blend_after, self.shared_noise)
        paths = generation.feature.unflatten(0, (generation.images, -1))  # (images, streams, C, H, W)
        generated = paths[:, content:].flatten(0, 1)  # (B, C, H, W), B = images x styles
        own = principal_features(generated, self.weights)
        self._record(generated=own, style=style)
        blended = blended_features(generated, own, style).unflatten(0, (-1, styles))  # (images, styles, C, H, W)
        generation.feature = torch.cat([paths[:, :content], blended], dim=1).flatten(0, 1)

    def _styles(self, generation: Generation) -> PrincipalFeatures:
        if self.style is not None:
            return self.style
        number = generation.images // 2
        feature = generation.feature[number:]  # (number, C, H, W)
        generation.keep_images(number)
        return principal_features(feature, self.weights)

    def _drop_content(self, generation: Generation) -> None:
        if self.correct_from is not None and len(generation.feature) == generation.paths:
            generation.feature = generation.feature.unflatten(0, (generation.images, -1))[:, 1:].flatten(0, 1)

    def _record(self, **spectra: PrincipalFeatures) -> None:
        self.spectra = spectra
        for name, features in spectra.items():
            gap = float(features.gaps.min())
            if gap < SMALL_GAP:
                _log.warning(
                    "the two largest components of the %s feature are equal within %.1e: which one dominates is chance",
                    name,
                    gap,
                )


def check_steps(blend_after: int, correct_from: int | None, num_scales: int) -> None:
    """Refuse passes outside the schedule.

    Raises:
        ValueError: If blending leaves no scale to draw, or the correction starts before it or after the last scale.
    """
    if not 1 <= blend_after < num_scales:
        raise ValueError(
            f"blend_after is {blend_after}; this model draws {num_scales} scales, so give 1 to {num_scales - 1}"
        )
    if correct_from is not None and not blend_after <= correct_from < num_scales:
        raise ValueError(
            f"correct_from is {correct_from}; give a pass from {blend_after}, the first after blending, to "
            f"{num_scales - 1}, or null for no correction"
        )
