"""A desk on a tiny model, whose worker is a thread of the test: it draws as the process does, without its start."""

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.run.desk.app import Desk, Start, application
from src.run.desk.worker import Message, Worker, work
from tests.tiny import tiny_sd

PAGE = "0123456789abcdef"


class ThreadWorker(Worker):
    def __init__(self, arguments: Sequence[Any], on_message: Callable[[Message], None]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._on_message = on_message
        self.thread = threading.Thread(target=work, args=(theirs, *arguments), daemon=True)
        self.thread.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        self.send("stop", 0)
        self.thread.join(20)


def save_bank(backbone: UNetBackbone, path: Path, seed: int = 0, **metadata: str) -> str:
    noise = torch.Generator().manual_seed(seed)
    rows = {
        name: torch.randn(2, linear.out_features, generator=noise) for name, linear in backbone.text_layers().items()
    }
    given = {"class_noun": "dog", "backbone_hash": backbone.fingerprint, "backbone": "sd", "steps": "3", **metadata}
    path.parent.mkdir(parents=True, exist_ok=True)
    ConceptBank(rows, given).save(path)
    return str(path)


def place(folder: Path) -> tuple[list[str], str]:
    """A tiny model and a bank of it: the arguments that name the model, and the bank's path."""
    tiny_sd(folder).save_pretrained(folder / "sd")
    backbone = UNetBackbone.from_pretrained(str(folder / "sd"))
    photos = folder / "outputs" / "photos"
    photos.mkdir(parents=True)
    backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1}))[0].save(photos / "00.png")
    bank = save_bank(
        backbone,
        folder / "outputs" / "train" / "concept_rex" / "run" / "exports" / "rex.safetensors",
        references=str(photos),
    )
    return [f"backbone.path={folder / 'sd'}", "method.sampling.num_inference_steps=2"], bank


@contextlib.contextmanager
def opened(
    folder: Path, base: Sequence[str], worker: type[Worker] = ThreadWorker, **settings: Any
) -> Iterator[tuple[TestClient, Desk]]:
    start = Start(
        folder / "outputs", base, settings.pop("banks", {}), "world_sd", cache_dir=str(folder / ".cache"), **settings
    )
    app, desk = application(start, worker)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client, desk


def asked(client: TestClient, *cells: dict[str, Any], page: str = PAGE, **more: Any) -> dict[str, Any]:
    answer = client.post("/api/draw", json={"page": page, "cells": list(cells), **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def heard(
    client: TestClient,
    kind: str,
    *cells: str,
    page: str = PAGE,
    number: int = 1,
    version: int = 0,
    seconds: float = 60,
) -> list[dict[str, Any]]:
    """Wait for events of a kind, one of each of some cells or so many of any; returns all events since the start."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        events = client.get("/api/events", params={"page": page, "wait": "0"}).json()["events"]
        found = [one.get("cell") for one in events if one["kind"] == kind and one.get("version", 0) >= version]
        if len(found) >= number and set(cells) <= set(found):
            return events
        time.sleep(0.02)
    raise AssertionError(f"no {kind} in {[event['kind'] for event in events]}")
