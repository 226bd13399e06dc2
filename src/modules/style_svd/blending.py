"""Principal feature blending and structural attention correction (arXiv 2507.04482, Eq. 5 and 6, Algorithm 1).

Shapes: B samples, C channels, H x W positions. ``X = U S V^T`` is the singular value decomposition of a sample's
channels x positions matrix.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.modules.next_scale.loop import Generation
from src.modules.next_scale.memory import Paths


def decay_weights(alpha: float, channels: int) -> Tensor:
    """Return the weights ``e^(-alpha i)`` of the singular directions, the dominant one first, float64 ``(channels,)``.

    Args:
        alpha: Decay; 0 keeps all directions, which replaces the whole feature, infinity only the dominant one.
        channels: Number of channels C of the feature.

    Raises:
        ValueError: If ``alpha`` is negative.
    """
    if not alpha >= 0:
        raise ValueError(
            f"alpha is {alpha}; give a number from 0 (replace the feature) to inf (swap its first component)"
        )
    if math.isinf(alpha):
        return top_weights(1, channels)
    return torch.exp(-alpha * torch.arange(channels, dtype=torch.float64))


def top_weights(top_k: int, channels: int) -> Tensor:
    """Return ones for the first ``top_k`` singular directions and zeros for the rest, float64 ``(channels,)``.

    Raises:
        ValueError: If there are fewer directions than that.
    """
    if not 1 <= top_k <= channels:
        raise ValueError(f"top_k is {top_k}; give a number of components from 1 to {channels}, the feature's channels")
    return (torch.arange(channels) < top_k).double()


@dataclass(frozen=True)
class PrincipalFeatures:
    """The part of each sample that the weighted singular directions make up.

    Attributes:
        emphasised: ``Phi(X) = U diag(weights) S V^T``, ``(B, C, H, W)``, of the feature's dtype.
        singular_values: Singular values S of each sample, descending, ``(B, C)``, float64.
    """

    emphasised: Tensor
    singular_values: Tensor

    @property
    def gaps(self) -> Tensor:
        """Relative gap ``1 - s_1 / s_0`` of the two largest singular values, ``(B,)``."""
        return 1 - self.singular_values[:, 1] / self.singular_values[:, 0]

    def spectrum(self, sample: int) -> dict[str, float | list[float]]:
        """Return the singular values and the gap of one sample, rounded for a record."""
        values = [round(value, 6) for value in self.singular_values[sample].tolist()]
        return {"singular_values": values, "gap": round(float(self.gaps[sample]), 6)}


def principal_features(feature: Tensor, weights: Tensor) -> PrincipalFeatures:
    """Compute ``Phi(X)``, which weights the singular directions of each sample (Eq. 5).

    U also diagonalises the C x C Gram matrix ``X X^T``, and ``Phi(X) = (U diag(weights) U^T) X``, so the long side need
    not be decomposed. The Gram matrix squares the condition number: it is formed and decomposed in float64, and on the
    CPU, where every machine gives the same answer.

    Args:
        feature: Running sums of the samples, ``(B, C, H, W)``; the mean over positions is not subtracted.
        weights: Weights of the directions, the dominant one first, ``(C,)``.
    """
    exact = feature.detach().flatten(2).cpu().double()  # X, (B, C, H W)
    squares, ascending = torch.linalg.eigh(exact @ exact.mT)  # S^2 (B, C) and U (B, C, C), smallest first
    basis = ascending.flip(-1)
    projection = (basis * weights.to(basis)) @ basis.mT  # (B, C, C)
    flat = feature.float().flatten(2)  # (B, C, H W)
    emphasised = (projection.to(flat) @ flat).view_as(feature).to(feature.dtype)
    return PrincipalFeatures(emphasised, squares.flip(-1).clamp_min(0).sqrt())


def joined(parts: Sequence[PrincipalFeatures]) -> PrincipalFeatures:
    """Concatenate the samples of several batches."""
    return PrincipalFeatures(
        torch.cat([part.emphasised for part in parts]), torch.cat([part.singular_values for part in parts])
    )


def blended_features(generated: Tensor, own: PrincipalFeatures, style: PrincipalFeatures) -> Tensor:
    """Compute ``Phi(F_sty) + F_gen - Phi(F_gen)`` (Eq. 6), ``(B, C, H, W)``; ``own`` holds ``Phi(F_gen)``."""
    return style.emphasised.to(generated) + generated - own.emphasised


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

    Raises:
        ValueError: When features are blended, if the images cannot have equally many of the styles.
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
            number = len(self.style.emphasised)
            if not number or number % generation.images:
                raise ValueError(f"{number} styles were given for {generation.images} images; give each as many")
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
