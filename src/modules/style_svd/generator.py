"""Training-free style personalisation on scale-wise models: the generator of arXiv 2507.04482."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from PIL import Image

from src.data.images import content_hash, load_image
from src.data.known_words import KnownWords
from src.data.ranges import BatchSize, Count, Dominance, Number, Sampling
from src.data.request import Identity, ImageStyle, Request, Style, TextStyle
from src.modules.generator import BatchedGenerator
from src.modules.next_scale.pipeline import CallSettings, NextScalePipeline, model_identity
from src.modules.style_svd.blending import (
    PrincipalFeatures,
    StyleBlending,
    check_steps,
    decay_weights,
    joined,
    principal_features,
    top_weights,
)

NOISES = ("shared", "independent")
SPECTRA = "spectra"
"""Key in the ``info`` of an image that was drawn in a style: the singular values that were blended."""


class StyleGenerator(BatchedGenerator[Request]):
    """Draws each request in its style: an image, words, or none.

    All styles of one prompt and seed are drawn in one batch and share its content path.

    Args:
        backbone: An ``InfinityPipeline`` or a ``SwittiPipeline``; it stays as it is.
        blend: Whether principal features are blended.
        alpha: Decay of the weights over the singular directions: 0 replaces the feature, infinity swaps only the
            dominant component.
        top_k: Number of components that get weight 1 while all others get 0; None for the decay of ``alpha``.
        correct: Whether structural attention correction keeps the structure of the content.
        blend_after: Number of scales after which features are blended.
        correct_from: First corrected pass, counted from 0; None for the first after blending.
        noise: ``shared`` draws all paths of an image with the same noise, ``independent`` with different noise.
        sampling: Further arguments of the pipeline, such as ``guidance_scale``; None stands for the model's own value.
        batch_size: Number of prompts drawn at a time; with correction a prompt with one style takes two paths.

    Raises:
        ValueError: If an option is impossible on this backbone.
    """

    def __init__(
        self,
        backbone: NextScalePipeline,
        blend: bool = True,
        alpha: Dominance = 1.0,
        top_k: Count | None = None,
        correct: bool = True,
        blend_after: Count = 3,
        correct_from: Number | None = None,
        noise: str = "shared",
        sampling: Sampling | None = None,
        batch_size: BatchSize = 8,
    ) -> None:
        if noise not in NOISES:
            raise ValueError(f"noise is {noise!r}; choose one of {', '.join(NOISES)}")
        super().__init__(batch_size)
        self.backbone, self.noise = backbone, noise
        backbone.set_progress_bar_config(disable=True)
        channels = backbone.vae.config.latent_channels
        weights = decay_weights(alpha, channels) if top_k is None else top_weights(top_k, channels)
        self.weights = weights if blend else torch.zeros_like(weights)
        first_corrected = blend_after if correct_from is None else correct_from
        self.blend_after, self.correct_from = blend_after, first_corrected if correct else None
        self.settings = CallSettings(backbone, sampling or {})
        given = self.settings.arguments
        self.size = {side: given[side] for side in ("height", "width") if side in given}
        num_scales = len(backbone.schedule(**self.size).grids) if self.size else backbone.num_scales
        check_steps(blend_after, self.correct_from, num_scales)
        self.model_identity = model_identity(backbone)
        self._features: dict[str, PrincipalFeatures] = {}

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside text, seed and style; ``reference.`` marks what only styles need."""
        weights = [float(f"{weight:.6g}") for weight in self.weights] if self.weights.any() else None
        return {
            "backbone": self.model_identity,
            "sampling": str(self.settings),
            "reference.style": f"{weights} {self.blend_after} {self.correct_from} {self.noise}",
        }

    @property
    def known_words(self) -> KnownWords | None:
        """The words that the pipeline was taught, where it carries their list."""
        return self.backbone.known_words

    def plain(self, request: Request) -> str:
        """Return the prompt and the words of the style."""
        return f"{request.prompt} {request.style.words if isinstance(request.style, TextStyle) else ''}"

    def prepare(self, request: Request) -> Request:
        """Check a request, and return it.

        Raises:
            ValueError: If the prompt, or the words of the style, are too long for the text encoder and not to be cut.
        """
        if not (request.truncate or self.settings.arguments.get("truncate")):
            words = [request.style.words] if isinstance(request.style, TextStyle) else []
            self.backbone.check_prompts([request.prompt, *words])
        return request

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw each request, equal ones once; the result does not depend on what else is in the batch.

        Raises:
            ValueError: As ``prepare``; nothing was drawn then.
        """
        different = list(dict.fromkeys(requests))
        drawn = dict(zip(different, super().sample(different), strict=True))
        return [drawn[request] for request in requests]

    def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Yield batches of requests of one kind; those that share a content path stand beside each other."""
        sharing: dict[tuple, list[int]] = {}
        for at, request in enumerate(requests):
            sharing.setdefault(self._place(request), []).append(at)

        def shape(job: list[int]) -> tuple[str, bool, int]:
            return _kind(requests[job[0]]), requests[job[0]].truncate, len(job)

        for _, alike in groupby(sorted(sharing.values(), key=shape), key=shape):
            jobs = list(alike)
            for part in self.slices(len(jobs)):
                yield [place for job in jobs[part] for place in job]

    def _place(self, request: Request) -> tuple[str, int, str, bool, Style | None]:
        """Return a key that requests with a common content path share; each style of words has a path of its own."""
        alone = self.noise == "independent" or _kind(request) == "text"
        return request.prompt, request.seed, _kind(request), request.truncate, request.style if alone else None

    def draw(self, batch: Sequence[Request]) -> list[Image.Image]:
        """Draw one batch of ``batches``; the ``info`` of an image that was drawn in a style holds its spectra."""
        places = list(dict.fromkeys(self._place(request) for request in batch))
        prompts, seeds = [prompt for prompt, *_ in places], [seed for _, seed, *_ in places]
        styles = [request.style for request in batch]
        shown = [self.style_features(style.path) for style in styles if isinstance(style, ImageStyle)]
        words = [style.words for style in styles if isinstance(style, TextStyle)]
        if words:
            # Text styles are drawn in the second half of the batch.
            prompts, seeds = prompts + words, seeds + seeds
        style = joined(shown) if shown else None
        hook = StyleBlending(style, self.weights, self.blend_after, self.correct_from, self.noise == "shared")
        styled = bool(shown or words)
        images = self.backbone(
            prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            callback_on_scale_end=[hook] if styled else [],
            **self.settings.arguments | ({"truncate": True} if batch[0].truncate else {}),
        ).images
        if styled:
            for image, record in zip(images, hook.records(), strict=True):
                image.info[SPECTRA] = record
        return images

    def style_features(self, path: str) -> PrincipalFeatures:
        """Return the principal features of a style image after ``blend_after`` scales, ``B = 1``; computed once.

        Raises:
            ValueError: If there is no such image.
        """
        image = load_image(path)
        key = content_hash(image)
        if key not in self._features:
            feature = self.backbone.encode_image([image], self.blend_after, **self.size)
            self._features[key] = principal_features(feature, self.weights)
        return self._features[key]


def _kind(request: Request) -> str:
    if request.style is None:
        return "plain"
    return "text" if isinstance(request.style, TextStyle) else "image"
