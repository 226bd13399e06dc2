"""The adapter of a suite: trained once, found again by what it was trained from."""

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from eval import use
from src.run import targets
from src.run.record import record_digest, training_record
from src.run.rehearsal import rehearsed
from src.run.suites import AdapterSuite, learns, trained
from src.run.trained_once import as_overrides, composed
from tests.llms import tiny_llm_folder
from tests.tiny import tiny_sd

STEPS = 4


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[dict]:
    """What makes the world's experiment a training of seconds."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_sd(folder).save_pretrained(folder / "sd")
    data = {"kind": "scenes", "num_train": 8, "num_val": 2, "batch_size": 2, "latents": False, "code_path": None}
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        yield {
            "paths": {"cache_dir": str(folder / "cache")},
            "backbone": {"path": str(folder / "sd")},
            "llm": {"path": str(tiny_llm_folder(folder / "llm"))},
            "data": data,
            "method": {"num_warmup_steps": 0},
            "trainer": {"max_steps": STEPS},
            "callbacks": {"checkpoint": {"every_n_train_steps": 1}},
        }


def digest(training: dict, *overrides: str) -> str:
    return record_digest(training_record(composed(["+experiment=llmdiff", *as_overrides(training), *overrides])))


def test_an_adapter_is_trained_once(training: dict, tmp_path: Path) -> None:
    ours = AdapterSuite("llmdiff", str(tmp_path), training)
    rehearsal = rehearsed(list(ours.trainings().values()), tmp_path / "scratch")
    counted = dict(rehearsal.rows)
    assert (counted["trainings asked for"], counted["trained already"], counted["left to train"]) == ("1", "0", "1")
    assert re.fullmatch(rf"\d+\.\d min \({STEPS} steps of \d+\.\d\d s each\)", counted["time to train them"])
    assert rehearsal.product.is_relative_to(tmp_path / "scratch") and rehearsal.product.exists()
    shutil.rmtree(tmp_path / "scratch")
    path = Path(trained(ours)["adapter"])
    there = rehearsed(list(ours.trainings().values()), tmp_path / "scratch")
    assert there.product is None and dict(there.rows)["trained already"] == "1" and not (tmp_path / "scratch").exists()
    assert [found.name for found in tmp_path.glob("*.safetensors")] == [path.name]
    written = path.stat().st_mtime_ns
    default = {**training, "seed": 0, "llmdiff": {"encoding": {"features": "llmdiff"}}}
    assert trained(AdapterSuite("llmdiff", str(tmp_path), default)) == {"adapter": str(path)}
    assert path.stat().st_mtime_ns == written
    # Curves and the loss at the end are all that a training leaves beside, and an empty lock.
    left = {found.name for found in path.with_suffix("").rglob("*") if found.is_file()}
    assert left == {"metrics.csv", "hparams.yaml", ".lock"}
    with next(path.with_suffix("").rglob("metrics.csv")).open(encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == [str(STEPS - 1)]


@pytest.mark.parametrize(
    "override",
    ["seed=1", "method.optimizer.lr=1", "data.batch_size=1", "trainer.max_steps=5", "llmdiff.encoding.features=last"],
)
def test_another_training_is_another_adapter(training: dict, override: str) -> None:
    assert digest(training, override) != digest(training)


@pytest.mark.parametrize(
    "default",
    [
        "method.learner.caption_dropout=0.1",
        "method.optimizer.weight_decay=0.01",
        "llmdiff.encoding.features=llmdiff",
        "data.crop=null",
        "trainer.max_time=null",
        "backbone.dtype=float32",
        "llmdiff.adapter.phi_std=0",
    ],
)
def test_a_default_that_is_written_out_is_no_other_training(training: dict, default: str) -> None:
    assert digest(training, default) == digest(training)


def test_where_and_with_what_comfort_it_is_trained_does_not_count(training: dict) -> None:
    elsewhere = ["paths.cache_dir=elsewhere", "paths.run_dir=there", "method.learner.encoder.keep_loaded=false"]
    watched = [
        "method.learner.sampling.guidance_scale=9",
        "data.num_val=1",
        "trainer.val_check_interval=1",
        "logger=tensorboard",
    ]
    assert digest(training, *elsewhere, *watched, "method.learner.encoder.cache.folder=x") == digest(training)


def test_a_language_model_that_was_trained_anew_is_another_one(training: dict) -> None:
    before = digest(training)
    folder = Path(training["llm"]["path"])
    assert digest(training) == before
    tiny_llm_folder(folder, seed=1)
    changed = digest(training)
    tiny_llm_folder(folder, seed=0)
    assert changed != before == digest(training)


def test_ones_own_images_and_captions_count_by_their_content(training: dict, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red dog", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"1")
    own = {key: value for key, value in training.items() if key != "data"}
    told = ["data=captioned_folder", f"data.source.folder={tmp_path}"]
    before = digest(own, *told)
    (tmp_path / "a.txt").write_text("a red cat", encoding="utf-8")
    assert digest(own, *told) != before


class Ended(BaseException):
    """As a power cut would end a training."""


class EndsAt(L.Callback):
    """After this step."""

    incidental = ("step",)

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise Ended


def test_a_training_that_ended_early_goes_on(training: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "PACKAGES", (*targets.PACKAGES, __name__))
    whole = trained(AdapterSuite("llmdiff", str(tmp_path / "whole"), training))["adapter"]
    cut = {"+callbacks": {"ends": {"_target_": f"{__name__}.EndsAt", "step": 3}}}
    with pytest.raises(Ended):
        trained(AdapterSuite("llmdiff", str(tmp_path / "cut"), {**training, **cut}))
    begun = list((tmp_path / "cut").glob("*/checkpoints/last.ckpt"))
    assert begun and not list((tmp_path / "cut").glob("*.safetensors"))
    # Steps from the first on would meet it again.
    late = {"+callbacks": {"ends": {"_target_": f"{__name__}.EndsAt", "step": 1}}}
    path = trained(AdapterSuite("llmdiff", str(tmp_path / "cut"), {**training, **late}))["adapter"]
    first, second = load_file(whole), load_file(path)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    assert not begun[0].exists()


def test_a_suite_does_not_train_beside_a_given_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter=mine is given, but the suite trains an adapter"):
        AdapterSuite("llmdiff", str(tmp_path), given="mine")


def test_a_suite_trains_on_one_process(training: dict, tmp_path: Path) -> None:
    several = {**training, "trainer": {"max_steps": STEPS, "devices": 2}}
    with pytest.raises(ValueError, match="an evaluation trains on one process"):
        trained(AdapterSuite("llmdiff", str(tmp_path), several))
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_was_made_reaches_the_configuration_beside_what_was_given(training: dict) -> None:
    cfg = compose("eval", overrides=["++bank.rex=given"])
    use({"bank.rex": "made", "bank.tom": "made", "adapter": "made"}, cfg)
    assert compose("eval", overrides=["method=llmdiff/draw", "adapter=given"]).method.adapter == "given"
    assert (cfg.bank, cfg.adapter) == ({"rex": "given", "tom": "made"}, "made")


@pytest.mark.parametrize("damaged", ["last", "both"])
def test_a_training_whose_checkpoints_are_damaged_still_ends(
    training: dict, tmp_path: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "PACKAGES", (*targets.PACKAGES, __name__))
    cut = {"+callbacks": {"ends": {"_target_": f"{__name__}.EndsAt", "step": 3}}}
    with pytest.raises(Ended):
        trained(AdapterSuite("llmdiff", str(tmp_path / "cut"), {**training, **cut}))
    (folder,) = (tmp_path / "cut").glob("*/checkpoints")
    for name in ("last.ckpt", "last.ckpt.before")[: 2 if damaged == "both" else 1]:
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])
    late = {"+callbacks": {"ends": {"_target_": f"{__name__}.EndsAt", "step": 1 if damaged == "last" else 9}}}
    path = trained(AdapterSuite("llmdiff", str(tmp_path / "cut"), {**training, **late}))["adapter"]
    whole = trained(AdapterSuite("llmdiff", str(tmp_path / "whole"), training))["adapter"]
    first, second = load_file(whole), load_file(path)
    assert all(first[name].equal(second[name]) for name in first)


def test_what_draws_is_learnt_by_its_own_method_or_by_that_which_its_class_names():
    assert learns("latexblend/draw") == "latexblend" and learns("mix_of_show") == "mix_of_show"
    assert learns("omg/draw") == "dreambooth_lora"
    with pytest.raises(ValueError, match=r"renders learns no subject; choose a method that does by suite\.method=NAME"):
        learns("renders/draw")
