"""Malformed command lines: each ends with one short sentence of ours, exit code 1, no trace, and nothing loaded."""

import runpy
import shlex
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.run.start import check_machine, check_places
from src.run.words import flags_first

DOG = "+experiment=concept_dog"
LLM = "+experiment=llmdiff"
CASES = [
    # What may be typed, and how.
    "train",
    "train max_steps=5",
    f"train {DOG} +max_steps=5",
    f"train {DOG} --max_steps=5",
    f"train {DOG} --trainer.max_steps 5",
    f"train {DOG} -x=5",
    f"train {DOG} --max-steps=5",
    f"train {DOG} trainer.max_stepz=5",
    f"train {DOG} max_steps",
    f"train {DOG} =5",
    f"train {DOG} trainer.max_steps=",
    f"train {DOG} trainer.max_steps==5",
    "train --experiment=concept_dog",
    "train --experiment concept_dog",
    "train experiment=concept_dgo",
    "train concept_dog",
    "train --config-dir=nowhere",
    "train --config-name=nothing",
    "train --cfg=everything",
    f"train {DOG} hydra/launcher=submitit_slurm -m",
    f"train {DOG} hydra/launcher=ray",
    f"train {DOG} hydra.launcher.n_jobs=2",
    f"train {DOG} hydra.run.dir=[a]",
    f"train {DOG} +trainer=gpus",
    f"train {DOG} trainer=gpus",
    f"train {DOG} ~method.nothing",
    f"train {DOG} ~backbone",
    f"train {DOG} backbone=null",
    f"train {DOG} method=null",
    f"train {DOG} data=null",
    f"train {DOG} trainer=null",
    f"train {DOG} backbone=3",
    f"train {DOG} method.learner.seed=${{nothing}}",
    f"train {DOG} seed=${{oc.env:NOTHING_SET}}",
    f"train {DOG} seed=${{nothing:3}}",
    f"train {DOG} seed=${{",
    f"train {DOG} task=draw",
    f"train {DOG} name=a,b",
    f"train {DOG} concept=rex;mittens",
    "generate prompt=a|dog,|sitting",
    "generate prompt=a|dog|(small)",
    "generate prompt=rex's|dog",
    "generate prompt='a|dog",
    "generate prompt={a:b}",
    "generate prompt=[a|dog",
    # Values at the top.
    "generate",
    "generate prompt=1984",
    "generate prompt=[[a]]",
    "generate prompt=[]",
    "generate prompt=''",
    "generate prompt=null",
    "generate prompt=true",
    "generate prompt=a seed=null",
    "generate prompt=a seed=1.5",
    "generate prompt=a seed=x",
    "generate prompt=a num_images=1.5",
    "generate prompt=a num_images=0",
    "generate prompt=a num_images=1e9",
    "generate prompt=a bank=PATH",
    "generate prompt=a bank.rex=7",
    "generate prompt=a bank.rex=nowhere.safetensors",
    "generate prompt=a|<rex> bank.rex=nowhere.safetensors",
    "generate prompt=a method=llmdiff adapter=7",
    "generate prompt=a method=llmdiff",
    "generate prompt=a method=llmdiff adapter=nowhere.safetensors",
    "generate prompt=a layout=3",
    "generate prompt=a layout.rex=3",
    "generate prompt=a layout.rex=[0,0,1,1]",
    "generate prompt=a method.rectification=on",
    "generate prompt=a dry_run=abc",
    "generate prompt=a style=3",
    "generate prompt=a method=style_svd style=nowhere.png",
    "generate prompt=a output=null",
    "generate prompt=a method.sampling.num_inference_steps=0",
    "generate prompt=a method.sampling.guidance_scale=nan",
    "generate prompt=a method.sampling.steps=3",
    "generate prompt=a method.batch_size=0",
    "generate prompt=a method.device=cuda:7",
    "generate prompt=a method.device=gpu",
    "generate prompt=a backbone.path=nowhere",
    "generate prompt=a backbone.path=3",
    "generate prompt=a backbone.dtype=float8",
    "generate prompt=a resume=true",
    f"train {DOG} resume=perhaps",
    f"train {DOG} seed=-1",
    f"train {DOG} seed=99999999999",
    f"train {DOG} name=null",
    f"train {DOG} data.instance_dir=nowhere",
    f"train {DOG} data.instance_dir=README.md",
    f"train {DOG} trainer.devices=99",
    f"train {DOG} trainer.devices=abc",
    f"train {DOG} trainer=gpu",
    f"train {DOG} trainer=gpu trainer.devices=4",
    f"train {DOG} trainer.accelerator=tpu",
    f"train {DOG} trainer.precision=half",
    f"train {DOG} trainer.max_steps=many",
    f"train {DOG} method.optimizer.lr=-1",
    f"train {DOG} method.optimizer.lr=fast",
    f"train {DOG} method.ema_decay=2",
    f"train {DOG} method.schedule=sine",
    f"train {DOG} method.learner.rank=100000",
    f"train {DOG} logger=nothing",
    f"train {DOG} hpo=default hpo.direction=sideways",
    f"train {DOG} hpo=default hpo.space=3",
    f"train {DOG} hpo=default trainer.max_steps=10",
    f"train {LLM} data=captioned_webdataset data.train.shards=x data.train.block=0",
    f"train {LLM} data=captioned_folder data.source.folder=nowhere",
    f"train {LLM} llm.path=nowhere",
    f"train {DOG} paths.root=README.md",
    f"train {DOG} paths.cache_dir=README.md/cache",
    f"train {DOG} paths.cache_dir=README.md",
    "generate prompt=a output=README.md",
    "generate prompt=a output=/proc/none/here",
    "eval",
    "eval bank=3",
    "eval dry_run=1",
    "eval sweep=nothing",
    "eval suite=nothing",
    "eval protocol=nothing",
    "eval protocol.num_seeds=0",
    "eval references=FOLDER",
    "eval bank.rex=nowhere.safetensors",
    "eval training.method.learner.rank=0 suite=world",
    "eval training.x=0 suite=world",
]


