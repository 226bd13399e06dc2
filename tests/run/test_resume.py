"""A training goes on only from its own checkpoint, and what differs is named key by key."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir
from PIL import Image

from src.modules.training.checkpoints import WholeCheckpoints
from src.run.folders import run_dir
from src.run.record import differences, training_record
from src.run.resume import NothingToResumeError, checkpoint_of
from src.run.trained_once import composed
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[list[str]]:
    """Overrides of a small training of a subject."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_sd(folder).save_pretrained(folder / "sd")
    for seed, name in enumerate(("photos", "others")):
        (folder / name).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "0.png")
    (folder / "again").mkdir()
    (folder / "again" / "another_name.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        yield ["+experiment=concept_dog", f"backbone.path={folder}/sd", f"data.instance_dir={folder}/photos"]


def record(told: list[str], *overrides: str) -> dict:
    folder = told[-1].rpartition("/")[0].removeprefix("data.instance_dir=")
    return training_record(composed([*told, *(one.replace("FOLDER", folder) for one in overrides)]))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.instance_dir=FOLDER/others", "data.content.instance_dir"),
        ("data.class_dir=FOLDER/others", "data.content.class_dir"),
        ("method.optimizer.lr=0.5", "method.optimizer.lr"),
        ("method.rates.modifier=0.5", "method.rates.modifier"),
        ("method.learner.objective.base_flow=false", "method.learner.objective.base_flow"),
        ("method.learner.objective.templates=fixed", "method.learner.objective.templates"),
        ("method.learner.objective.prior_loss_weight=0.5", "method.learner.objective.prior_loss_weight"),
        ("method.learner.rank=2", "method.learner.rank"),
        ("seed=1", "seed"),
        ("data.batch_size=1", "data.batch_size"),
        ("data.num_class_images=3", "data.num_class_images"),
        ("trainer.precision=bf16-mixed", "trainer.precision"),
        ("trainer.gradient_clip_val=0.5", "trainer.gradient_clip_val"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches"),
        ("backbone.dtype=bfloat16", "method.learner.backbone.dtype"),
        ("method.learner.snr_gamma=3", "method.learner.snr_gamma"),
        ("class_noun=cat", "method.learner.subject.class_noun"),
        ("callbacks=frontier", "callbacks.frontier._target_"),
    ],
)
def test_all_that_the_product_depends_on_counts(told: list[str], override: str, key: str) -> None:
    assert key in differences(record(told), record(told, override))


@pytest.mark.parametrize(
    "override",
    [
        "data.instance_dir=FOLDER/again",
        "logger=tensorboard",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "callbacks.checkpoint.every_n_train_steps=1",
        "~callbacks.samples",
        "data.num_val=1",
        "name=another",
    ],
)
def test_comfort_and_place_do_not_count(told: list[str], override: str) -> None:
    assert not differences(record(told), record(told, override))


def test_another_scheduler_in_the_same_folder_counts(told: list[str]) -> None:
    before = record(told)
    config = Path(told[1].removeprefix("backbone.path=")) / "scheduler" / "scheduler_config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace("0.012", "0.011") if "0.012" in text else text.replace("{", '{"another": 1,', 1), encoding="utf-8"
    )
    try:
        assert list(differences(before, record(told))) == ["method.learner.backbone.content.scheduler"]
    finally:
        config.write_text(text, encoding="utf-8")


def saved(folder: Path, record: dict, step: int = 100) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"record": record, "global_step": step}, path)
    return path


def test_a_checkpoint_of_another_training_is_refused_key_by_key(told: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path, record(told))
    assert checkpoint_of(tmp_path, record(told)) == path
    with pytest.raises(ValueError, match=r"another training: method\.learner\.rank was null and is 2; method\.sch"):
        checkpoint_of(tmp_path, record(told, "method.learner.rank=2", "method.schedule=cosine"))
    saved(tmp_path, {})
    with pytest.raises(ValueError, match="does not say what it was trained from"):
        checkpoint_of(tmp_path, record(told))


def test_another_length_is_said(told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, record(told, "trainer.max_steps=400"))
    assert checkpoint_of(tmp_path, record(told, "trainer.max_steps=800")) == path
    assert "max_steps was 400 and is 800; it goes on to step 800, as if that had been asked" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has 100 steps, but trainer\.max_steps=50; give more"):
        checkpoint_of(tmp_path, record(told, "trainer.max_steps=50"))
    bent = ["method.schedule=cosine", "trainer.max_steps=400"]
    saved(tmp_path, record(told, *bent))
    checkpoint_of(tmp_path, record(told, bent[0], "trainer.max_steps=800"))
    said = "learning rates so far followed the curve of 400 steps, and follow that of 800 from step 100 on:"
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_gives_way_to_the_one_before(told: list[str], tmp_path: Path) -> None:
    own = record(told)
    with pytest.raises(NothingToResumeError, match="has no checkpoint to resume"):
        checkpoint_of(tmp_path, own)
    saved(tmp_path, own, 1)
    path = saved(tmp_path, own, 2)
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoint_of(tmp_path, own) == path.with_name("last.ckpt.before")
    path.with_name("last.ckpt.before").write_bytes(b"")
    with pytest.raises(NothingToResumeError, match="every checkpoint in .* is damaged; start without resume=true"):
        checkpoint_of(tmp_path, own)


def test_the_newest_run_is_resumed_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no run in"):
        run_dir(str(tmp_path), resume=True)
    runs = [tmp_path / f"2026-01-01_10-00-00{number}" for number in ("", "_2", "_10")]
    for run in runs:
        saved(run, {})
    (tmp_path / "notes").mkdir()
    assert run_dir(str(tmp_path), resume=True) == str(runs[-1])
    (tmp_path / "2026-01-01_10-00-01").mkdir()
    with pytest.raises(ValueError, match=r"10-00-01, has no checkpoint yet; .*paths\.run_dir=.*00_10 resume=true"):
        run_dir(str(tmp_path), resume=True)
