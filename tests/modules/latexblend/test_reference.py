"""Files of the structure that LaTexBlend's published code writes, and the banks that are made of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.schema import RefusedFileError
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.latexblend.reference import bank_of_reference, read_reference
from tests.tiny import tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}


def learner(folder: Path, kind: str = "sdxl") -> LaTexBlend:
    made = LaTexBlend(UNetBackbone(MAKERS[kind](folder), kind), Subject("dog"), str(folder), str(folder / "bank"))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=random)
    return made


def checkpoint(trained: LaTexBlend) -> dict[str, Any]:
    """What the published code saves of a training."""
    layers = trained.backbone.text_layers()
    with torch.no_grad():
        unet = {
            f"{name[2:]}.to_{name[0]}.weight": linear.weight + trained.delta.weight(name)
            for name, linear in layers.items()
        }
    vectors = [vector.detach() for vector in trained.delta.modifier]
    return {"unet": unet, "modifier_token": {"<new1>": vectors if len(vectors) > 1 else vectors[0]}}


def stored_bank(trained: LaTexBlend) -> dict[str, dict[str, torch.Tensor]]:
    """What it saves as a bank: half precision, views of whole prompts of a batch."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, rows in trained.flow.concept_rows().items():
        whole = torch.zeros(2, 77, rows.shape[1], dtype=torch.float16)
        whole[0, 3:5] = rows.detach()
        found.setdefault(f"{name[2:]}.processor", {})[name[0]] = whole[0, 3:5]
    return found


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_checkpoint_becomes_the_bank_of_what_it_learnt(tmp_path: Path, kind: str) -> None:
    trained = learner(tmp_path, kind)
    torch.save(checkpoint(trained), tmp_path / "delta.bin")
    stock = UNetBackbone(MAKERS[kind](tmp_path / "again"), kind)
    bank = bank_of_reference(tmp_path / "delta.bin", "dog", stock)
    expected = trained.flow.concept_rows()
    assert bank.rows.keys() == expected.keys()
    for name, rows in bank.rows.items():
        torch.testing.assert_close(rows, expected[name].detach(), rtol=1e-4, atol=1e-5)
    again = ConceptBank.load(bank.save(tmp_path / "rex.safetensors"))
    widths = {name: linear.out_features for name, linear in stock.text_layers().items()}
    again.check(stock.fingerprint, widths, kind)
    assert again.metadata["training"] == "LaTexBlend's published code, delta.bin"


def test_a_bank_becomes_ours_without_the_storage_around_it(tmp_path: Path) -> None:
    trained = learner(tmp_path)
    torch.save(stored_bank(trained), tmp_path / "bank.pt")
    bank = bank_of_reference(tmp_path / "bank.pt", "dog", trained.backbone)
    expected = trained.flow.concept_rows()
    assert all(torch.equal(rows, expected[name].half().float()) for name, rows in bank.rows.items())
    assert all(rows.untyped_storage().nbytes() == 4 * rows.numel() for rows in bank.rows.values())
    assert bank.save(tmp_path / "rex.safetensors").stat().st_size < (tmp_path / "bank.pt").stat().st_size / 5


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    trained = learner(tmp_path)
    path, backbone = tmp_path / "file.bin", trained.backbone

    def refused(content: Any, noun: str = "dog", match: str = "") -> None:
        torch.save(content, path)
        with pytest.raises(RefusedFileError, match=match):
            bank_of_reference(path, noun, backbone)

    whole, rows = checkpoint(trained), stored_bank(trained)
    refused(rows, "guinea pig", r"holds 2 rows a layer, but V\* guinea pig has \d tokens; give the class_noun")
    refused({**whole, "modifier_token": {}}, match="holds the words none, but a bank is of one")
    two = {"<new1>": [], "<new2>": []}
    refused({**whole, "modifier_token": two}, match="holds the words <new1>, <new2>, but a bank is of one")
    one = {"<new1>": whole["modifier_token"]["<new1>"][0]}
    refused({**whole, "modifier_token": one}, match=r"has V\* of 1 text encoders, .* sdxl reads; give the backbone")
    layer = next(iter(whole["unet"]))
    less = {name: weight for name, weight in whole["unet"].items() if name != layer}
    refused(
        {**whole, "unet": less}, match=r"differ in 1 tensors, first .*weight: no such tensor there, \(\d+, \d+\) here"
    )
    refused({"weights": torch.ones(2)}, match="is no file of LaTexBlend's published code: a checkpoint has unet and")
    refused([1, 2], match="is no file of LaTexBlend's published code")


def test_nothing_but_tensors_is_read(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"unet": Code()}, tmp_path / "delta.bin")
    with pytest.raises(
        RefusedFileError, match="is damaged, or holds more than tensors, which is not read: a checkpoint"
    ):
        read_reference(tmp_path / "delta.bin")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "text.bin").write_text("no tensors", encoding="utf-8")
    with pytest.raises(RefusedFileError, match="is damaged, or holds more than tensors"):
        read_reference(tmp_path / "text.bin")
    with pytest.raises(RefusedFileError, match="there is no file .*none.bin; give delta.bin or a bank of"):
        read_reference(tmp_path / "none.bin")
