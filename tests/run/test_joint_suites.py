"""A suite of a method that learns subjects together: a training for each combination that is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from eval import refuse_joint
from src.data.request import Request
from src.eval.concepts import bank_source
from src.run.suites import Suite, trained
from src.run.trained_once import composed
from tests.tiny import tiny_sd

SUBJECTS = {
    "rex": {"class_noun": "dog", "data": {"instance_dir": "world/subjects/rex"}},
    "mittens": {"class_noun": "cat", "data": {"instance_dir": "world/subjects/mittens"}},
    "pip": {"class_noun": "bird", "data": {"instance_dir": "world/subjects/pip"}},
}
PROMPTS = ("a <rex> left of a <mittens>", "a <mittens>, a <rex> and a <pip>", "a <mittens> left of a <rex>", "a dog")


@pytest.fixture
def suite_of(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A maker of suites whose trainings take seconds."""
    monkeypatch.chdir(root)
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    training = {
        "paths": {"cache_dir": str(tmp_path / "cache")},
        "backbone": {"path": str(tmp_path / "sd")},
        "data": {"num_class_images": 2, "num_views": 4},
        "trainer": {"max_steps": 2, "limit_val_batches": 0},
    }
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        yield lambda method, changes=training: Suite("concept_dog", SUBJECTS, str(tmp_path / "banks"), changes, method)


@pytest.mark.parametrize("method", ["custom_diffusion_joint/draw", "mudi/draw"])
def test_each_combination_that_is_asked_for_is_trained_once_for_all_its_subjects(suite_of, method, tmp_path):
    requests = [Request(prompt, 0) for prompt in PROMPTS]
    suite = suite_of(method)
    assert list(suite.trainings(requests)) == ["bank.rex+bank.mittens", "bank.rex+bank.mittens+bank.pip"]
    assert suite.trainings() == {}
    files = trained(suite, requests)
    pair, three = files["bank.rex"]
    assert files == {"bank.rex": [pair, three], "bank.mittens": [pair, three], "bank.pip": three}
    assert bank_source(pair, "mittens").class_noun == "cat" and bank_source(three, "pip").class_noun == "bird"
    cfg = compose("eval", [f"method={method}", f"backbone.path={tmp_path}/sd", "paths.run_dir=."])
    generator = instantiate(cfg.method, banks={key[5:]: each for key, each in files.items()}, _convert_="all")
    generator.check(requests)
    layer = next(iter(generator.changes(["rex"])))
    assert not generator.changes(["rex", "mittens"])[layer].equal(generator.changes(["rex", "pip"])[layer])
    written = {path: Path(path).stat().st_mtime_ns for path in (pair, three)}
    assert trained(suite_of(method), requests) == files
    assert {path: Path(path).stat().st_mtime_ns for path in written} == written


def test_a_combination_gets_the_steps_that_its_subjects_would_get_alone(suite_of):
    (alone,) = suite_of("mudi", {}).trainings([Request("a <rex>", 0)]).values()
    (three,) = suite_of("mudi", {}).trainings([Request(PROMPTS[1], 0)]).values()
    assert composed(alone.overrides).trainer.max_steps == 400 and composed(three.overrides).trainer.max_steps == 1200
    (fewer,) = suite_of("mudi", {"trainer": {"max_steps": 7}}).trainings([Request(PROMPTS[1], 0)]).values()
    assert composed(fewer.overrides).trainer.max_steps == 7


def test_methods_of_one_subject_are_asked_for_each_subject(suite_of):
    suite = suite_of("custom_diffusion/draw")
    assert list(suite.trainings([Request(PROMPTS[0], 0)])) == ["bank.rex", "bank.mittens", "bank.pip"]
    refuse_joint(suite.trainings())


def test_a_dry_run_of_combinations_is_refused_in_a_sentence(suite_of):
    trainings = suite_of("mudi").trainings([Request(PROMPTS[0], 0)])
    with pytest.raises(ValueError, match="measures no training of several subjects, such as rex and mittens"):
        refuse_joint(trainings)
