"""Any accelerator that torch names is found for drawing; what Lightning does not know is said before a training."""

import re
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from src.data.peak_memory import peak_memory
from src.modules.generator import usable_device
from src.run.start import check_machine


def there_is(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    found = None if name is None else torch.device(name)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0 if found is None else 1)


def trainer(**options):
    return OmegaConf.create({"trainer": {"accelerator": "gpu", "devices": 1, **options}})


@pytest.mark.parametrize(("name", "found"), [(None, "cpu"), ("meta", "meta")])
def test_auto_is_what_torch_names(monkeypatch: pytest.MonkeyPatch, name: str | None, found: str) -> None:
    there_is(monkeypatch, name)
    assert usable_device("auto", "method.device").type == found


def test_a_device_that_is_not_there_is_refused_with_those_that_may_be() -> None:
    with pytest.raises(ValueError, match="give method.device=cpu, or cuda, mps or xpu where there is one"):
        usable_device("xpu", "method.device")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_what_lightning_knows_trains(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    there_is(monkeypatch, name)
    check_machine(trainer())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "xpu",
            "but Lightning trains on cuda and mps, and this machine has xpu, which only draws (method.device=xpu)",
        ),
        (None, "trainer.accelerator=gpu, but this machine has no GPU that torch can use; give trainer=cpu"),
    ],
)
def test_what_it_does_not_know_is_said(monkeypatch: pytest.MonkeyPatch, name: str | None, sentence: str) -> None:
    there_is(monkeypatch, name)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_machine(trainer())


@pytest.mark.parametrize(
    ("backend", "most"),
    [
        (SimpleNamespace(max_memory_allocated=lambda device: 7, driver_allocated_memory=lambda: 9), 7),
        (SimpleNamespace(driver_allocated_memory=lambda: 9), 9),
    ],
)
def test_the_peak_is_that_of_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, backend: SimpleNamespace, most: int
) -> None:
    there_is(monkeypatch, "xpu")
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    assert peak_memory() == most and peak_memory(torch.device("cpu")) > 2**20
