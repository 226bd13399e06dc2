"""A table of values that may not stand where they stand, and what is said of each."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from src.data.ranges import BelowOne, Count, Dominance, Sampling, Seed, Share, Share1, Side, Weight
from src.run.cli import respelled
from src.run.types import check_given, check_types
from src.run.values import misfit


def composed(task: str, *arguments: str):
    root = Path(__file__).parents[2]
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose(task, respelled(arguments, f"{task}.py"), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (float("nan"), float),
        (float("inf"), float),
        (float("inf"), Weight),
        (float("nan"), Dominance),
        (-1.0, Weight),
        (True, Count),
        (0, Count),
        (1.5, Count),
        (1.0, BelowOne),
        (-0.1, BelowOne),
        (1.1, Share),
        (0, Share1),
        (2**32, Seed),
        (-1, Seed),
        (100, Side),
        (1984, str),
        ([["a"]], list[str]),
        ("ab", list[str]),
        ({"rex": 7}, dict[str, str]),
        ("PATH", dict[str, str]),
        ([0.9], tuple[BelowOne, BelowOne]),
        ({"num_inference_steps": 0}, Sampling | None),
        ({"guidance_scale": float("nan")}, Sampling | None),
        ({"resolution": 65}, Sampling),
    ],
)
def test_what_does_not_fit_gets_a_sentence(value: Any, annotation: Any) -> None:
    sentence = misfit("key", value, annotation)
    assert sentence is not None
    assert re.match(r"key\S* is .+, but .+ is expected; type \"?key.*", sentence), sentence


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (float("inf"), Dominance),
        (0, Weight),
        (1e-9, Weight),
        (2**32 - 1, Seed),
        (512, Side),
        (["a"], list[str]),
        ([0.9, 0.999], tuple[BelowOne, BelowOne]),
        ({"guidance_scale": [1.0, 2], "num_inference_steps": None, "other": "x"}, Sampling | None),
        (None, Sampling | None),
        ("???", Count),
    ],
)
def test_what_fits_passes(value: Any, annotation: Any) -> None:
    assert misfit("key", value, annotation) is None


def test_a_long_value_is_not_repeated_and_a_number_for_a_text_is_quoted() -> None:
    assert len(misfit("prompt", "word " * 10_000, list[str])) < 200
    assert misfit("name", 2024, str) == "name is 2024, but text is expected; type \"name='2024'\""
    assert misfit("bank", "a", dict[str, str]).endswith("type bank.NAME=VALUE")


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("generate", ["prompt=1984"]),
        ("generate", ["prompt=[[a]]"]),
        ("generate", ["prompt=[]"]),
        ("generate", ["prompt=''"]),
        ("generate", ["seed=null"]),
        ("generate", ["seed=-1"]),
        ("generate", ["seed=nan"]),
        ("generate", ["num_images=1.5"]),
        ("generate", ["num_images=0"]),
        ("generate", ["num_images=many"]),
        ("generate", ["bank=PATH"]),
        ("generate", ["bank.rex=7"]),
        ("generate", ["method=llmdiff", "adapter=7"]),
        ("generate", ["method.sampling.num_inference_steps=0"]),
        ("generate", ["method.sampling.num_inference_steps=-1"]),
        ("generate", ["method.sampling.guidance_scale=nan"]),
        ("generate", ["method.sampling.guidance_scale=inf"]),
        ("generate", ["method.sampling.guidance_scale=much"]),
        ("generate", ["method.sampling.negative_prompt=3"]),
        ("generate", ["method.sampling.resolution=63"]),
        ("generate", ["method.batch_size=0"]),
        ("generate", ["method.blending_start=2"]),
        ("generate", ["method.blending_end=1"]),
        ("generate", ["method=style_svd", "method.alpha=-1"]),
        ("generate", ["method=style_svd", "method.alpha=nan"]),
        ("generate", ["method=style_svd", "style=3"]),
        ("generate", ["method=llmdiff", "adapter=x", "method.strength=-1"]),
        ("generate", ["dry_run=abc"]),
        ("generate", ["output=null"]),
        ("generate", ["paths.cache_dir=null"]),
        ("generate", ["backbone.sampling.num_inference_steps=0"]),
        ("train", ["+experiment=concept_dog", "resume=perhaps"]),
        ("train", ["+experiment=concept_dog", "seed=4294967296"]),
        ("train", ["+experiment=concept_dog", "name=null"]),
        ("train", ["+experiment=concept_dog", "method.optimizer.lr=-1"]),
        ("train", ["+experiment=concept_dog", "method.optimizer.lr=nan"]),
        ("train", ["+experiment=concept_dog", "method.optimizer.weight_decay=-0.1"]),
        ("train", ["+experiment=concept_dog", "method.rates.modifier=-1"]),
        ("train", ["+experiment=concept_dog", "method.learner.rank=0"]),
        ("train", ["+experiment=concept_dog", "method.learner.rank=100000"]),
        ("train", ["+experiment=concept_dog", "method.learner.snr_gamma=0"]),
        ("train", ["+experiment=concept_dog", "method.learner.objective.prior_loss_weight=-1"]),
        ("train", ["+experiment=concept_dog", "method.ema_decay=2"]),
        ("train", ["+experiment=concept_dog", "method.ema_decay=-1"]),
        ("train", ["+experiment=concept_dog", "method.num_warmup_steps=-1"]),
        ("train", ["+experiment=concept_dog", "data.num_val=-1"]),
        ("train", ["+experiment=concept_dog", "data.batch_size=0"]),
        ("train", ["+experiment=concept_dog", "data.resolution=100"]),
        ("train", ["+experiment=concept_dog", "data.zoom.min_scale=0"]),
        ("train", ["+experiment=concept_dog", "trainer.max_steps=-2"]),
        ("train", ["+experiment=concept_dog", "trainer.max_steps=2.5"]),
        ("train", ["+experiment=concept_dog", "trainer.precision=64-fast"]),
        ("train", ["+experiment=concept_dog", "trainer.gradient_clip_val=-1"]),
        ("train", ["+experiment=concept_dog", "trainer.val_check_interval=0"]),
        ("train", ["+experiment=concept_dog", "trainer.devices=0"]),
        ("train", ["+experiment=concept_dog", "callbacks.samples.every_n_steps=-1"]),
        ("train", ["+experiment=concept_dog", "callbacks.checkpoint.every_n_train_steps=0"]),
        ("train", ["+experiment=concept_dog", "hpo=default", "hpo.num_trials=0"]),
        ("train", ["+experiment=concept_dog", "method.learner.backbone=3"]),
        ("train", ["+experiment=llmdiff", "method.learner.caption_dropout=1"]),
        ("train", ["+experiment=llmdiff", "llmdiff.adapter.bottleneck=0"]),
        ("train", ["+experiment=llmdiff", "llmdiff.encoding.blocks=[-1]"]),
        ("train", ["+experiment=llmdiff", "data=captioned_webdataset", "data.train.shards=x", "data.train.block=0"]),
        ("train", ["+experiment=llmdiff", "data=captioned_folder", "data.source.folder=x", "data.num_workers=-1"]),
        ("train", ["+experiment=world/sd", "method.learner.phrases_alone=1.5"]),
        ("eval", ["metrics.text_scale=0"]),
        ("eval", ["protocol=injection", "protocol.num_pairs=0"]),
        ("eval", ["protocol=captions", "protocol.num_seeds=0"]),
        ("eval", ["method=injection", "method.batch_size=0"]),
        ("eval", ["protocol.num_seeds=0"]),
        ("eval", ["protocol.seed=-1"]),
        ("eval", ["protocol.prompts=a"]),
        ("eval", ["references=FOLDER"]),
        ("eval", ["dry_run=1"]),
        ("eval", ["training=3"]),
    ],
)
def test_a_configuration_is_held_to_types_and_ranges(task: str, arguments: list[str]) -> None:
    cfg = composed(task, *arguments)
    key = arguments[-1].partition("=")[0].split(".")[-1]
    # Before a reference is resolved, which chooses a run folder.
    with pytest.raises(ValueError, match=rf"{key}\S* is .*expected") as raised:
        check_given(cfg)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("task", "arguments"),
    [("train", ["+experiment=concept_dog", "+max_steps=5"]), ("generate", ["+x=1"]), ("eval", ["+paths.rot=x"])],
)
def test_a_key_that_nothing_reads_is_refused(task: str, arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="there is no key"):
        check_types(composed(task, *arguments))


def test_a_key_that_another_key_reads_may_be_added() -> None:
    check_types(composed("train", "+experiment=concept_dog", "+base=3", "seed=${base}"))


def test_a_value_that_another_key_gives_is_checked_too() -> None:
    cfg = composed("train", "+experiment=concept_dog", "+base=-3", "seed=${base}")
    check_given(cfg)
    with pytest.raises(
        ValueError, match="seed is -3, but a whole number of at least 0 and below 4294967296 is expected"
    ):
        check_types(cfg)


def test_the_task_is_the_name_of_the_program() -> None:
    with pytest.raises(ValueError, match="task is 'x', but it is the name of the program"):
        check_types(composed("generate", "task=x"))
