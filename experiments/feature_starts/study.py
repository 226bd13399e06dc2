"""Every feature from its own best start: ``python -m experiments.feature_starts.study``.

A start is a learning rate and, where blocks are summed, an initial gain. Each feature's best is chosen with a seed that
nothing else uses, by the denoising loss of training captions that the adapter has not seen. Then every feature is
trained from its own start and from the common one, with other seeds: first the block-wise score and the plain sum, then
all six. The frozen models are the same for all. Every training is written to ``results`` as soon as it is done and not
computed again.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments.four_quadrants.study import (
    BASELINE,
    FEATURES,
    SCORE,
    all_four_right,
    base_model,
    language_model,
    trained,
)
from src.data.files import write_text
from src.data.world.quadrants import QuadrantData, paint, split
from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.statistics.paired import paired_difference
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.generator import LLMDiffPipeline
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.learner import LLMDiff
from src.modules.llmdiff.options import AdapterOptions, EncodingOptions
from src.modules.training.diffusion import step_generator
from src.modules.training.learner import LearnerModule

RESULTS = Path(__file__).parent / "results"
CACHE = Path(".cache") / "feature_starts"
"""Where the frozen models are kept for another call."""
SMALL = 4
"""Side of the images: a quarter of the pixels of ``four_quadrants``, so the base model is smaller too."""
SEARCH_SEED, SEEDS_OF_ALL, SEEDS_OF_TWO = 100, (3, 4, 5), (3, 4, 5, 6, 7, 8)
"""Seeds of adapters: one that chooses, those with all features, and those with the score and the plain sum."""
TWO = (BASELINE, "sum")
RATES, GAINS = (3e-3, 1e-2), (0.1, 0.5, 1.0)
SEARCH_CAPTIONS = 240
"""Captions that a search trains on; the other 60 of 300 choose."""
FEWEST = 3
"""Seeds without which nothing is compared."""
MARKS = (100, 150, 200, 250, 300)
"""Steps after which images are drawn; the last is the length of a training."""
DRAWS = 8
"""Noised images of each caption in a validation loss."""


@dataclass(frozen=True)
class Start:
    """What is read off the language model, and where training begins; ``gain`` is None without a sum over blocks."""

    features: str
    rate: float
    gain: float | None

    def __str__(self) -> str:
        """Its name in files of results."""
        return f"{self.features}, lr {self.rate:g}" + ("" if self.gain is None else f", gain {self.gain:g}")


def tried(features: str, losses: Mapping[str, float]) -> list[Start]:
    """The starts of one feature that a search tries: every rate, and at the best of them every gain.

    Args:
        features: The feature.
        losses: Validation losses so far, by start.
    """
    first = [Start(features, rate, common(features).gain) for rate in RATES]
    if features not in TWO or any(str(start) not in losses for start in first):
        return first
    rate = min(first, key=lambda start: losses[str(start)]).rate
    return list(dict.fromkeys([*first, *(Start(features, rate, gain) for gain in GAINS)]))


def common(features: str) -> Start:
    """The start of ``four_quadrants``: the default gain is 1 / sqrt(4 blocks)."""
    return Start(features, 3e-3, 0.5 if features in TWO else None)


def best(losses: Mapping[str, float], features: Sequence[str] = FEATURES) -> dict[str, Start]:
    """The start of each feature with the lowest validation loss."""
    return {one: min(tried(one, losses), key=lambda start: losses[str(start)]) for one in features}


class InMemory(EncodingCache):
    """The states of the few captions of this task, which no other process needs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.found: dict[str, Tensor] = {}

    def __contains__(self, key: object) -> bool:
        """Whether the states are there."""
        return key in self.found

    def read(self, key: str) -> Tensor | None:
        """The states, or None."""
        return self.found.get(key)

    def write(self, key: str, states: Tensor) -> None:
        """Keep the states."""
        self.found[key] = states


class Models:
    """The frozen models, and adapters between them."""

    def __init__(self) -> None:
        self.llm = LanguageModel.from_pretrained(str(_made("llm", lambda at: language_model(at, SEARCH_SEED))))
        self.backbone = UNetBackbone.from_pretrained(str(_made("sd", _write_base)))
        self.backbone.pipeline.set_progress_bar_config(disable=True)

    def adapter(
        self, start: Start, seed: int, num_captions: int | None = None, callbacks: Sequence[L.Callback] = ()
    ) -> LLMDiff:
        """Train an adapter from a start, on so many captions."""
        encoder = LLMEncoder(self.llm, EncodingOptions(features=start.features), InMemory(CACHE))
        options = AdapterOptions(phi_bias="mean", gain_init=start.gain)
        learner = LLMDiff(self.backbone, encoder, "not exported", options, seed=seed)
        data = QuadrantData(16, seed, num_captions, SMALL)
        trained(learner, data, MARKS[-1], 50, callbacks=callbacks, lr=start.rate, fused=True)
        return learner


def _write_base(folder: Path) -> None:
    base_model(folder, SEARCH_SEED, SMALL, (64,)).pipeline.save_pretrained(folder)


