"""What a user sees after a mistake: one sentence and exit code 1. Each subprocess costs seconds, so there are few."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from src.run import cli
from src.run.cli import respelled
from src.run.errors import explain
from src.run.folders import sweep_dir
from src.run.types import refuse_unknown


def run(root, *arguments, **environment):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, env={**os.environ, **environment}, encoding="utf-8"
    )


def sentence_for(root, *overrides, config="train"):
    with (
        pytest.raises((ConfigCompositionException, MissingConfigException)) as raised,
        initialize_config_dir(str(root / "conf"), version_base="1.3"),
    ):
        compose(config, overrides=list(overrides))
    return explain(raised.value)


def test_a_typo_ends_in_one_sentence_and_exit_code_1(root, tmp_path):
    ended = run(root, "train.py", "trainer.max_stepz=3", f"paths.root={tmp_path}", HYDRA_FULL_ERROR="0")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["error: there is no key trainer.max_stepz; did you mean trainer.max_steps=3?"]
    assert not list(tmp_path.iterdir())


def test_the_trace_is_one_variable_away(root, tmp_path):
    ended = run(root, "train.py", "experiment=world/sdx", f"paths.root={tmp_path}", HYDRA_FULL_ERROR="1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "Could not find 'experiment/world/sdx'" in ended.stderr


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("traner.max_steps=3", "did you mean trainer.max_steps=3?"),
        ("max_steps=3", "did you mean trainer.max_steps=3?"),
        ("traner=gpu", "did you mean trainer=gpu?"),
        ("quite_another=1", "there is no key quite_another; --help lists those that there are"),
        ("+experiment=world/sdx", "there is no experiment 'world/sdx'; did you mean experiment=world/sd?"),
        ("trainer=nothing_like_it", "choose one of: "),
        ("method=latexblnd/train", "there is no method 'latexblnd'; did you mean method=latexblend?"),
        ("method=style_svd/train", "there is no method 'style_svd'; choose one of: cones2, custom_diffusion, "),
    ],
)
def test_typos_are_answered_with_what_to_type(root, override, sentence):
    assert sentence in sentence_for(root, override)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("method.alpah=2", "there is no key method.alpah; did you mean method.alpha=2?"),
        ("method.samplin.x=1", "there is no key method.samplin.x; did you mean method.sampling.x=1?"),
        ("method.zzz=1", "there is no key method.zzz; method takes: backbone, blend, alpha, "),
        ("method.backbone.path=x", "there is no key method.backbone.path; did you mean backbone.path=x?"),
        ("llm.path=x", "there is no key llm.path, as no llm was chosen; add llm=NAME, one of: llama2_7b, "),
        ("logger.wandb.project=x", "there is no key logger.wandb.project"),
    ],
)
def test_what_no_constructor_takes_is_refused_before_a_job(root, override, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cli._refuse_mistyped("generate", respelled(["method=style_svd", override], "generate.py"))


def test_experiments_and_banks_need_no_plus(monkeypatch):
    monkeypatch.setattr(cli, "typed", {})
    monkeypatch.setattr(sys, "argv", ["eval.py", "experiment=x", "bank.rex=a", "references.rex=b", "seed=1"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    cli.friendly(lambda: None)()
    assert sys.argv[1:] == ["+experiment=x", "++bank.rex=a", "++references.rex=b", "seed=1"]


@pytest.mark.parametrize(
    ("script", "typed", "understood", "note"),
    [
        ("train.py", "method=latexblend", "method=latexblend/train", ""),
        ("eval.py", "method=latexblend,style_svd", "method=latexblend/draw,style_svd/draw", ""),
        ("generate.py", "method=blending", "method=latexblend/draw", "method=blending is now method=latexblend"),
        (
            "train.py",
            "method=llmdiff_training",
            "method=llmdiff/train",
            "is now method=llmdiff\n",
        ),
        ("train.py", "method.learning_rate=1", "++method.optimizer.lr=1", "method.learning_rate is now"),
        ("train.py", "~method.sampling.x", "~method.learner.sampling.x", "is now method.learner.sampling.x"),
        ("eval.py", "method.guidance_scale=1,2", "method.sampling.guidance_scale=1,2", "is now method.sampling.g"),
        (
            "eval.py",
            "training.method.rank=8",
            "++training.method.learner.rank=8",
            "is now training.method.learner",
        ),
        ("eval.py", "method.alpha=1,2", "++method.alpha=1,2", ""),
        ("train.py", "method.learner.rank=8", "++method.learner.rank=8", ""),
        ("eval.py", "hydra.sweeper.params={method.top_k:'1,2'}", "hydra.sweeper.params={++method.top_k:'1,2'}", ""),
        ("train.py", "~data.crop", "~data.crop", ""),
        ("train.py", "+data.crop=3", "+data.crop=3", ""),
        ("train.py", "metrics@callbacks.samples.profile=style", "metrics@callbacks.samples.profile=style", ""),
    ],
)
def test_what_people_type_goes_on_working(capsys, script, typed, understood, note):
    assert respelled([typed], script) == [understood]
    told = capsys.readouterr().err
    assert note in told and bool(told) == bool(note)


def test_the_same_command_goes_on_but_for_trainings_and_other_scripts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "-m", "seed=1,2"])
    first = sweep_dir(tmp_path, None, None, "eval")
    Path(first).mkdir(parents=True)
    assert sweep_dir(tmp_path, None, None, "eval") == first != sweep_dir(tmp_path, None, None, "generate")
    monkeypatch.setattr(sys, "argv", ["x.py", "-m", "seed=1,2", "dry_run=true"])
    assert sweep_dir(tmp_path, None, None, "eval", dry_run=True) == f"{first}_plan"
    begun = []
    for _ in range(3):
        begun.append(sweep_dir(tmp_path, None, None, "train", resume=False))
    assert len({first, *begun}) == 4
    monkeypatch.setattr(sys, "argv", ["x.py", "-m", "seed=1,2", "resume=true"])
    assert sweep_dir(tmp_path, None, None, "train", resume=True) == begun[-1]
    monkeypatch.setattr(sys, "argv", ["x.py", "-m", "seed=3,4", "resume=true"])
    with pytest.raises(ValueError, match="start the same sweep without resume=true"):
        sweep_dir(tmp_path, None, None, "train", resume=True)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["sweep=alpha"], "alpha"),
        (["+experiment=multi_concept"], "multi_concept"),
        (["+experiment=key_step"], "key_step"),
        (["+experiment=style_aligned", "sweep=alpha"], "alpha"),
        (["seed=1"], "multirun"),
    ],
)
def test_a_sweep_is_found_by_its_name_or_by_that_of_its_experiment(root, tmp_path, arguments, name):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("eval", [*arguments, f"paths.root={tmp_path}"], return_hydra_config=True)
    assert Path(cfg.hydra.sweep.dir).parent == tmp_path / "sweep" / name
    assert Path(sweep_dir(str(tmp_path), None, "world/sd", "train")).parent == tmp_path / "world_sd"


def test_what_a_resolver_says_is_not_wrapped(root):
    cfg = OmegaConf.create({"where": "${run_dir:nowhere,true}"})
    with pytest.raises(InterpolationResolutionError) as raised:
        _ = cfg.where
    assert explain(raised.value).startswith("resume=true, but there is no run in nowhere; start without resume=true")


def test_a_variable_that_a_launcher_sets_is_named(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    cfg = OmegaConf.create({"job": "${oc.env:SLURM_JOB_ID}"})
    with pytest.raises(InterpolationResolutionError) as raised:
        _ = cfg.job
    assert explain(raised.value) == (
        "the environment variable SLURM_JOB_ID is not set; SLURM sets those that trainer=slurm reads"
    )


def test_a_launcher_that_is_not_installed_says_what_to_type(root):
    # Hydra's own words depend on what is installed, so the error is made by hand.
    missing = MissingConfigException("no", missing_cfg_file="hydra/launcher/submitit_slurm")
    assert explain(missing) == 'hydra/launcher/submitit_slurm needs a package; type: pip install -e ".[slurm]"'


def test_the_larger_recipe_of_the_self_supervised_encoder_sets_what_the_smaller_sets(root):
    recipes = [OmegaConf.load(root / "conf" / "pretrain" / f"{name}.yaml") for name in ("dino", "dino_vit")]
    assert set(recipes[0]) == set(recipes[1]) and set(recipes[0].learner) <= set(recipes[1].learner)


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("sd", {"export_dir": "a", "init_from": "b", "learning_rate": 0.5, "phrases_alone": 0, "ema_decay": 0.5}),
        ("infinity_tokenizer", {"export_dir": "a", "init_from": "b", "teacher_steps": 1, "commitment_weight": 2.0}),
        ("infinity", {"export_dir": "a", "depth": 1, "width": 8, "text_learning_rate": 0.5, "text_width": 4}),
        ("dino", {"export_dir": "a", "momentum": 0.5, "view_size": 8, "min_crop": 0.5, "contrast_weight": 0}),
    ],
)
def test_old_keys_of_pretrainings_reach_the_configuration(root, name, old):
    typed = respelled([f"method.{key}={value}" for key, value in old.items()], "train.py")
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("train", [f"+experiment=world/{name}", *typed])
    refuse_unknown(cfg)
    assert [OmegaConf.select(cfg, argument.partition("=")[0].lstrip("+")) for argument in typed] == list(old.values())


@pytest.mark.parametrize(
    ("experiment", "key"), [("concept_dog", "method.learner.exports.path"), ("llmdiff", "method.learner.export_path")]
)
def test_the_old_key_of_an_export_is_that_of_the_method(root, experiment, key):
    typed = respelled([f"+experiment={experiment}", "method.export_path=a.safetensors"], "train.py")
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("train", typed)
    refuse_unknown(cfg)
    assert OmegaConf.select(cfg, key) == "a.safetensors"


def test_banks_reach_the_configuration(root):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("eval", overrides=["++bank.rex=a.safetensors", "++references.rex=world:3"])
    assert cfg.bank == {"rex": "a.safetensors"}
    assert cfg.references == {"rex": "world:3"}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("no images in here"), "no images in here"),
        (FileNotFoundError(2, "No such file", "a.txt"), "[Errno 2] No such file: 'a.txt'"),
        (MissingMandatoryValue("Missing mandatory value: x"), "None is not set; add None=VALUE"),
        (RuntimeError("a bug"), None),
    ],
)
def test_only_what_the_user_can_mend_is_explained(error, sentence):
    assert explain(error) == sentence


def test_what_python_says_is_named_as_such():
    with pytest.raises(ValueError, match="range") as raised:
        range(0, 3, 0)
    told = explain(raised.value)
    assert told.startswith("a value does not fit: range() arg 3 must not be zero (said by tests/test_cli.py, line ")
    with pytest.raises(ValueError, match="ours") as raised:
        raise ValueError("ours")
    assert explain(raised.value) == "ours"


def test_a_constructor_speaks_for_itself():
    wrapped = InstantiationException("Error in call to target 'x':\nValueError('no')\nfull_key: method")
    wrapped.__cause__ = ValueError("alpha is -1; it must be positive")
    assert explain(wrapped) == "alpha is -1; it must be positive"
    wrapped.__cause__ = TypeError("X.__init__() got an unexpected keyword argument 'alhpa'")
    assert explain(wrapped) == "method takes no argument 'alhpa'; check the spelling against conf/method"


def test_errors_leave_the_entry_point_as_the_user_should_see_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def fail(error):
        def main():
            raise error

        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        return cli.friendly(main)

    with pytest.raises(SystemExit) as ended:
        fail(ValueError("a sentence"))()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: a sentence\n"
    with pytest.raises(KeyError):
        fail(KeyError("ours"))()
