"""Which readings of a language model carry word order: ``python -m experiments.four_quadrants.study [SEED ...]``.

Four quadrants (``src.data.world.quadrants``) cannot be painted from a bag of words. For every seed, 0 to 2 if none is
named, a language model and a base model are trained from nothing, then one adapter for each of ``ARMS``.
Every arm is written to ``results`` as soon as it is done and not computed again; the table is of whole seeds.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from omegaconf import DictConfig, OmegaConf
from torch.optim import AdamW

from src.data.files import write_text
from src.data.texts import CorpusData
from src.data.world.quadrants import SIDE, QuadrantData, colors_of, quadrant_text, read, split
from src.eval.results.results import Table
from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.eval.statistics.paired import paired_difference
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffPipeline
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.learner import LLMDiff
from src.modules.llmdiff.options import AdapterOptions, EncodingOptions
from src.modules.training.learner import Learner, LearnerModule
from src.modules.world.language_model import LanguageModelPretraining
from src.modules.world.text_to_image import SCHEDULER, TextToImagePretraining

RESULTS = Path(__file__).parent / "results"
BASE = "the base's own text encoder"
BASELINE, SCORE = "llmdiff", "right"
FEATURES = ("llmdiff", "last", "penultimate", "embed", "ln_mean", "sum")
AS_PRINTED = OmegaConf.load(Path(__file__).parents[2] / "conf" / "llmdiff" / "paper_literal.yaml")
"""The paper's formulas, literally: ``llmdiff=paper_literal``."""


def _options(settings: DictConfig) -> dict[str, Any]:
    return {str(name): value for name, value in settings.items() if name != "_target_"}


ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{features: ({"features": features}, {}) for features in FEATURES},
    "llmdiff, first two blocks": ({"blocks": (0, 1)}, {}),
    "llmdiff, last two blocks": ({"blocks": (2, 3)}, {}),
    "llmdiff, no noise": ({}, {"noise": "off"}),
    "llmdiff, noise always": ({}, {"noise": "always"}),
    "llmdiff, random phi": ({}, {"phi_std": 0.01}),
    "llmdiff, new branch of weight zero": ({}, {"branch_init": "zero_weight"}),
    "llmdiff, as printed": (_options(AS_PRINTED.encoding), _options(AS_PRINTED.adapter)),
    "llmdiff, rows": ({}, {"phi_bias": "rows"}),
    "last, rows": ({"features": "last"}, {"phi_bias": "rows"}),
    "embed, rows": ({"features": "embed"}, {"phi_bias": "rows"}),
}
"""Options of the encoding and of the adapter. Of the last three phi's bias has a row for each position, as by default:
that tells positions by itself, so in all others it starts as one vector."""
# Guidance destroys samples of so flat a world.
DRAWING: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.0, "output_type": "latent"}


def language_model(folder: str | Path, seed: int = 0) -> LanguageModel:
    """A Llama that has read colours and copied them."""
    llama = LanguageModelPretraining(str(folder), 96, 256, num_layers=4, num_heads=4, context=32, seed=seed)
    corpus = CorpusData(quadrant_text, 64, 1_000_000, seed=seed)
    trained(llama, corpus, 1_500, 100, lr=2e-3, betas=(0.9, 0.95)).export()
    return LanguageModel.from_pretrained(str(folder))