def _made(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of a model, which is trained if it is not there."""
    folder = CACHE / name
    if not folder.exists():
        part = CACHE / f"{name}.part"
        make(part)
        part.rename(folder)
    return folder


class Curve(L.Callback):
    """Draws every held-out caption after each of ``MARKS``, with the averaged weights."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Draw, and leave the training as it was."""
        if trainer.global_step in MARKS:
            self.right[str(trainer.global_step)] = drawn_right(module)


def drawn_right(module: LearnerModule) -> list[bool]:
    """Of every held-out caption: are all four quadrants right with the adapter as it is now?"""
    learner = module.learner
    assert isinstance(learner, LLMDiff)
    with module.averaged_weights(), torch.no_grad():
        right = all_four_right(LLMDiffPipeline(learner.backbone.pipeline, learner.adapter.eval(), learner.encoder))
    learner.adapter.train()
    return right


@torch.no_grad()
def validation_loss(learner: LLMDiff) -> float:
    """Mean denoising error of the training captions that a search leaves out, the same noise for every adapter."""
    captions = split()[0][SEARCH_CAPTIONS:] * DRAWS
    generators = [step_generator(SEARCH_SEED, at, rank=-1) for at in range(len(captions))]
    learner.eval()
    return float(learner.denoising_errors(paint(captions, SMALL), captions, generators).mean())


def search(features: Sequence[str]) -> dict[str, float]:
    """The validation loss of every start that is tried; what is missing is trained."""
    path = RESULTS / "search.json"
    found = _kept(path)
    models = None
    while missing := [start for one in features for start in tried(one, found) if str(start) not in found]:
        models = models or Models()
        found[str(missing[0])] = validation_loss(models.adapter(missing[0], SEARCH_SEED, SEARCH_CAPTIONS))
        write_text(path, json.dumps(found, indent=0) + "\n")
        print(f"search, {missing[0]}: {found[str(missing[0])]:.5f}", flush=True)
    return found


def measure(seed: int, starts: Mapping[str, Start]) -> None:
    """What is missing of one seed: each feature from its own best start and from the common one."""
    path = _path(seed)
    found = _kept(path)
    missing = [start for start in wanted(starts) if str(start) not in found]
    models = Models() if missing else None
    for start in missing:
        assert models is not None
        curve = Curve()
        models.adapter(start, seed, callbacks=[curve])
        found[str(start)] = curve.right
        write_text(path, json.dumps(found) + "\n")
        print(f"seed {seed}, {start}: {' '.join(str(sum(right)) for right in curve.right.values())}", flush=True)


def wanted(starts: Mapping[str, Start]) -> list[Start]:
    """The trainings of a seed; a start that is a feature's best and the common one is trained once."""
    return list(dict.fromkeys(start for one, own in starts.items() for start in (own, common(one))))


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _path(seed: int) -> Path:
    return RESULTS / f"seed_{seed}.json"


def compared(starts: Mapping[str, Start], losses: Mapping[str, float]) -> dict[str, Any]:
    """Means over captions and seeds, and paired differences from the block-wise score at its own best start.

    Args:
        starts: Each feature's best; all seeds count that have all of these features.
        losses: Validation losses of the search.
    """
    arms = {**starts, **{f"{one}, common start": common(one) for one in starts}}
    kept = {seed: _kept(_path(seed)) for seed in SEEDS_OF_TWO}
    seeds = {seed: found for seed, found in kept.items() if set(found) >= {str(start) for start in arms.values()}}
    values = {arm: _scores([found[str(start)] for found in seeds.values()]) for arm, start in arms.items()}
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
        told = {"rate": start.rate, "gain": start.gain, "loss": losses[str(start)]}
        intervals = {name: bootstrap_mean(each, groups).as_dict() for name, each in values[arm].items()}
        means[arm] = intervals | {key: one for key, one in told.items() if one is not None}
    return {"baseline": BASELINE, "seeds": list(seeds), "means": means, "differences": differences}


def _scores(curves: Sequence[Mapping[str, Sequence[bool]]]) -> dict[str, list[float]]:
    """By score, of every caption of every seed: right after each mark, after the last, and the mean over marks."""
    scores = {f"right_{mark}": [float(one) for curve in curves for one in curve[str(mark)]] for mark in MARKS}
    on_the_way = [sum(each) / len(MARKS) for each in zip(*scores.values(), strict=True)]
    return scores | {SCORE: scores[f"right_{MARKS[-1]}"], "on_the_way": on_the_way}


def main() -> None:
    """Search, measure and compare, first the two that differ in the subtraction alone, then all features."""
    RESULTS.mkdir(exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name, features, seeds in (("subtraction", TWO, SEEDS_OF_TWO), ("comparison", FEATURES, SEEDS_OF_ALL)):
        losses = search(features)
        starts = best(losses, features)
        for done, seed in enumerate(seeds, 1):
            measure(seed, starts)
            if done >= FEWEST:
                write_text(RESULTS / f"{name}.json", json.dumps(compared(starts, losses), indent=2) + "\n")


if __name__ == "__main__":
    main()
