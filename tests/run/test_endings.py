"""How a command ends before it is done: one line that says what is kept, and no empty folder."""

import sys
from pathlib import Path

import pytest

from src.run import cli
from src.run.endings import INTERRUPTED, remove_empty, stopped


@pytest.fixture
def typed(monkeypatch):
    def type_(line: str) -> str:
        monkeypatch.setattr(sys, "argv", line.split())
        return Path(sys.argv[0]).stem

    return type_


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train.py +experiment=concept_dog", "stopped before the first step; nothing was learnt or drawn"),
        (
            "generate.py prompt=a",
            "stopped; what is learnt and drawn is kept: the same command with output=outputs/x goes on there",
        ),
        (
            "eval.py suite=world",
            "stopped; what is learnt and drawn is kept: the same command with paths.images_dir=outputs/x/images goes "
            "on there",
        ),
        ("eval.py sweep=alpha", "stopped; what is finished is kept: the same command goes on there"),
    ],
)
def test_what_is_kept_and_what_goes_on_there_is_said(typed, line: str, says: str) -> None:
    assert stopped(typed(line), "outputs/x") == says


def test_ctrl_c_is_one_line_and_leaves_no_empty_folder(typed, tmp_path: Path, monkeypatch, capsys) -> None:
    typed("generate.py prompt=a")
    folder = tmp_path / "run"
    monkeypatch.setitem(cli.named, str(tmp_path), str(folder))

    def main() -> None:
        (folder / ".hydra").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.friendly(main)()
    told = capsys.readouterr().err
    assert ended.value.code == INTERRUPTED == 130
    assert told.startswith("stopped; ") and told.count("\n") == 1 and "Traceback" not in told
    assert not folder.exists()


def test_a_folder_that_holds_anything_stays(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".lock").touch()
    (full / "samples").mkdir()
    remove_empty([str(empty), str(full), str(tmp_path / "never made")])
    assert full.exists() and not empty.exists()


def test_a_run_that_wrote_elsewhere_keeps_the_record_of_its_command(typed, tmp_path: Path, monkeypatch) -> None:
    typed("generate.py prompt=a output=elsewhere")
    folder = tmp_path / "run"
    monkeypatch.setitem(cli.named, str(tmp_path), str(folder))
    cli.friendly(lambda: (folder / ".hydra").mkdir(parents=True))()
    assert (folder / ".hydra").exists()


def test_a_training_that_has_checkpoints_says_how_to_go_on(typed, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert stopped(typed("train.py"), str(tmp_path)).endswith("with resume=true goes on there")
