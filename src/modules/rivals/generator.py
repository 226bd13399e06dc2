"""Draws prompts with the concepts of a rival method: ``a <rex> next to a <mittens>``, with stock calls."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from src.data.banks import ConceptFile, refuse_other_method
from src.data.identity import warn_of_another
from src.data.known_words import KnownWords
from src.data.layout import Region, regions_of
from src.data.mentions import check_name, mentioned, parse_prompt
from src.data.prompts import TEMPLATES, concept_positions, tokenize
from src.data.ranges import BatchSize, Sampling
from src.data.request import Identity, Request
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.trajectory import TracedGenerator
from src.modules.generator import usable_device
from src.modules.rivals.concept import Changes, RivalConcept, changed_weights, read, weighted

Names = tuple[str, ...]
"""Concepts that a prompt mentions, in order."""


class Mentioned(NamedTuple):
    """A request that is ready to be drawn: its plain prompt, its concepts, tokens and region of each, and the seed."""

    plain: str
    names: Names
    positions: list[list[int]]
    seed: int
    regions: Sequence[Region | None] = ()


class RivalGenerator(TracedGenerator[Mentioned]):
    """Draws prompts that may mention concepts which one rival method learnt.

    Concepts of one image act together by ``combined``: here the changes of their weights are added.

    Args:
        backbone: The stock model.
        banks: Name of a concept to what was learnt of it, or to its file.
        sampling: As of LaTexBlend's ``ConceptGenerator``.
        batch_size: Number of images drawn at a time; it does not change an image beyond rounding.
        device: Torch device to draw on, or ``auto``; None leaves the backbone where it is.

    Raises:
        ValueError: If a concept is of another method or backbone, or torch cannot use the device.
    """

    takes_pictures = True
    method: ClassVar[str]
    """Method that learnt the concepts."""

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        for name in banks or {}:
            check_name(name, "the name of a bank")
        if device is not None:
            backbone.to(usable_device(device, "method.device"))
        self.backbone, self.sampling = backbone, backbone.settled(sampling)
        backbone.token_ids([self.sampling["negative_prompt"]])
        self.concepts = {name: self.loaded(name, bank) for name, bank in (banks or {}).items()}
        self._combined: dict[Names, Changes] = {}

    def loaded(self, name: str, bank: RivalConcept | ConceptFile) -> RivalConcept:
        """Read a concept, and make sure that it fits method and backbone.

        Raises:
            RefusedFileError: If it does not, or the file cannot be read.
        """
        concept = bank if isinstance(bank, RivalConcept) else RivalConcept.load(bank)
        concept.check(self.backbone, self.method)
        warn_of_another(concept.metadata, self.backbone.content_hash, self.backbone.name, f"the concept {name}")
        return concept

    def chosen(self, names: Sequence[str]) -> dict[str, RivalConcept]:
        """Return the concepts of these names, as they act where all of them are mentioned."""
        return {name: self.concepts[name] for name in names}

    @classmethod
    def first_look(cls, settings: Mapping[str, Any]) -> None:
        """Refuse files of another method before the backbone is read.

        Args:
            settings: Arguments of the constructor.

        Raises:
            RefusedFileError: If there is one.
        """
        for bank in (settings.get("banks") or {}).values():
            refuse_other_method(bank, cls.method)

    def combined(self, names: Names) -> Changes:
        """Compute what is added to the weights while these concepts are drawn together, in sorted order."""
        total: dict[str, Tensor] = {}
        for concept in self.chosen(names).values():
            for layer, change in concept.changes.items():
                total[layer] = total[layer] + change if layer in total else change
        return total

    def changes(self, names: Iterable[str]) -> Changes:
        """Return ``combined`` of the distinct names, computed once."""
        key = tuple(sorted(set(names)))
        if key not in self._combined:
            self._combined[key] = self.combined(key) if key else {}
        return self._combined[key]

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside text and seed; with ``prompt``, only the concepts that it mentions."""
        names = [name for name in self.concepts if prompt is None or name in mentioned(prompt)]
        return {
            "method": type(self).__name__,
            "backbone": self.backbone.identity,
            "settings": repr(sorted({**self.sampling, **self.options()}.items())),
            **{f"bank.{name}": one.metadata.get("sha256", "") for name, one in self.chosen(names).items()},
        }

    def options(self) -> dict[str, Any]:
        """Return the method's own settings that change an image."""
        return {}

    @property
    def known_words(self) -> KnownWords | None:
        """The words that the backbone was taught, where it carries their list."""
        return self.backbone.known_words

    @property
    def _nouns(self) -> dict[str, str]:
        return {name: concept.class_noun for name, concept in self.concepts.items()}

    def plain(self, request: Request) -> str:
        """Return the prompt with class nouns for concepts."""
        return parse_prompt(request.prompt, self._nouns).plain

    def prepare(self, request: Request) -> Mentioned:
        """Find the concepts of a request's prompt.

        Raises:
            ValueError: If the request asks for a style, for an unknown concept, for a strength, or for more text than
                the text encoder takes.
        """
        if request.style is not None:
            raise ValueError("a style was given, but this method draws concepts, not styles: add method=style_svd")
        tokenizer = self.backbone.tokenizers[0]
        marked, rows = concept_positions(tokenizer, request.prompt, self._nouns, self.backbone.as_read)
        tokenize(tokenizer, [marked.plain])
        if odd := [mention.name for mention in marked.mentions if mention.strength != 1]:
            raise ValueError(f"{type(self).__name__} knows no strength of a mention; write <{odd[0]}>")
        names = tuple(name for name, _ in rows)
        positions = [positions for _, positions in rows]
        return Mentioned(marked.plain, names, positions, request.seed, regions_of(request.layout, names))

    def batches(self, requests: Sequence[Request]) -> Iterable[Sequence[int]]:
        """Draw together what mentions the same concepts in the same order: weights are changed once for all of it."""
        groups: dict[Names, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(self.prepare(request).names, []).append(at)
        return [places[at] for places in groups.values() for at in self.slices(len(places))]

    def draw(self, batch: Sequence[Mentioned]) -> list[Image.Image]:
        """Draw one batch with a stock call; without concepts it is the stock pipeline's own."""
        prompts, seeds = [one.plain for one in batch], [one.seed for one in batch]
        if not batch[0].names:
            return self.backbone.draw(prompts, seeds, self.sampling)
        with self.acting(batch[0].names):
            return self.backbone.draw(prompts, seeds, self.sampling, self.read(batch))

    def acting(self, names: Names) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which these concepts change the weights."""
        return weighted(self.backbone, changed_weights(self.backbone, self.changes(names)))

    def read(self, batch: Sequence[Mentioned], names: Names | None = None) -> Text:
        """Encode the prompts of a batch, all of which mention the same concepts.

        Args:
            batch: The prompts.
            names: The concepts that act; the others are read as their plain nouns. None for all.
        """
        ids = self.backbone.token_ids([one.plain for one in batch])
        mentions = zip(*(one.positions for one in batch), strict=True)
        placed = zip(batch[0].names, (torch.tensor(each) for each in mentions), strict=True)
        concepts = self.chosen(batch[0].names)
        acting = [(concepts[name], at) for name, at in placed if names is None or name in names]
        return read(self.backbone, ids, [concept for concept, _ in acting], [at for _, at in acting])

    def phrase_states(self, name: str) -> Tensor:
        """Compute the states of a concept's own tokens in every template, ``(T, C)``, as cross-attention reads them."""
        mentioned = [self.prepare(Request(template.replace("{}", f"a <{name}>"), 0)) for template in TEMPLATES]
        ids = self.backbone.token_ids([one.plain for one in mentioned])
        positions = torch.tensor([one.positions[0] for one in mentioned])
        states = read(self.backbone, ids, [self.concepts[name]], [positions]).prompt_embeds
        rows = torch.arange(len(positions))[:, None].expand_as(positions)
        return self.backbone.read_text(states)[rows, positions].flatten(0, 1)
