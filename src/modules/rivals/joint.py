"""Several subjects learnt together: each has words of its own, and all share what is changed of the model.

One training makes one file, which stands for each of its subjects. A new combination is a new training.
"""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from src.data.banks import ConceptFile
from src.data.combination import CombinationData, Others, checked
from src.data.ranges import BatchSize, Sampling
from src.data.request import Identity, Request
from src.data.subject import ConceptData
from src.modules.backbones.base import Backbone
from src.modules.latexblend.flows import Subject
from src.modules.rivals.concept import Changes, RivalConcept
from src.modules.rivals.generator import Mentioned, Names, RivalGenerator
from src.modules.rivals.learner import Examples, RivalLearner

RARE = ("ktn", "pll", "ucd", "sks", "zwx", "vqk", "hgj", "bfq")
"""Rare words, another one for each subject, whose embeddings V* starts from or keeps."""

Combined = RivalConcept | ConceptFile | list[ConceptFile]
"""What was learnt of a combination, its file, or the files of several combinations that a subject is part of."""


class JointGenerator(RivalGenerator):
    """Draws prompts with subjects that were learnt together.

    Args:
        backbone: The stock model.
        banks: Name of a subject to its combination; the same file may stand for several names. Where there are several
            files, the smallest combination that holds all subjects of a prompt draws it.
        sampling: As of ``RivalGenerator``.
        batch_size: As there.
        device: As there.

    Raises:
        ValueError: As there, or if a file does not hold the subject that it stands for.
    """

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, Combined] | None = None,
        sampling: Sampling | None = None,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        self._read: dict[str, RivalConcept] = {}
        # Name of a subject, then sha256 of a file, to what the file holds of it.
        self.combinations: dict[str, dict[str, RivalConcept]] = {}
        super().__init__(backbone, banks, sampling, batch_size, device)  # type: ignore[arg-type]

    def loaded(self, name: str, bank: Any) -> RivalConcept:
        """Read every combination that a subject is part of, and return the subject as the first holds it."""
        found = self.combinations[name] = {}
        for one in bank if isinstance(bank, list) else [bank]:
            key = one if isinstance(one, str) else ""
            if key not in self._read:
                self._read[key] = super().loaded(name, one)
            whole = self._read[key]
            found[whole.metadata.get("sha256", "")] = whole.of(name)
        return next(iter(found.values()))

    def chosen(self, names: Sequence[str]) -> dict[str, RivalConcept]:
        """Return what draws these subjects together.

        Raises:
            ValueError: If no file holds them all.
        """
        held = [set(self.combinations[name]) for name in names]
        together = set.intersection(*held) if held else set()
        if names and not together:
            raise ValueError(
                f"{' and '.join(sorted(set(names)))} were not learnt together, as {self.method} needs; train them with "
                "data=combination, and give the file of that training for each of them"
            )
        if not names:
            return {}
        file = min(together, key=lambda one: (len(self.combinations[names[0]][one].subjects), one))
        return {name: self.combinations[name][file] for name in names}

    def combined(self, names: Names) -> Changes:
        """Return the changes that the subjects share."""
        return self.chosen(names)[names[0]].changes

    def prepare(self, request: Request) -> Mentioned:
        """Find the subjects of a request's prompt.

        Raises:
            ValueError: As of ``RivalGenerator``, or if they were not learnt together.
        """
        mentioned = super().prepare(request)
        self.chosen(mentioned.names)
        return mentioned

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on; without a prompt, all files."""
        if prompt is not None:
            return super().identity(prompt)
        files = {f"bank.{name}": " ".join(sorted(held)) for name, held in self.combinations.items()}
        return {**super().identity(""), **files}


class Words(RivalLearner):
    """Learns the words of a further subject; the weights are those of the combination."""

    method = "words"

    def learnt(self) -> dict[str, Tensor]:
        """Return V*."""
        return self.learnt_tokens()


class JointLearner(RivalLearner):
    """Learns several subjects in one training: samples take turns, each with the words of its own subject.

    To be put before a learner of one subject in the bases of a class, whose constructor sets ``subjects`` first. The
    further subjects get rare words of ``RARE``, and class images of their own.
    """

    joint: ClassVar[bool] = True
    draws: ClassVar[type[RivalGenerator]] = JointGenerator
    incidental: ClassVar[tuple[str, ...]] = (*RivalLearner.incidental, "others")
    subjects: list[Subject]
    """All subjects, the first one first."""

    def add_weights(self) -> None:
        """Make the shared weights, and the words of the further subjects."""
        super().add_weights()
        rare = [word for word in RARE if word != self.initializer]
        settings = (self.cache_dir, self.export_path, self.prior_loss_weight)
        self.others = nn.ModuleList(
            Words(self.backbone, subject, *settings, word, seed=self.seed)
            for subject, word in zip(self.subjects[1:], rare, strict=False)
        )
        for tokens in self.others.parameters():
            tokens.requires_grad_(self.tokens[0].requires_grad)

    @property
    def members(self) -> Sequence[RivalLearner]:
        """What learns the words of each subject."""
        return [self, *self.others]  # type: ignore[list-item]

    def prepare(
        self, data: ConceptData, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Draw the class images of every subject with the stock model, and encode every view, once."""
        each = data.each if isinstance(data, CombinationData) else [data]
        super().prepare(each[0], device, rank, world_size, num_steps)
        with self.stock():
            for other, own in zip(self.members[1:], each[1:], strict=True):
                other.prepare(own, device, rank, world_size, num_steps)

    def photos(self, index: Tensor, generators: list[Generator]) -> Examples:
        """Return a view for each sample, of the subject whose turn it is."""
        return reduce(Examples.joined, map(self.photo, index.tolist(), generators))

    def photo(self, at: int, generator: Generator) -> Examples:
        """Return one view."""
        member, view = self._turn(at)
        return RivalLearner.photos(member, view, [generator])

    def class_photos(self, index: Tensor) -> Examples:
        """Return an image of the same class as each view."""
        turns = [self._turn(at) for at in index.tolist()]
        return reduce(Examples.joined, [RivalLearner.class_photos(member, view) for member, view in turns])

    def _turn(self, at: int) -> tuple[RivalLearner, Tensor]:
        """Whose turn it is, and the index of its view, ``(1,)``."""
        view, member = divmod(at, len(self.members))
        return self.members[member], torch.tensor([view])

    def learnt_tokens(self) -> dict[str, Tensor]:
        """Return the words of every subject, ``token.<name>.<i>``."""
        return {
            f"token.{member.subject.concept}.{index}": tokens
            for member in self.members
            for index, tokens in enumerate(member.tokens)
        }

    def _metadata(self) -> dict[str, str]:
        told = {one.concept: {"class_noun": one.class_noun, "references": one.references} for one in self.subjects}
        return {**super()._metadata(), "subjects": json.dumps(told)}


def together(subject: Subject, others: Others | None) -> list[Subject]:
    """Return all subjects of a combination.

    Args:
        subject: The first.
        others: The further ones, as of ``CombinationData``.

    Raises:
        ValueError: If one has the name of another, lacks its noun or its photos, or there are too many.
    """
    if subject.concept in (others or {}):
        raise ValueError(
            f"data.others.{subject.concept} has the name of the first subject, concept={subject.concept}; "
            "give one of them another name"
        )
    further = checked(others or {}).items()
    if len(further) >= len(RARE):
        raise ValueError(f"data.others has {len(further)} subjects; {len(RARE)} can be learnt together, first included")
    return [subject, *(Subject(str(one["class_noun"]), name, str(one["instance_dir"])) for name, one in further)]