@pytest.fixture
def start(monkeypatch, capsys, root, tmp_path):
    """Runs an entry point in this process; returns the exit code, and what stood on the two streams."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def started(line: str) -> tuple[int, str, str]:
        task, *arguments = (word.replace("|", " ") for word in line.split())
        place = [] if "paths.root" in line else [f"paths.root={tmp_path}"]
        monkeypatch.setattr(sys, "argv", [str(root / f"{task}.py"), *arguments, *place])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.chdir(root)
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        return code, *capsys.readouterr()

    return started


@pytest.mark.parametrize("line", CASES)
def test_a_malformed_command_line_is_answered_with_one_sentence(start, line: str) -> None:
    code, _, told = start(line)
    sentences = [text for text in told.splitlines() if not text.startswith("note: ")]
    assert code == 1, told
    assert len(sentences) == 1 and sentences[0].startswith("error: "), told
    assert 20 < len(sentences[0]) < 500, told


def test_there_are_enough_of_them() -> None:
    assert len(set(CASES)) >= 80


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("a dog, sitting", "\"prompt='a dog, sitting'\""),
        ("a dog (small)", "\"prompt='a dog (small)'\""),
        ("a <rex>", "\"prompt='a <rex>'\""),
        ("rex's dog", r"""'prompt='"'"'rex\'"'"'s dog'"'"''"""),
    ],
)
def test_a_value_that_needs_quotes_is_shown_with_them(start, value: str, typed: str) -> None:
    *_, told = start(f"generate prompt={value.replace(' ', '|')}")
    assert told.strip().endswith(f"type {typed}")
    # As the shell hands it over, Hydra reads what was meant.
    override = OverridesParser.create().parse_override(shlex.split(typed)[0])
    assert override.value() == value


