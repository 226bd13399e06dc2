"""``~`` at the start of a path, wherever it is typed."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.run.cli import respelled
from src.run.folders import run_dir, sweep_dir
from src.run.home import expand_home
from src.run.targets import CONF


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a name that Hydra's grammar does not take unquoted."""
    folder = tmp_path / "Anna's home"
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.instance_dir=~/photos", "{home}/photos"),
        ("bank.rex=~", "{home}"),
        ("style=[~/a.png,~/b.png]", ["{home}/a.png", "{home}/b.png"]),
        ("bank={rex:~/r,tom:~/t}", {"rex": "{home}/r", "tom": "{home}/t"}),
        ("prompt='see ~/x'", "see ~/x"),
        ("name=a-b", "a-b"),
    ],
)
def test_an_override_may_begin_at_home(home: Path, argument: str, value: object) -> None:
    (respelled_argument,) = respelled([argument], "generate.py")
    found = OverridesParser.create().parse_override(respelled_argument.lstrip("+")).value()
    assert found == eval(repr(value).replace("{home}", str(home).replace("'", "\\'")))


def test_a_deletion_stays_one() -> None:
    assert respelled(["~logger"], "train.py") == ["~logger"]


def test_files_and_quoted_paths_may_begin_at_home(home: Path) -> None:
    told = {"a": "~/x", "b": ["~", {"c": "~/y/${name}"}], "name": "rex", "d": "~ about", "e": None, "f": "${a}"}
    cfg = OmegaConf.create({**told, "paths": {"root": "~/out", "cache_dir": "~/cache"}})
    expand_home(cfg)
    assert cfg.a == cfg.f == f"{home}/x" and list(cfg.b) == [str(home), {"c": f"{home}/y/rex"}]
    assert cfg.d == "~ about" and cfg.e is None
    assert cfg.paths.cache_dir == f"{home}/cache" and cfg.paths.root == "~/out"


def test_folders_of_runs_may_begin_at_home(home: Path) -> None:
    assert run_dir("~/out").startswith(f"{home}/out/")
    assert sweep_dir("~/out", "x", None, "eval").startswith(f"{home}/out/x/")


def test_what_the_checkout_ships_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "path": "world/subjects/rex",
        "model": "local-dir:world/subjects",
        "export_dir": "world/subjects",
        "a": "world/nothing",
    }
    here = OmegaConf.create(told)
    monkeypatch.chdir(CONF.parent)
    expand_home(here)
    assert here == told, "where it stands, paths are as they were written"
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create(told)
    expand_home(cfg)
    assert cfg.path == str(CONF.parent / "world/subjects/rex") and Path(cfg.path).is_dir()
    assert cfg.model == f"local-dir:{CONF.parent / 'world/subjects'}"
    assert (cfg.export_dir, cfg.a) == ("world/subjects", "world/nothing")