def base_model(
    folder: str | Path, seed: int = 0, side: int = SIDE, block_out_channels: Sequence[int] = (32, 64)
) -> UNetBackbone:
    """A base model whose own text encoder knows the order of words; it works on ``side`` x ``side`` pixels, 8 or 4."""
    painter = TextToImagePretraining(str(folder), [*block_out_channels], 3, text_width=64, text_layers=2, seed=seed)
    trained(painter, QuadrantData(32, seed, side=side), 1_300, 130, {"text_encoder": 1e-3}, lr=2e-3)
    painter.unet.set_default_attn_processor()
    pipeline = StableDiffusionPipeline(
        vae=_autoencoder(side),
        text_encoder=painter.text_encoder.requires_grad_(False).eval(),
        tokenizer=painter.tokenizer,
        unet=painter.unet.requires_grad_(False).eval(),
        scheduler=DDIMScheduler(**SCHEDULER, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return UNetBackbone(pipeline, "quadrants")


def _autoencoder(side: int) -> AutoencoderKL:
    """Never used but for the size of a latent: stock pipelines draw no picture whose side is not a multiple of 8."""
    levels = {8: 1, 4: 2}[side]
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return AutoencoderKL(block_out_channels=(32,) * levels, latent_channels=3, **kinds)


def with_adapter(backbone: UNetBackbone, llm: LanguageModel, arm: str, seed: int = 0) -> LLMDiffPipeline:
    """The base model driven by an adapter of ``ARMS``, trained now."""
    encoding, adapter = ARMS[arm]
    encoder = LLMEncoder(llm, EncodingOptions(**encoding))
    options = AdapterOptions(**{"phi_bias": "mean", **adapter})
    learner = LLMDiff(backbone, encoder, "not exported", options, seed=seed)
    trained(learner, QuadrantData(32, seed), 1_000, 50, lr=3e-3)
    return LLMDiffPipeline(backbone.pipeline, learner.adapter.eval(), encoder)


def all_four_right(draw: Callable[..., Any]) -> list[bool]:
    """Of every held-out caption, whose order no training caption has: do the four quadrants have their colours?"""
    captions = split()[1]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
    painted = read(draw(captions, generator=generators, height=SIDE, width=SIDE, **DRAWING).images)
    return [colors_of(one) == found for one, found in zip(captions, painted, strict=True)]


def trained(
    learner: Learner,
    data: L.LightningDataModule,
    steps: int,
    num_warmup_steps: int,
    rates: Any = None,
    callbacks: Sequence[L.Callback] = (),
    **adamw: Any,
) -> LearnerModule:
    """Train a learner with AdamW, whose arguments are ``adamw``; it then keeps the average of its weights."""
    module = LearnerModule(learner, partial(AdamW, **adamw), rates, "cosine", num_warmup_steps, ema_decay=0.99)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    shown = {"enable_progress_bar": False, "callbacks": list(callbacks)}
    L.Trainer(max_steps=steps, accelerator="cpu", **shown, **quiet).fit(module, data)
    module.take_average()
    return module


def measure(seed: int) -> None:
    """What is missing of one seed."""
    path = _path(seed)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [arm for arm in ARMS if arm not in found]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        llm, backbone = language_model(Path(folder) / "llm", seed), base_model(Path(folder) / "sd", seed)
        found[BASE] = all_four_right(backbone.pipeline)
        for arm in missing:
            found[arm] = all_four_right(with_adapter(backbone, llm, arm, seed))
            write_text(path, json.dumps(found) + "\n")
            print(f"seed {seed}, {arm}: {sum(found[arm])} of {len(found[arm])}", flush=True)


def _path(seed: int) -> Path:
    return RESULTS / f"seed_{seed}.json"


def whole_seeds() -> list[dict[str, list[bool]]]:
    """Of each seed that is done, by arm: of every caption, whether all four are right."""
    seeds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("seed_*.json"))]
    return [found for found in seeds if set(found) >= set(ARMS)]


def comparison(seeds: Sequence[Mapping[str, Sequence[bool]]]) -> dict[str, Any]:
    """Means over captions and seeds, and paired differences from the block-wise score, as a sweep leaves them."""
    right = {name: [float(one) for found in seeds for one in found[name]] for name in (BASE, *ARMS)}
    cells = [(str(seed), str(caption)) for seed, found in enumerate(seeds) for caption in range(len(found[BASE]))]
    groups = list(zip(*cells, strict=True))
    means = {name: {SCORE: bootstrap_mean(values, groups).as_dict()} for name, values in right.items()}
    differences = {
        f"{name} {SCORE}": {"interval": paired_difference(values, right[BASELINE], groups, 0).as_dict()}
        for name, values in right.items()
        if name != BASELINE
    }
    return {"baseline": BASELINE, "means": means, "differences": differences}


def table(seeds: Sequence[Mapping[str, Sequence[bool]]], means: Mapping[str, Mapping[str, Any]]) -> Table:
    """Means with 95% intervals, and the share of each seed."""
    lines = [
        [name, str(Interval(**of[SCORE])), " ".join(f"{sum(one[name]) / len(one[name]):.2f}" for one in seeds)]
        for name, of in means.items()
    ]
    return Table(f"All four quadrants right, {len(seeds)} seeds", ["", "share", "of each seed"], lines)


def main() -> None:
    """Measure, write the means and the table."""
    RESULTS.mkdir(exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for seed in map(int, sys.argv[1:] or "012"):
        measure(seed)
    seeds = whole_seeds()
    compared = comparison(seeds)
    write_text(RESULTS / "comparison.json", json.dumps(compared, indent=2) + "\n")
    shown = table(seeds, compared["means"])
    write_text(RESULTS / "table.md", shown.markdown())
    print(shown.plain())


if __name__ == "__main__":
    main()
