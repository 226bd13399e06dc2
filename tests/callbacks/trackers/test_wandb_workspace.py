"""The dashboard, without an account."""

import json
import os
import sys
from pathlib import Path

import pytest

from src.callbacks.trackers.workspace import main

pytest.importorskip("wandb_workspaces")


def test_it_shows_its_sections_and_sends_nothing(capsys) -> None:
    assert main(["--entity", "me", "--dry-run"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["train", "val", "test", "perf", "samples", "sweep"]
    assert "val/dino" in lines["val"] and "perf/it_s" in lines["perf"] and "samples/table" in lines["samples"]


def test_the_specification_names_our_metrics_and_a_sweeps_settings() -> None:
    from src.callbacks.trackers.panels import dashboard

    workspace = dashboard("me", "atelier", ["method.alpha"])
    # What would be sent.
    text = workspace._to_model().model_dump_json(by_alias=True)
    assert json.loads(text)
    for key in ("train/loss", "val/loss", "test/concept/dino", "perf/hours_left", "samples/images", "samples/table"):
        assert json.dumps(key) in text
    assert "config:method.value.alpha" in text and "summary:val/dino" in text
    assert "trainer/global_step" in text


def test_every_panel_of_a_metric_is_in_the_section_of_its_name() -> None:
    from src.callbacks.trackers.panels import dashboard, outline

    for section, titles in outline(dashboard("me", "atelier")).items():
        assert all(title.split("/")[0] == section for title in titles if "/" in title)


def test_without_a_key_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "WANDB_API_KEY" not in os.environ
    assert main(["--entity", "me"]) == 1
    assert "type: wandb login" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "src.callbacks.trackers.panels", raising=False)
    assert main(["--entity", "me", "--dry-run"]) == 1
    assert 'pip install -e ".[dashboard]"' in capsys.readouterr().err
