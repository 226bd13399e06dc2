"""What a configuration may build: nothing foreign is imported or called, from a file, a command line or metadata."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.run import cli, targets
from src.run.cli import respelled
from src.run.types import check_types, refuse_unknown

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "PACKAGES", tuple(name for name in targets.PACKAGES if name != "tests"))


FOREIGN = [
    "os.system",
    "os.remove",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "eval",
    "pickle.loads",
    "shutil.rmtree",
    "importlib.import_module",
    "functools.partial",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Linear",
    "numpy.load",
    "webbrowser.open",
    "hydra.utils.get_method",
    "hydra.utils.call",
    "diffusers.DiffusionPipeline.from_pretrained",
    "transformers.AutoModel.from_pretrained",
    "lightning_evil.Trainer",
    "srcs.evil.Part",
    "evil",
    "",
    "${oc.env:TARGET,os.system}",
    "src.data.files.os.system",
    "src.data.files.shutil.rmtree",
    "src.data.files.torch.load",
    "src.data.files.write_text",
    "src.data.schema.save_file",
    "src.run.targets.build",
    "src.run.targets.yaml.unsafe_load",
    "lightning.pytorch.trainer.trainer.os.system",
    "lightning.seed_everything",
    7,
    ["os.system"],
]


@pytest.mark.parametrize("target", FOREIGN, ids=str)
@pytest.mark.parametrize(
    "place",
    [
        lambda node: {"method": node},
        lambda node: {"method": {"_target_": "src.data.subject.Zoom", "min_scale": node}},
        lambda node: {"callbacks": {"one": node}},
        lambda node: {"data": {"a": [{"b": node}]}},
        lambda node: {"trainer": {"_target_": "lightning.Trainer", "strategy": {"x": [node]}}},
    ],
    ids=["part", "argument", "callback", "list", "deep"],
)
def test_what_is_foreign_is_refused_wherever_it_stands(monkeypatch, target, place) -> None:
    monkeypatch.setattr("hydra.utils.instantiate", lambda *_, **__: pytest.fail("something was built"))
    cfg = OmegaConf.create(place({"_target_": target, "command": "touch ran"}))
    for refuse in (refuse_unknown, check_types, targets.refuse_foreign, targets.build):
        with pytest.raises(ValueError, match=r"_target_.*may not be built|_target_=.* may not be built"):
            refuse(cfg)


@pytest.mark.parametrize("target", FOREIGN, ids=str)
def test_what_is_foreign_is_not_even_imported(monkeypatch, target) -> None:
    if str(target).startswith(("src.", "lightning.", "torch.optim.")):
        return
    monkeypatch.setattr("hydra.utils.get_object", lambda *_: pytest.fail("something was imported"))
    with pytest.raises(ValueError, match="may not be built"):
        targets.located(target)


def test_all_that_conf_builds_may_be_built() -> None:
    names = {name for name in targets._functions() if isinstance(name, str)}
    assert len(names) > 50
    for name in names - {"src.callbacks.trackers.wandb.WandbTracker"}:
        targets.located(name)


def test_a_node_that_a_resolver_makes_is_refused_when_it_is_built() -> None:
    cfg = OmegaConf.create({"method": "${oc.decode:'{_target_: os.system, command: touch ran}'}"})
    with pytest.raises(ValueError, match="os.system may not be built"):
        check_types(cfg)
    with pytest.raises(ValueError, match="os.system may not be built"):
        targets.build(cfg.method)


@pytest.mark.parametrize(
    "argument",
    ["method._target_=os.system", "+callbacks.x._target_=os.system", "+callbacks.x={_target_:os.system,command:ls}"],
)
def test_the_command_line_is_refused_before_a_job(argument: str) -> None:
    arguments = respelled(["+experiment=concept_dog", argument], "train.py")
    with pytest.raises(ValueError, match="os.system may not be built"):
        cli._refuse_mistyped("train", [*arguments, "++trainer.max_steps=1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.callbacks.x._target_=os.system"], "Hydra would build it"),
        (["+hydra.callbacks.x={_target_:os.system}"], "Hydra would build it"),
        (["++hydra={callbacks:{}}"], "Hydra would build it"),
        (["--experimental-rerun", "config.pickle"], "unpickles"),
        (["--experimental-rerun=config.pickle"], "unpickles"),
        (["--config-dir", "FOLDER"], "evil.yaml: hydra.callbacks.x._target_=os.system may not be built"),
        (["--config-dir=FOLDER"], "evil.yaml: hydra.callbacks.x._target_=os.system may not be built"),
        (["-cd", "FOLDER"], "may not be built"),
        (["-cp", "FOLDER"], "may not be built"),
    ],
)
def test_what_hydra_builds_itself_is_refused_before_it_does(tmp_path: Path, arguments, message) -> None:
    (tmp_path / "deep").mkdir()
    text = '# @package _global_\nhydra: {callbacks: {x: {"_target\\x5f": os.system}}}\n'
    (tmp_path / "deep" / "evil.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        targets.refuse_foreign_files([word.replace("FOLDER", str(tmp_path)) for word in arguments])


def test_one_place_builds() -> None:
    """All else would be another door."""
    files = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]
    doors = ("hydra.utils", "import_module", "eval(", "exec(", "__import__", "pickle.load", "yaml.load", "unsafe_load")
    found = {
        path.name
        for path in files
        for door in doors
        if f" {door}" in path.read_text(encoding="utf-8").replace("=", " ")
    }
    assert found <= {"targets.py"}


def test_a_training_from_a_foreign_file_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    ran = tmp_path / "ran"
    text = f"# @package _global_\ncallbacks:\n  x: {{_target_: os.system, command: touch {ran}}}\n"
    (tmp_path / "experiment" / "evil.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "train.py", "--config-dir", str(tmp_path), "+experiment=evil", f"paths.root={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1 and "callbacks.x._target_=os.system may not be built" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and not ran.exists()
