"""A dry run of a training: two steps and one picture are measured, and nothing is kept."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import DictConfig

from src.callbacks.stopwatch import Stopwatch
from src.run import rehearsal
from src.run.rehearsal import measured, planned
from src.run.trained_once import composed
from tests.tiny import tiny_sd

TOGETHER = ("data=combination", "data.others.tom.class_noun=cat", "data.others.tom.instance_dir=world/subjects/mittens")
pytestmark = pytest.mark.usefixtures("configurations")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sd(folder).save_pretrained(folder / "sd")
    return folder / "sd"


def training(model: Path, folder: Path, *overrides: str) -> DictConfig:
    small = ("data.num_views=5", "trainer.max_steps=1800", f"paths.cache_dir={folder / 'cache'}")
    return composed(["+experiment=concept_dog", f"backbone.path={model}", *small, *overrides])


def test_a_dry_run_measures_a_training_and_keeps_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = training(model, tmp_path)
    monkeypatch.setattr(rehearsal, "_of_a_step", lambda watch: 4.0)
    told = dict(planned(cfg))
    assert list(tmp_path.iterdir()) == [] and cfg.trainer.max_steps == 1800
    unet = StableDiffusionPipeline.from_pretrained(model).unet
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    # All weights of keys and values, and V*.
    trained = sum(one.to_k.weight.numel() + one.to_v.weight.numel() for one in layers) + 16
    assert told["parameters trained"] == f"{trained:,}"
    assert told["images found"] == "5" and told["class images"].startswith("32 of each class")
    assert told["seconds a step"] == "4.00" and told["hours in all"].startswith("2.00 (1800 steps;")
    assert re.fullmatch(r"64 x 64, \d+\.\d s", told["one sample"])
    # AdamW keeps two moments of each number beside the number, four bytes each.
    assert float(told["a checkpoint"].split()[0]) * 1e3 > 12 * trained
    assert re.fullmatch(r"\d+\.\d kB", told["the export"])
    assert re.fullmatch(r"\d+\.\d GiB of the process", told["peak memory"])


@pytest.mark.parametrize(
    ("overrides", "photos", "is_prior"),
    [(("method=textual_inversion/train",), "5", False), (("method=mudi/train", *TOGETHER), "10", True)],
)
def test_rivals_are_measured_too_and_those_that_learn_several_together(
    model: Path, tmp_path: Path, overrides: tuple[str, ...], photos: str, is_prior: bool
) -> None:
    told = dict(planned(training(model, tmp_path, *overrides)))
    assert told["images found"] == photos
    assert ("class images" in told) is is_prior
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer=ddp_cpu", r"dry_run=true measures one process, but trainer.devices=2; give trainer.devices=1"),
        ("trainer.max_steps=-1", r"trainer.max_steps is -1, which never ends; give a number of steps"),
    ],
)
def test_what_a_dry_run_cannot_tell_is_refused(model: Path, tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        planned(training(model, tmp_path, override))


def test_a_step_of_several_batches_is_timed_once_with_its_gradients(model: Path, tmp_path: Path) -> None:
    cfg = training(model, tmp_path)
    watch, made = measured(cfg, 2, tmp_path / "scratch", **{"trainer.accumulate_grad_batches": 3})
    assert len(watch.seconds) == len(watch.norms) == 2
    assert all(norm > 0 for norm in watch.norms) and watch.picture is None
    assert Path(made["concept bank"]).is_relative_to(tmp_path / "scratch")


def test_the_first_steps_do_not_count_as_they_warm_up(tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path)
    watch.seconds = [50.0, 1.0]
    assert rehearsal._of_a_step(watch) == 1.0


def test_the_norm_is_that_of_all_gradients_together(tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path)
    first, second, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    watch.on_before_optimizer_step(None, None, torch.optim.SGD([first, second, unused]))  # type: ignore[arg-type]
    assert watch.norms == [pytest.approx(5.0)]
