"""What ``wandb sync`` sends of a run that was killed and resumed offline, to a host that keeps what it is sent."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.trackers.test_wandb_tracker import PART

ROOT = Path(__file__).parents[3]
PROJECT = {"id": "p", "name": "atelier", "entity": {"id": "e", "name": "e"}}


class Host(ThreadingHTTPServer):
    """The few answers that ``wandb sync`` needs, about one run."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.history: list[dict[str, Any]] = []
        self.known: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def run(self, name: str) -> dict[str, Any]:
        step = self.history[-1]["_step"] if self.history else 0
        counts = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]), "eventsTail": "[]"}
        texts = {"config": "{}", "wandbConfig": "{}", "summaryMetrics": json.dumps({"_step": step})}
        return {
            "id": "r",
            "name": name,
            "displayName": name,
            "tags": [],
            "project": PROJECT,
            **counts,
            **tails,
            **texts,
        }

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        kind = found[1] if found else ""
        if kind == "RunResumeStatus":
            run = self.run(given["name"]) if given["name"] in self.known else None
            return {"model": {**PROJECT, "bucket": run}}
        if kind == "UpsertBucket":
            is_new = given["name"] not in self.known
            self.known.add(given["name"])
            return {"upsertBucket": {"bucket": self.run(given["name"]), "inserted": is_new}}
        if kind == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {"serverInfo": {"features": []}, "viewer": {"id": "u", "entity": "e", "flags": "{}", "username": "e"}}

    def stream(self, files: dict[str, Any]) -> None:
        for chunk in [files["wandb-history.jsonl"]] if "wandb-history.jsonl" in files else []:
            self.history[chunk["offset"] :] = [json.loads(line) for line in chunk["content"]]


class Request(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        told: dict[str, Any] = {}
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            told = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body).get("files") or {})
        answer = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_GET = do_POST  # noqa: N815

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def test_both_folders_become_one_run_with_one_history(tmp_path: Path, host: Host) -> None:
    for first, last, end in ((0, 6, "kill"), (4, 9, "end")):
        part = PART.replace("if step % 3 == 0", "if False")
        command = [sys.executable, "-c", part, str(tmp_path), str(first), str(last), end]
        subprocess.run(command, cwd=ROOT, check=end == "end", capture_output=True)
    folders = sorted(str(path) for path in tmp_path.glob("wandb/offline-run-*"))
    online = {"WANDB_BASE_URL": host.url, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *folders]
    subprocess.run(command, env=os.environ | online, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert len(folders) == 2 and len(host.known) == 1
    assert [row["_step"] for row in host.history] == list(range(18))
    rows = [(row["trainer/global_step"], row["train/loss"]) for row in host.history if "train/loss" in row]
    assert rows == [(step, pytest.approx(1 / (1 + step))) for step in range(9)]
