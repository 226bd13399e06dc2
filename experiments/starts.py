"""Every feature of a language model from its own best start, compared with the common one and with one another.

A start is a learning rate and, where blocks are summed, an initial gain. Each feature's best is chosen with a seed that
nothing else uses, by the denoising loss of training captions that the adapter has not seen. Then every feature is
trained from its own start and from the common one, with other seeds: first the block-wise score and the plain sum, then
all six. The frozen models are the same for all. Every training is written to the results as soon as it is done and not
computed again.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.four_quadrants.study import BASELINE, DRAWING, FEATURES, SCORE, base_model, trained
from src.data.files import write_text
from src.data.world.quadrants import QuadrantData, Quadrants, colors_of, read, split, told
from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.statistics.paired import paired_difference
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffPipeline
from src.modules.llmdiff.learner import LLMDiff
from src.modules.llmdiff.options import AdapterOptions
from src.modules.training.diffusion import step_generator
from src.modules.training.learner import LearnerModule

SEARCH_SEED = 100
"""The seed that chooses starts; it also made the frozen models."""
TWO = (BASELINE, "sum")
"""The features that are sums over blocks, and have a gain."""
SMALL = 4
"""Side of the images: a quarter of the pixels of ``four_quadrants``, so the base model is smaller too."""
SEARCH_CAPTIONS = 240
"""Orders of colours that a search trains on; the other 60 of 300 choose."""
FEWEST = 3
"""Seeds without which nothing is compared."""
QUARTERS = 4


@dataclass(frozen=True)
class Start:
    """What is read off the language model, and where training begins; ``gain`` is None without a sum over blocks."""

    features: str
    rate: float
    gain: float | None

    def __str__(self) -> str:
        """Its name in files of results."""
        return f"{self.features}, lr {self.rate:g}" + ("" if self.gain is None else f", gain {self.gain:g}")


@dataclass(frozen=True)
class Task:
    """Captions of four quadrants for one language model, and how adapters to it are trained.

    Attributes:
        folder: Where results go.
        encoder: Makes the encoder of a feature.
        common_gain: Gain of the common start, the default: 1 / sqrt(blocks).
        common_rate: Learning rate of the common start.
        rates: Learning rates that a search tries.
        gains: Gains that a search tries at the best rate.
        seeds_of_all: Seeds of adapters that have all features.
        seeds_of_two: Seeds of adapters that have the score and the plain sum.
        marks: Steps after which pictures are drawn; the last is the length of a training.
        forms: Ways in which captions tell the quadrants, see ``told``.
        draws: Noised images of each caption in a validation loss.
        batch_size: Captions in a step.
        beside_common: Whether each feature is trained from the common start, too.
    """

    folder: Path
    encoder: Callable[[str], LLMEncoder]
    common_gain: float
    common_rate: float = 3e-3
    rates: tuple[float, ...] = (3e-3, 1e-2)
    gains: tuple[float, ...] = (0.1, 0.5, 1.0)
    seeds_of_all: tuple[int, ...] = (3, 4, 5)
    seeds_of_two: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    marks: tuple[int, ...] = (100, 150, 200, 250, 300)
    forms: tuple[str, ...] = ("listed",)
    draws: int = 8
    batch_size: int = 16
    beside_common: bool = True

    def common(self, features: str) -> Start:
        """The start that all features share."""
        return Start(features, self.common_rate, self.common_gain if features in TWO else None)

    def tried(self, features: str, losses: Mapping[str, float]) -> list[Start]:
        """The starts of one feature that a search tries: every rate, and at the best of them every gain.

        Args:
            features: The feature.
            losses: Validation losses so far, by start.
        """
        first = [Start(features, rate, self.common(features).gain) for rate in self.rates]
        if features not in TWO or any(str(start) not in losses for start in first):
            return first
        rate = min(first, key=lambda start: losses[str(start)]).rate
        return list(dict.fromkeys([*first, *(Start(features, rate, gain) for gain in self.gains)]))

    def best(self, losses: Mapping[str, float], features: Sequence[str] = FEATURES) -> dict[str, Start]:
        """The start of each feature with the lowest validation loss."""
        return {one: min(self.tried(one, losses), key=lambda start: losses[str(start)]) for one in features}

    def wanted(self, starts: Mapping[str, Start]) -> list[Start]:
        """The trainings of a seed; a start that is a feature's best and the common one is trained once."""
        return list(dict.fromkeys(self._arms(starts).values()))

    def _arms(self, starts: Mapping[str, Start]) -> dict[str, Start]:
        commons = {f"{one}, common start": self.common(one) for one in starts}
        return {**starts, **(commons if self.beside_common else {})}

    @cached_property
    def backbone(self) -> UNetBackbone:
        """The frozen base model, which is trained if no earlier call of any task left it."""
        backbone = UNetBackbone.from_pretrained(str(made("feature_starts/sd", _write_base)))
        backbone.pipeline.set_progress_bar_config(disable=True)
        return backbone

    def adapter(
        self, start: Start, seed: int, num_captions: int | None = None, callbacks: Sequence[L.Callback] = ()
    ) -> LLMDiff:
        """Train an adapter from a start, on so many orders of colours."""
        options = AdapterOptions(phi_bias="mean", gain_init=start.gain)
        learner = LLMDiff(self.backbone, self.encoder(start.features), "not exported", options, seed=seed)
        data = QuadrantData(self.batch_size, seed, num_captions, SMALL, self.forms)
        trained(learner, data, self.marks[-1], 50, callbacks=callbacks, lr=start.rate, fused=True)
        return learner

    @torch.no_grad()
    def validation_loss(self, learner: LLMDiff) -> float:
        """Mean denoising error of the captions that a search leaves out, the same noise for every adapter."""
        data = Quadrants(split()[0][SEARCH_CAPTIONS:], SMALL, self.forms)
        learner.eval()
        errors = []
        for first in range(0, len(data), NUM_LEFT_OUT):
            here = slice(first, first + NUM_LEFT_OUT)
            captions = data.captions[here] * self.draws
            generators = [step_generator(SEARCH_SEED, first * self.draws + at, rank=-1) for at in range(len(captions))]
            errors.append(learner.denoising_errors(data.images[here].repeat(self.draws, 1, 1, 1), captions, generators))
        return float(torch.cat(errors).mean())

    def search(self, features: Sequence[str]) -> dict[str, float]:
        """The validation loss of every start that is tried; what is missing is trained."""
        path = self.folder / "search.json"
        found = _kept(path)
        while missing := [start for one in features for start in self.tried(one, found) if str(start) not in found]:
            found[str(missing[0])] = self.validation_loss(self.adapter(missing[0], SEARCH_SEED, SEARCH_CAPTIONS))
            write_text(path, json.dumps(found, indent=0) + "\n")
            print(f"search, {missing[0]}: {found[str(missing[0])]:.5f}", flush=True)
        return found

    def measure(self, seed: int, starts: Mapping[str, Start]) -> None:
        """What is missing of one seed: each feature from its own best start and from the common one."""
        path = self.path(seed)
        found = _kept(path)
        for start in [start for start in self.wanted(starts) if str(start) not in found]:
            curve = Curve(self)
            self.adapter(start, seed, callbacks=[curve])
            found[str(start)] = curve.right
            write_text(path, json.dumps(found) + "\n")
            whole = [sum(number == QUARTERS for number in right) for right in curve.right.values()]
            print(f"seed {seed}, {start}: {' '.join(map(str, whole))}", flush=True)

    def path(self, seed: int) -> Path:
        """The file of one seed's results."""
        return self.folder / f"seed_{seed}.json"

    def right(self, learner: LLMDiff) -> list[int]:
        """Of every held-out caption, form by form: how many quadrants are right with the adapter as it is now?"""
        draw = LLMDiffPipeline(learner.backbone.pipeline, learner.adapter.eval(), learner.encoder)
        listed, found = split()[1], []
        for form in self.forms:
            generators = [torch.Generator().manual_seed(seed) for seed in range(len(listed))]
            images = draw(told(listed, form), generator=generators, height=8, width=8, **DRAWING).images
            for asked, seen in zip(map(colors_of, listed), read(images), strict=True):
                found.append(sum(one == other for one, other in zip(asked, seen, strict=True)))
        return found

    def compared(self, starts: Mapping[str, Start], losses: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Means over captions and seeds, and paired differences from the block-wise score at its own best start.

        Args:
            starts: Each feature's best; all seeds count that have all of these features.
            losses: Validation losses of the search; None before there is one.
        """
        arms = self._arms(starts)
        kept = {seed: _kept(self.path(seed)) for seed in self.seeds_of_two}
        seeds = {seed: found for seed, found in kept.items() if set(found) >= {str(start) for start in arms.values()}}
        values = {arm: self._scores([found[str(start)] for found in seeds.values()]) for arm, start in arms.items()}
        number = len(split()[1])
        groups = [[seed for seed in seeds for _ in range(number)], [*range(number)] * len(seeds)]
        baseline = values[BASELINE]
        differences = {
            f"{arm} {name}": {"interval": paired_difference(each, baseline[name], groups, 0).as_dict()}
            for arm, of in values.items()
            for name, each in of.items()
            if arm != BASELINE
        }
        means: dict[str, dict[str, Any]] = {}
        for arm, start in arms.items():
            told_of = {"rate": start.rate, "gain": start.gain, "loss": losses[str(start)] if losses else None}
            intervals = {name: bootstrap_mean(each, groups).as_dict() for name, each in values[arm].items()}
            means[arm] = intervals | {key: one for key, one in told_of.items() if one is not None}
        return {"baseline": BASELINE, "seeds": list(seeds), "means": means, "differences": differences}

    def _scores(self, curves: Sequence[Mapping[str, Sequence[int | bool]]]) -> dict[str, list[float]]:
        """By score, of every order of colours of every seed: right after each mark, after the last, and on the way.

        Where there are several forms, all of these are means over them, and each form has scores of its own.
        """
        forms = [self._of_form(curves, at) for at in range(len(self.forms))]
        scores = {name: _means([form[name] for form in forms]) for name in forms[0]}
        if len(forms) > 1:
            told_apart = zip(self.forms, forms, strict=True)
            scores |= {f"{name}_{form}": of[name] for form, of in told_apart for name in (SCORE, "quadrants")}
            for name in (SCORE, "quadrants"):
                scores[f"{name}_in_context"] = _means([of[name] for of in forms[1:]])
        return scores

    def _of_form(self, curves: Sequence[Mapping[str, Sequence[int | bool]]], form: int) -> dict[str, list[float]]:
        number = len(split()[1])
        here = slice(form * number, (form + 1) * number)
        marks = {mark: [one for curve in curves for one in curve[str(mark)][here]] for mark in self.marks}
        scores = {f"right_{mark}": [float(_whole(one)) for one in found] for mark, found in marks.items()}
        on_the_way = _means(list(scores.values()))
        scores |= {SCORE: scores[f"right_{self.marks[-1]}"], "on_the_way": on_the_way}
        if not any(isinstance(one, bool) for one in marks[self.marks[-1]]):
            scores["quadrants"] = [one / QUARTERS for one in marks[self.marks[-1]]]
        return scores

    def run_from(
        self, starts: Mapping[str, Start], name: str, seeds: Sequence[int], losses: Mapping[str, float] | None = None
    ) -> None:
        """Measure features from given starts, and compare as soon as there are seeds enough.

        Args:
            starts: By feature, the block-wise score among them.
            name: Of the file of results.
            seeds: Seeds of adapters.
            losses: Validation losses of the search; None to leave them out.
        """
        self._begin()
        for done, seed in enumerate(seeds, 1):
            self.measure(seed, starts)
            if done >= FEWEST:
                write_text(self.folder / f"{name}.json", json.dumps(self.compared(starts, losses), indent=2) + "\n")

    def _begin(self) -> None:
        self.folder.mkdir(exist_ok=True)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    def run(self) -> None:
        """Search, measure and compare, first the two that differ in the subtraction alone, then all features."""
        self._begin()
        for name, features, seeds in (
            ("subtraction", TWO, self.seeds_of_two),
            ("comparison", FEATURES, self.seeds_of_all),
        ):
            losses = self.search(features)
            self.run_from(self.best(losses, features), name, seeds, losses)


NUM_LEFT_OUT = len(split()[0]) - SEARCH_CAPTIONS


class Curve(L.Callback):
    """Draws every held-out caption after each of a task's marks, with the averaged weights."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.right: dict[str, list[int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Draw, and leave the training as it was."""
        if trainer.global_step in self.task.marks:
            self.right[str(trainer.global_step)] = self._drawn(module)

    def _drawn(self, module: LearnerModule) -> list[int]:
        learner = module.learner
        assert isinstance(learner, LLMDiff)
        with module.averaged_weights(), torch.no_grad():
            right = self.task.right(learner)
        learner.adapter.train()
        return right


def made(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of a frozen model in the cache, which is made if it is not there."""
    folder = Path(".cache") / name
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        make(part)
        part.rename(folder)
    return folder


def _write_base(folder: Path) -> None:
    base_model(folder, SEARCH_SEED, SMALL, (64,)).pipeline.save_pretrained(folder)


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _whole(right: int | bool) -> bool:
    """Results of before say whether all four are right, later ones how many."""
    return right if isinstance(right, bool) else right == QUARTERS


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(each) / len(values) for each in zip(*values, strict=True)]
