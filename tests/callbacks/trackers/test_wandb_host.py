"""When a W&B run goes online."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from src.callbacks.trackers.wandb import answers, choose_mode, has_api_key


def serve(code: int) -> HTTPServer:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that takes a connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(("code", "heard"), [(200, True), (404, True), (503, False)])
def test_any_answer_but_a_server_error_counts(code: int, heard: bool) -> None:
    server = serve(code)
    assert answers(f"http://127.0.0.1:{server.server_port}", 3.0) is heard
    server.shutdown()


def test_a_silent_host_costs_the_stated_time_and_a_closed_port_nothing(silent: str) -> None:
    started = time.monotonic()
    assert not answers(silent, 0.3)
    assert 0.3 <= time.monotonic() - started < 10
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    started = time.monotonic()
    assert not answers(closed, 60.0)
    assert time.monotonic() - started < 30


def test_a_key_comes_from_the_environment_or_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_api_key("https://wandb.example.org")
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password k\n", encoding="utf-8")
    assert has_api_key("https://wandb.example.org")
    assert not has_api_key("https://other.example.org")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n", encoding="utf-8")
    assert has_api_key("https://api.some-newer-name.example.org")
    (tmp_path / "netrc").write_text("no netrc at all", encoding="utf-8")
    assert not has_api_key("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_api_key("https://other.example.org")


def test_online_needs_a_key_and_an_answer(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(200)
    url = f"http://127.0.0.1:{server.server_port}"
    assert choose_mode(url, "online", 3.0) == ("offline", "no API key is set")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert choose_mode(url, "online", 3.0) == ("online", None)
    assert choose_mode(silent, "online", 0.2) == ("offline", f"{silent} did not answer within 0.2 s")
    server.shutdown()


def test_what_the_user_asked_for_is_taken(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode(silent, "disabled", 30.0) == ("disabled", None)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert choose_mode(silent, "online", 30.0) == ("online", None)
