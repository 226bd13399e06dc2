"""The command that makes a bank from a file of LaTexBlend's published code, on the world."""

import shlex
from pathlib import Path

import pytest
import torch

from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from src.run.import_bank import main


@pytest.fixture
def backbone(root: Path) -> UNetBackbone:
    return UNetBackbone.from_pretrained(str(root / "world" / "sd"))


def test_a_checkpoint_is_imported_and_the_command_that_follows_draws_with_it(
    backbone: UNetBackbone, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    unet = {
        f"{name[2:]}.to_{name[0]}.weight": linear.weight.detach().clone()
        for name, linear in backbone.text_layers().items()
    }
    vector = backbone.text_encoders[0].get_input_embeddings().weight[5].detach().clone()
    torch.save({"unet": unet, "modifier_token": {"<new1>": vector}}, tmp_path / "delta.bin")
    target = tmp_path / "rex.safetensors"
    typed = [str(tmp_path / "delta.bin"), str(target), "class_noun=dog", "backbone=world_sd"]
    assert main(typed) == 0
    bank = ConceptBank.load(target)
    assert bank.class_noun == "dog" and bank.num_tokens == 2
    ConceptGenerator(backbone, {"rex": bank})
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["next:", "python", "generate.py"]
    assert words[3:] == [
        "prompt='a <rex> on the beach'",
        f"bank.rex={target}",
        "method.keep_context=false",
        "method.rectification.bind=true",
        "backbone=world_sd",
    ]
    assert main(typed) == 1
    assert "rex.safetensors is there already; give another file" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [[], ["delta.bin", "class_noun=dog"], ["delta.bin", "rex.safetensors"], ["--help"]])
def test_what_is_missing_is_said_with_the_command(typed: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(typed) == 1
    assert capsys.readouterr().err == (
        "error: give two files and the noun: "
        "python -m src.run.import_bank delta.bin rex.safetensors class_noun=dog backbone=sdxl\n"
    )


def test_a_mistyped_backbone_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"unet": {}, "modifier_token": {}}, tmp_path / "delta.bin")
    target = str(tmp_path / "rex.safetensors")
    assert main([str(tmp_path / "delta.bin"), target, "class_noun=dog", "backbone=sdxx"]) == 1
    assert "sdxx" in capsys.readouterr().err