COMMON = {
    # The commonest mistakes of a first half hour, and what mends each.
    f"train {DOG} lr=1e-4": "type method.optimizer.lr=1e-4",
    f"train {DOG} learning_rate=1e-4": "type method.optimizer.lr=1e-4",
    f"train {DOG} steps=5": "type trainer.max_steps=5",
    f"train {DOG} +steps=5": "type trainer.max_steps=5",
    f"train {DOG} max_steps=5": "did you mean trainer.max_steps=5?",
    f"train {DOG} epochs=5": "type trainer.max_steps=STEPS",
    f"train {DOG} batch=2": "type data.batch_size=2",
    f"train {DOG} size=64": "type data.resolution=64",
    f"train {DOG} photos=FOLDER": "type data.instance_dir=FOLDER",
    f"train {DOG} gpu=1": "type trainer=gpu",
    "generate prompt=a dog on the grass": "type \"prompt='a dog on the grass'\"",
    "generate prompt=a|<rex> bank.rex=x": "type \"prompt='a <rex>'\"",
    "generate prompt=a bank=x.safetensors": "bank.NAME=",
    "generate prompt=a steps=5": "type method.sampling.num_inference_steps=5",
    "generate prompt=a guidance=5": "type method.sampling.guidance_scale=5",
    "generate prompt=a n=2": "type num_images=2",
    "generate prompt=a gpu=0": "type method.device=cuda",
    "eval steps=5": "type method.sampling.num_inference_steps=5",
    f"train {DOG} nothing_like_it=5": "--help lists those that there are",
}


@pytest.mark.parametrize("line", COMMON)
def test_a_common_mistake_is_told_what_mends_it(start, line: str) -> None:
    code, _, told = start(line)
    assert code == 1 and told.count("\n") == 1
    assert COMMON[line] in told, told


def test_an_experiment_is_chosen_among_those_that_train(start) -> None:
    _, _, told = start("train")
    assert told.startswith("error: nothing to train: add experiment=NAME, one of: concept_dog, ")
    assert "world/sd" in told and "key_step" not in told


def test_a_prompt_of_ten_thousand_words_is_shortened(start) -> None:
    code, _, told = start(f"generate prompt={'word|' * 10_000}(small)")
    assert code == 1 and len(told) < 1000


def test_a_file_that_is_no_yaml_is_named_with_its_line(start, tmp_path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text("name: x\nseed: [1\n", encoding="utf-8")
    code, _, told = start(f"train --config-dir={tmp_path} experiment=bad")
    assert code == 1 and "bad.yaml, line 3 cannot be read" in told and told.count("\n") == 1


def test_flags_may_stand_anywhere() -> None:
    words = ["a=1", "-m", "b=2", "--config-dir", "x", "c=3", "--cfg=job"]
    assert flags_first(words) == ["-m", "--config-dir", "x", "--cfg=job", "a=1", "b=2", "c=3"]


def test_a_place_that_may_not_be_written_to_is_refused(monkeypatch, tmp_path) -> None:
    cfg = OmegaConf.create({"paths": {"root": str(tmp_path / "a" / "b"), "cache_dir": str(tmp_path)}})
    check_places(cfg)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"paths.root is .*/a/b, but .* may not be written to; give paths.root=FOLDER"):
        check_places(cfg)


@pytest.mark.parametrize("devices", [3, "3", [0, 1, 2], "0,1,2"])
def test_more_devices_than_there_are_start_nothing(monkeypatch, devices) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    cfg = OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": devices}})
    with pytest.raises(ValueError, match=r"starts 3 processes, but this machine has 2 core"):
        check_machine(cfg)
    for fewer in (1, 2, "auto", -1, "-1"):
        check_machine(OmegaConf.create({"trainer": {"accelerator": "cpu", "devices": fewer}}))
