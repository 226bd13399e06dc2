"""Entry points are in UTF-8, whatever the locale."""

import locale
import os
import sys

import pytest

from src.run.utf8 import check_utf8, start_in_utf8


def main() -> None:
    """An entry point's."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """What Python would be started anew with."""
    found: list = []
    monkeypatch.setattr(os, "execv", lambda *words: found.append(words))
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    monkeypatch.setattr(main, "__module__", "__main__")
    monkeypatch.setenv("PYTHONUTF8", "0")
    return found


def test_python_starts_anew_once_in_its_utf8_mode(started: list) -> None:
    start_in_utf8(main)
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["PYTHONUTF8"] == "1"
    start_in_utf8(main)
    assert len(started) == 1


@pytest.mark.parametrize("encoding", ["UTF-8", "utf8"])
def test_in_utf8_nothing_is_started(started: list, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: encoding)
    start_in_utf8(main)
    assert not started


def test_what_imports_an_entry_point_is_not_started_anew(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "__module__", "train")
    start_in_utf8(main)
    assert not started


def test_an_argument_that_is_no_text_is_said() -> None:
    check_utf8(["prompt='\u4e00\u53ea <rex>'"])
    with pytest.raises(ValueError, match="is not UTF-8"):
        check_utf8([os.fsdecode(b"prompt=f\xfcr")])
