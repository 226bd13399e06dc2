"""LaTexBlend's inference: blend any number of concepts into one image (Eq. 10) with a stock pipeline."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from src.data.banks import BankFile
from src.data.identity import warn_of_another
from src.data.known_words import KnownWords
from src.data.layout import Region, bounding_box, regions_of
from src.data.mentions import check_name, mentioned, parse_prompt
from src.data.ranges import BatchSize, BelowOne, Sampling, Share1
from src.data.request import Identity, Request
from src.modules.backbones.base import Backbone
from src.modules.backbones.denoising import denoising_errors
from src.modules.backbones.gligen import Grounded, grounded, is_grounded
from src.modules.backbones.trajectory import TracedGenerator
from src.modules.generator import usable_device
from src.modules.latexblend.attention import refuse_normed
from src.modules.latexblend.bank import ConceptBank, ProjectionCache, cached_projections, concept_offsets, replace_rows
from src.modules.latexblend.guidance import BlendingGuidance
from src.modules.latexblend.joint import joint_blended, refuse_what_reads_attention
from src.modules.latexblend.rectification import Rectification


class Placement(NamedTuple):
    """A bank, the S token positions of one mention of its concept, and the strength that the mention asks for."""

    bank: ConceptBank
    positions: list[int]
    strength: float = 1.0


class Placed(NamedTuple):
    """A request that is ready to be drawn: its prompt with class nouns for concepts, their places, and the seed."""

    plain: str
    concepts: list[Placement]
    regions: list[Region | None]
    seed: int

    @property
    def objects(self) -> list[Grounded]:
        """The nouns that the layout puts into boxes, for a UNet that reads these."""
        placed = zip(self.concepts, self.regions, strict=True)
        return [Grounded(bank.class_noun, bounding_box(region)) for (bank, *_), region in placed if region is not None]


class BlendedText:
    """A ``Transform`` that writes concepts into the conditional rows of a batch, ``Blend(h_b, h_c1, ..., h_cN)``.

    A concept of strength s moves rows by s times the way from the plain prompt's to its own, ``h_b + s (h_c - h_b)``:
    exactly the plain prompt's at 0 and the concept's at 1.

    Args:
        placements: The concepts that each prompt of the batch mentions, in the pipeline's order.
        bind: Whether V* gets the key of the noun, as in the reference code, so that both are attended to alike.
        keep_context: Whether the banks hold ``concept_offsets``, which are added to the prompt's own rows.
    """

    def __init__(
        self, placements: Sequence[Sequence[Placement]], bind: bool = False, keep_context: bool = False
    ) -> None:
        self.placements, self.bind, self.keep_context = placements, bind, keep_context

    def __call__(self, name: str, hidden: Tensor, projected: Tensor) -> Tensor:
        """Blend keys or values ``(rows, L, D)``; conditional rows are the last ones, as in every stock pipeline.

        Raises:
            ValueError: If the batch is neither the prompts alone nor, for guidance, twice as many.
        """
        number, rows = len(self.placements), projected.shape[0]
        if rows not in (number, 2 * number):
            raise ValueError(f"concepts were placed for {number} prompts, but the denoiser got {rows} rows of text")
        blended = projected.clone()  # (rows, L, D)
        for row, placements in enumerate(self.placements, start=rows - number):
            for bank, positions, strength in placements:
                own = bank.rows[name].to(blended)  # A denoiser that waits elsewhere left its banks there.
                concept = own + blended[row, positions] if self.keep_context else own
                whole = replace_rows(blended[row], concept, positions)
                if self.bind and name.startswith("k."):
                    whole[positions[0]] = whole[positions[-1]]
                blended[row] = torch.lerp(blended[row], whole, strength)
        return blended


@contextlib.contextmanager
def blended(
    denoiser: nn.Module,
    placements: Sequence[Sequence[Placement]],
    acts_below: float | None = None,
    bind: bool = False,
    keep_context: bool = False,
    acts_from: float = 0.0,
) -> Iterator[None]:
    """While active, blend concepts into the text that ``denoiser`` sees; afterwards it is bit for bit what it was.

    Keys and values of text do not depend on the timestep, so each layer computes them once per call of the pipeline.

    Args:
        denoiser: The UNet or transformer of any stock pipeline: text-to-image, img2img, inpainting, ControlNet.
        placements: Concepts and positions of every prompt in the batch.
        acts_below: Timestep below which concepts act; None for all timesteps.
        bind: Whether V* gets the key of the noun, see ``BlendedText``.
        keep_context: Whether the banks hold offsets, see ``BlendedText``.
        acts_from: Lowest timestep at which concepts act.
    """
    plain, concepts = ProjectionCache(), ProjectionCache(BlendedText(placements, bind, keep_context))
    current = [concepts]

    def before_denoiser(module: nn.Module, args: tuple, kwargs: dict) -> None:
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        now = float(torch.as_tensor(timestep).flatten()[0])
        current[0] = concepts if acts_from <= now < (math.inf if acts_below is None else acts_below) else plain

    # Reading the timestep waits for the GPU, so it is read only if it matters.
    always = acts_below is None and acts_from <= 0
    handle = None if always else denoiser.register_forward_pre_hook(before_denoiser, with_kwargs=True)
    try:
        with cached_projections(denoiser, lambda: current[0]):
            yield
    finally:
        if handle is not None:
            handle.remove()


class ConceptGenerator(TracedGenerator[Placed]):
    """Draws prompts that may mention concepts, ``a <rex> next to a <mittens>``, each in its region if it has one.

    Args:
        backbone: The stock model.
        banks: Name of a concept to its bank, or to the path of the bank.
        sampling: ``num_inference_steps``, ``guidance_scale``, ``negative_prompt`` and ``resolution`` (the image side);
            the backbone's own values stand for missing ones and None, and an empty negative prompt is none.
        keep_context: Whether to add ``concept_offsets`` to the prompt's rows instead of replacing these, which is our
            extension; None for what suits the backbone.
        blending_start: Share of the noise schedule, however long it is, below which concepts act; 1 for all of it.
        blending_end: Share of the noise schedule below which concepts act no longer; 0 for never.
        rectification: How attention to concepts is rectified, or its settings; None for a layout's alone.
        blending_guidance: Guidance for many or similar concepts in one image, or its settings; None for no guidance.
        batch_size: Number of images drawn at a time; it does not change an image beyond rounding.
        device: Torch device to draw on, or ``auto``; None leaves the backbone where it is.

    Raises:
        ValueError: If a bank does not fit the backbone, the negative prompt is too long, ``blending_start`` is not in
            (0, 1], ``blending_end`` is not below it, the pipeline cannot be guided as asked, or torch cannot use the
            device.
    """

    takes_layouts = True
    takes_pictures = True

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, ConceptBank | BankFile] | None = None,
        sampling: Sampling | None = None,
        keep_context: bool | None = None,
        blending_start: Share1 = 1.0,
        rectification: Rectification | Mapping[str, Any] | None = None,
        blending_guidance: BlendingGuidance | Mapping[str, Any] | None = None,
        batch_size: BatchSize = 8,
        device: str | None = None,
        blending_end: BelowOne = 0.0,
    ) -> None:
        super().__init__(batch_size)
        for name in banks or {}:
            check_name(name, "the name of a bank")
        if not 0 < blending_start <= 1:
            raise ValueError(f"blending_start is {blending_start}; give a share of the noise schedule in (0, 1]")
        if not 0 <= blending_end < blending_start:
            raise ValueError(
                f"blending_end is {blending_end}, but noise falls from blending_start={blending_start} on; give a "
                "smaller share, or 0 to blend to the end"
            )
        if device is not None:
            backbone.to(usable_device(device, "method.device"))
        self.backbone, self.sampling = backbone, backbone.settled(sampling)
        backbone.token_ids([self.sampling["negative_prompt"]])  # Refused here, and not after the first batch.
        self.keep_context = backbone.sampling["keep_context"] if keep_context is None else keep_context
        given = rectification or {}
        self.rectification = Rectification(**given) if isinstance(given, Mapping) else given
        reads_scores = self.rectification.reads_scores
        if backbone.joint:
            refuse_what_reads_attention(self.keep_context, reads_scores, blending_guidance)
        elif self.rectification.isolate:
            raise ValueError(
                f"method.rectification.isolate=true, but in {backbone.name} no word reads another; leave it out"
            )
        refuse_normed(backbone.denoiser, rectification=reads_scores, blending_guidance=blending_guidance)
        widths = {name: linear.out_features for name, linear in backbone.text_layers().items()}
        self.banks = {}
        for name, bank in (banks or {}).items():
            loaded = bank if isinstance(bank, ConceptBank) else ConceptBank.load(bank)
            loaded.check(backbone.fingerprint, widths, backbone.name)
            warn_of_another(loaded.metadata, backbone.content_hash, backbone.name, f"the bank of {name}")
            loaded = loaded.to(backbone.device, backbone.dtype)
            self.banks[name] = concept_offsets(backbone, loaded) if self.keep_context else loaded
        self.blending_start, self.blending_end = blending_start, blending_end
        if isinstance(blending_guidance, Mapping):
            blending_guidance = BlendingGuidance(**blending_guidance)
        if blending_guidance:
            blending_guidance.check(backbone.pipeline)
        self.blending_guidance = blending_guidance

    def place(self, prompt: str) -> tuple[str, list[Placement]]:
        """Replace the concepts of a prompt by their nouns, and find their token positions.

        Raises:
            ValueError: As in ``concept_positions``, or if the prompt is too long or a bank has other tokens.
        """
        marked, rows = self.backbone.place(prompt, self._nouns)
        self.backbone.token_ids([marked.plain])
        placements = [
            Placement(self.banks[name], positions, mention.strength)
            for (name, positions), mention in zip(rows, marked.mentions, strict=True)
        ]
        for (name, positions), (bank, *_) in zip(rows, placements, strict=True):
            if len(positions) != bank.num_tokens:
                raise ValueError(
                    f"<{name}> takes {len(positions)} tokens here, but its bank has {bank.num_tokens}: it was learnt "
                    "with another tokenizer; learn it with this model"
                )
        return marked.plain, placements

    @property
    def _nouns(self) -> dict[str, str]:
        return {name: bank.class_noun for name, bank in self.banks.items()}

    def readable(self, prompt: str) -> str:
        """Cut words off the end of a prompt until the text encoder has room for it.

        Raises:
            ValueError: If a mention is unknown.
        """
        words, tokenizers = prompt.split(" "), self.backbone.tokenizers

        def fits(text: str) -> bool:
            plain = parse_prompt(text, self._nouns).plain
            return all(len(one(plain, verbose=False).input_ids) <= one.model_max_length for one in tokenizers)

        starts = (" ".join(words[:number]) for number in range(len(words), -1, -1))
        return next(start for start in starts if fits(start))

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside text and seed; with ``prompt``, only the banks that it mentions."""
        of_call, guidance = self.sampling, self.blending_guidance
        bind = self.rectification.bind
        drawn_with = (of_call["num_inference_steps"], of_call["guidance_scale"], self.blending_start, bind)
        banks = {f"bank.{name}": bank.metadata.get("sha256", "") for name, bank in self.banks.items()}
        if prompt is not None:
            banks = {f"bank.{name}": banks[f"bank.{name}"] for name in self.banks if name in mentioned(prompt)}
        return {
            "backbone": self.backbone.identity,
            "settings": " ".join(map(str, (*drawn_with, of_call["resolution"]))),
            "negative_prompt": of_call["negative_prompt"],
            **({"keep_context": "true"} if self.keep_context else {}),
            **({"blending_end": str(self.blending_end)} if self.blending_end else {}),
            **({"isolate": "true"} if self.rectification.isolate else {}),
            **({"rectification": str(self.rectification)} if self.rectification.reads_scores else {}),
            **({"blending_guidance": str(guidance)} if guidance and guidance.num_steps else {}),
            **banks,
        }

    @property
    def known_words(self) -> KnownWords | None:
        """The words that the backbone was taught, where it carries their list."""
        return self.backbone.known_words

    def plain(self, request: Request) -> str:
        """Return the prompt with class nouns for concepts."""
        return parse_prompt(request.prompt, self._nouns).plain

    def prepare(self, request: Request) -> Placed:
        """Place the concepts of a request's prompt.

        Raises:
            ValueError: If the request asks for a style, for an unknown concept, or for more text than the text encoder
                takes.
        """
        if request.style is not None:
            raise ValueError("a style was given, but this method draws concepts, not styles: add method=style_svd")
        prompt = self.readable(request.prompt) if request.truncate else request.prompt
        plain, concepts = self.place(prompt)
        if self.backbone.joint:
            refuse_what_reads_attention(layout=request.layout)
        refuse_normed(self.backbone.denoiser, layout=request.layout)
        names = [mention.name for mention in parse_prompt(prompt, self._nouns).mentions]
        return Placed(plain, concepts, regions_of(request.layout, names), request.seed)

    def batches(self, requests: Sequence[Request]) -> Iterable[Sequence[int]]:
        """Draw apart what has boxes for a UNet that reads them, which would read empty places for all the others."""
        if not is_grounded(self.backbone.denoiser):
            return super().batches(requests)
        free, boxed = ([at for at, one in enumerate(requests) if bool(one.layout) is has] for has in (False, True))
        return [places[at] for places in (free, boxed) for at in self.slices(len(places))]

    def draw(self, batch: Sequence[Placed]) -> list[Image.Image]:
        """Draw one batch with a stock call of the pipeline while concepts are blended in."""
        phrases = [[placement.positions for placement in one.concepts] for one in batch]
        regions = [one.regions for one in batch]
        grounding = grounded(self.backbone, [one.objects for one in batch])
        rectifying = self.rectification.acting(self.backbone, phrases, regions)
        guiding = (self.blending_guidance or BlendingGuidance()).acting(self.backbone, phrases, regions)
        with self._blended([one.concepts for one in batch]), grounding, rectifying, guiding as guidance:
            plain, seeds = [one.plain for one in batch], [one.seed for one in batch]
            return self.backbone.draw(plain, seeds, self.sampling, **guidance)

    def _blended(self, placements: Sequence[Sequence[Placement]]) -> contextlib.AbstractContextManager[None]:
        length, start = self.backbone.last_timestep, self.blending_start
        acts_below = start * length if start < 1 else None
        acts_from, bind = self.blending_end * length, self.rectification.bind
        if self.backbone.joint:
            isolate = self.backbone.joint if self.rectification.isolate else None
            return joint_blended(self.backbone.denoiser, placements, acts_below, acts_from, isolate)
        return blended(self.backbone.denoiser, placements, acts_below, bind, self.keep_context, acts_from)

    def denoising_errors(
        self, images: Sequence[Image.Image], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[float]:
        """Measure how well each image is denoised under its caption, concepts included; see ``denoising_errors``.

        Raises:
            ValueError: As in ``place``.
        """
        placed = [self.place(caption) for caption in captions]
        errors: list[float] = []
        for at in self.slices(len(images)):
            text = self.backbone.encode_text([plain for plain, _ in placed[at]])
            with self._blended([concepts for _, concepts in placed[at]]):
                errors += denoising_errors(self.backbone, images[at], text, seeds[at], self.sampling["resolution"])
        return errors
