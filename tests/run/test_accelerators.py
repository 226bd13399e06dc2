"""Any accelerator that torch names is found for drawing; what Lightning does not know is said before a training."""

import re
from types import SimpleNamespace

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf

import src.run.cli  # noqa: F401  It registers what configurations ask for.
from src.data.peak_memory import peak_memory
from src.modules.generator import usable_device
from src.run.precision import fastest_precision
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


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({"avx512_f": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"neon": True, "bf16": True}, "bf16-mixed"),
    ],
)
def test_a_processor_that_would_emulate_bfloat16_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], found: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert fastest_precision("cpu") == found
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fastest_precision("cpu") == "32-true"


@pytest.mark.parametrize(("kind", "found"), [("has it", "bf16-mixed"), ("emulates it", "32-true"), ("mps", "32-true")])
def test_a_card_trains_in_bfloat16_where_it_has_it(monkeypatch: pytest.MonkeyPatch, kind: str, found: str) -> None:
    there_is(monkeypatch, "mps" if kind == "mps" else "cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind != "mps")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or kind == "has it"
    )
    assert fastest_precision("gpu") == found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["+experiment=concept_dog", "trainer=gpu"], "bf16-mixed"),
        (["+experiment=concept_sdxl"], "32-true"),
        (["+experiment=concept_sd15"], "bf16-mixed"),
        (["+experiment=llmdiff"], "32-true"),
        (["+experiment=llmdiff", "trainer.precision=bf16-mixed"], "bf16-mixed"),
    ],
)
def test_configurations_ask_for_it(
    configurations: None, monkeypatch: pytest.MonkeyPatch, arguments: list[str], found: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert compose("train", overrides=arguments).trainer.precision == found
