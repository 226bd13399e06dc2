"""Does the block-wise score help with a language model of real text? ``python -m experiments.real_llm.study``.

SmolLM2 reads captions of four quadrants in five forms (``src.data.world.quadrants.told``): colours in reading order,
and sentences whose meaning needs context. One adapter learns all forms; each feature starts from its own best start
and from the common one (``Task``), and the score and the last hidden state are trained for ten times as long. Every
caption is encoded once, in all features; all adapters read the same states.
"""

import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.progress import track
from torch import Tensor

from experiments.four_quadrants.study import BASELINE, FEATURES
from experiments.starts import Task
from src.data.world.quadrants import FORMS, split, told
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions
from src.modules.llmdiff.states import read_each

FILE = str(OmegaConf.load(Path(__file__).parents[2] / "conf" / "llm" / "smollm2.yaml").path)
"""Where the head of ``conf/llm/smollm2.yaml`` says to put the file."""
LONG = (BASELINE, "last")
"""The features that are trained for longer: the published contrast."""
BATCH = 16
"""Captions that are encoded at a time."""


class Halved(EncodingCache):
    """States in half of the bytes: float16 holds what this model reads, and training computes in float32."""

    def save(self, value: Tensor, path: Path) -> None:
        """Write them in float16, which raises where they overflow."""
        super().save(value.half(), path)


def options(features: str) -> EncodingOptions:
    """How a feature is read."""
    return EncodingOptions(features=features)


def encoder(features: str, file: str) -> LLMEncoder:
    """Reads a feature from the states that all adapters share."""
    llm = language_model(file)
    shared = Halved(Path(".cache") / "real_llm", max_gigabytes=10.0)
    encode_all(llm, shared, texts())
    return LLMEncoder(llm, options(features), shared)


@cache
def language_model(file: str) -> LanguageModel:
    """The language model, whose weights are read when a caption has no states yet."""
    return LanguageModel.from_pretrained(file)


def texts() -> list[str]:
    """All captions in every form, and the empty one of dropped captions."""
    return [text for captions in split() for form in FORMS for text in told(captions, form)] + [""]


def encode_all(llm: LanguageModel, shared: EncodingCache, captions: list[str]) -> int:
    """Write the states of all features of every caption that lacks any, and free the model.

    Returns:
        The number of captions that were encoded.
    """
    chosen = [options(features) for features in FEATURES]
    keys = {text: [shared.key(llm.identity, each, text) for each in chosen] for text in captions}
    missing = [text for text in captions if not all(key in shared for key in keys[text])]
    ids = dict(zip(missing, llm.token_ids(missing, chosen[0]) if missing else [], strict=True))
    ordered = sorted(missing, key=lambda text: len(ids[text]))
    batches = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
    for batch in track(batches, f"encoding {len(missing)} captions", disable=not missing):
        longest = len(ids[batch[-1]])
        # Padding on the right is seen by no token of a caption.
        padded = torch.tensor([ids[text] + ids[text][-1:] * (longest - len(ids[text])) for text in batch])  # (B, L)
        for at, states in enumerate(read_each(llm.decoder, padded, chosen)):
            for text, row in zip(batch, states, strict=True):
                shared.write(keys[text][at], row[:, : len(ids[text])])
    if missing:
        llm.free()
    return len(missing)


def task(file: str) -> Task:
    """The task of this language model; its common gain is the default, 1 / sqrt(30 blocks)."""
    return Task(
        Path(__file__).parent / "results",
        partial(encoder, file=file),
        common_gain=language_model(file).num_blocks ** -0.5,
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        gains=(0.05, 0.5, 1.5),
        seeds_of_two=(3, 4, 5),
        marks=(300,),
        forms=tuple(FORMS),
        draws=2,
    )


def longer(here: Task) -> Task:
    """Ten times as long, from each feature's own best start alone: 300 steps teach no caption that needs context."""
    return replace(here, folder=here.folder / "long", marks=(1000, 2000, 3000), beside_common=False)


def main() -> None:
    """Run the study, or say why it is skipped."""
    file = sys.argv[1] if len(sys.argv) > 1 else FILE
    if not Path(file).exists():
        print(f"skipped: there is no {file}; the head of conf/llm/smollm2.yaml says how to get it")
        return
    here = task(file)
    here.run()
    longer(here).run_from(here.best(here.search(LONG), LONG), "comparison", here.seeds_of_all)


if __name__ == "__main__":
    main()
