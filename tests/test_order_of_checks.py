"""What is cheap to see is said before a model's weights are read: here, reading them ends the test."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from src.data.banks import CONCEPT_BANK, LEARNT_CONCEPT
from src.eval.encoders.models import NetworkEncoder
from src.modules.llmdiff.adapter_file import LLMDIFF_ADAPTER
from tests.malformed import sha, written

ADAPTER = {
    "format": LLMDIFF_ADAPTER.format,
    **{"llm": "nobody/knows-it", "llm_revision": "f00", "llm_dtype": "float32", "llm_width": "8", "num_terms": "2"},
    **{"encoding": "{}", "adapter": "{}", "backbone": "sd", "backbone_hash": "f00", "num_steps": "1"},
}
WEIGHTS = {
    "phi.weight": torch.zeros(4, 8),
    "phi_bias": torch.zeros(3, 4),
    "aggregation.gain": torch.ones(2, 1),
    "layers.a.b1": torch.zeros(()),
}
ROWS = {"k.a": torch.ones(2, 4), "v.a": torch.ones(2, 4)}


class WeightsReadError(Exception):
    """Weights were read."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    noun = {"format": CONCEPT_BANK.format, "class_noun": "dog", "backbone_hash": "f00"}
    bank = written(folder / "bank.safetensors", ROWS, noun)
    adapter = written(folder / "adapter.safetensors", WEIGHTS, ADAPTER)
    for path in (bank, adapter):
        path.with_stem(f"{path.stem}_cut").write_bytes(path.read_bytes()[:-9])
    written(folder / "bank_changed.safetensors", ROWS, noun | {"sha256": sha("x")}, stamp=False)
    written(folder / "bank_template.safetensors", ROWS, noun | {"extraction_template": "{0.__class__}"})
    written(folder / "bank_nan.safetensors", {**ROWS, "k.a": torch.full((2, 4), float("nan"))}, noun)
    rival = {"format": LEARNT_CONCEPT.format, "method": "cones2", "class_noun": "dog", "backbone_hash": "f00"}
    written(folder / "cones2.safetensors", {"residual.0": torch.zeros(1, 4)}, rival)
    written(folder / "adapter_wide.safetensors", WEIGHTS, ADAPTER | {"llm_width": "1000000000000"})
    (folder / "text.txt").write_text("a text", encoding="utf-8")
    for name, damage in (("photos", False), ("photos_cut", True), ("photos_text", True), ("none", True)):
        (folder / name).mkdir()
        for number in range(3 if name != "none" else 0):
            path = folder / name / f"{number}.png"
            Image.effect_noise((64, 64), 90).convert("RGB").save(path)
            path.with_suffix(".json").write_text('{"style": "noise", "content": "a cat"}', encoding="utf-8")
            if damage and number == 2:
                path.write_bytes(path.read_bytes()[:2000] if name == "photos_cut" else b"a text")
    (folder / "llm").mkdir()
    (folder / "llm_pickled").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (folder / "llm_pickled" / name).write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, root: Path) -> Iterator[None]:
    def read(*_: object, **__: object) -> None:
        raise WeightsReadError

    for owner in (DiffusionPipeline, transformers.AutoModelForCausalLM, transformers.PreTrainedModel):
        monkeypatch.setattr(owner, "from_pretrained", read)
    monkeypatch.setattr(NetworkEncoder, "load", read)
    monkeypatch.setattr("timm.create_model", read)
    monkeypatch.chdir(root)
    yield
    GlobalHydra.instance().clear()


GENERATE = ["generate.py", "prompt='a <rex> on the grass'"]
STYLE = ["generate.py", "method=style_svd", "prompt='a cat'"]
LLM = ["generate.py", "method=llmdiff", "prompt='a cat'"]
TRAIN = ["train.py", "+experiment=concept_dog"]
SUITE = ["eval.py", "suite=world"]
SWEEP = ["eval.py", "sweep=components"]
CASES: list[tuple[list[str], str]] = [
    ([*GENERATE, "bank.rex=FILES/nowhere.safetensors"], "no file at"),
    ([*GENERATE, "bank.rex=FILES"], "no file at"),
    ([*GENERATE, "bank.rex=FILES/bank_cut.safetensors"], "it may be truncated"),
    ([*GENERATE, "bank.rex=FILES/text.txt"], "cannot be read as a concept bank"),
    ([*GENERATE, "bank.rex=FILES/photos/0.png"], "cannot be read as a concept bank"),
    ([*GENERATE, "bank.rex=FILES/adapter.safetensors"], "is not a concept bank"),
    ([*GENERATE, "bank.rex=FILES/bank_changed.safetensors"], "does not match its sha256"),
    ([*GENERATE, "bank.rex=FILES/bank_template.safetensors"], "has extraction_template="),
    ([*GENERATE, "bank.rex=FILES/bank_nan.safetensors"], "not finite"),
    ([*GENERATE, "bank.rex=FILES/cones2.safetensors"], "was learnt by cones2, but latexblend is to draw it"),
    ([*GENERATE, "bank.rex=FILES/cones2.safetensors", "method=omg"], "cones2, but dreambooth_lora is to draw it"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "method=cones2"], "latexblend, but cones2 is to draw it"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "bank.tom=FILES/nowhere"], "no prompt names it"),
    ([*GENERATE, "bank.tom=FILES/bank.safetensors"], "names <rex>"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "backbone.path=FILES/nowhere"], "there is no model at"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "layout.rx=[0,0,1,1]"], "did you mean layout.rex"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "layout.rex=[0,0,2,1]"], "leaves the image"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "layout.rex=[0.5,0,0.5,1]"], "x1 is above x0"),
    ([*GENERATE, "bank.rex=FILES/bank.safetensors", "layout.rex=FILES/nowhere.png"], "there is no image file"),
    ([*LLM], "no adapter is given"),
    ([*LLM, "adapter=FILES/nowhere.safetensors"], "no file at"),
    ([*LLM, "adapter=FILES/adapter_cut.safetensors"], "it may be truncated"),
    ([*LLM, "adapter=FILES/bank.safetensors"], "is not an LLMDiff adapter"),
    ([*LLM, "adapter=FILES/photos/0.png"], "cannot be read as an LLMDiff adapter"),
    ([*LLM, "adapter=FILES/adapter_wide.safetensors"], "has llm_width="),
    ([*LLM, "adapter=FILES/adapter.safetensors"], "method.encoder.download=true"),
    ([*LLM, "adapter=FILES/adapter.safetensors", "method.encoder.path=FILES/llm"], "no language model folder"),
    ([*STYLE, "style=FILES/nowhere.png"], "there is no image file"),
    ([*STYLE, "style=FILES/photos_cut/2.png"], "cannot read the image"),
    ([*STYLE, "style=FILES/text.txt"], "cannot read the image"),
    ([*STYLE, "style=FILES/bank.safetensors"], "cannot read the image"),
    ([*STYLE, "style=[FILES/photos/0.png,FILES/nowhere.png]"], "there is no image file"),
    ([*STYLE, "style=FILES/photos/0.png", "backbone.path=FILES/nowhere"], "there is no model at"),
    ([*TRAIN, "data.instance_dir=FILES/nowhere"], "does not exist"),
    ([*TRAIN, "data.instance_dir=FILES/text.txt"], "is a file"),
    ([*TRAIN, "data.instance_dir=FILES/none"], "no images in"),
    ([*TRAIN, "data.instance_dir=FILES/photos_cut"], "cannot read the image"),
    ([*TRAIN, "data.instance_dir=FILES/photos_text"], "cannot read the image"),
    ([*TRAIN, "data.class_dir=FILES/nowhere"], "does not exist"),
    ([*TRAIN, "data.class_dir=FILES/photos_cut"], "cannot read the image"),
    ([*TRAIN, "concept=../../x"], "concept"),
    ([*TRAIN, "concept='my dog'"], "concept"),
    ([*TRAIN, "class_noun='{0.__class__}'"], "class_noun"),
    ([*TRAIN, "name=../../x"], "name is "),
    ([*TRAIN, "name=/tmp/x"], "name is "),
    (["train.py", "+experiment=llmdiff", "llm.path=FILES/llm"], "no language model folder"),
    (["train.py", "+experiment=llmdiff", "llmdiff.encoding.blocks=[99]"], "99"),
    (["train.py", "+experiment=llmdiff", "llmdiff.encoding.features=x"], "encoding.features"),
    (["eval.py", "bank.rex=FILES/nowhere.safetensors"], "no file at"),
    ([*SUITE, "metrics.vlm=FILES/nowhere"], "is no vision-language model folder: it has no config.json"),
    ([*SUITE, "metrics.vlm=FILES/llm_pickled"], "holds no *.safetensors"),
    (["eval.py", "suite=dreambench_plus", "suite.folder=FILES/nowhere"], "holds no folder images"),
    (["eval.py", "suite=dreambench_plus"], "suite.folder is not set"),
    (["eval.py", "bank.rex=FILES/bank_cut.safetensors"], "it may be truncated"),
    (["eval.py", "bank.rex=FILES/bank_changed.safetensors"], "does not match its sha256"),
    (["eval.py", "bank.rex=FILES/text.txt"], "cannot be read as a concept bank"),
    (["eval.py", "bank.rex=FILES/bank.safetensors", "references.rex=FILES/nowhere"], "does not exist"),
    (["eval.py", "bank.rex=FILES/bank.safetensors", "references.rex=FILES/photos_cut"], "cannot read the image"),
    (["eval.py", "bank.rex=FILES/bank.safetensors"], "no reference images for rex"),
    (["eval.py", "method=llmdiff", "protocol=captions"], "no adapter is given"),
    (["eval.py", "method=llmdiff", "protocol=captions", "adapter=FILES/bank.safetensors"], "is not an LLMDiff adapter"),
    (["eval.py", "protocol=style", "method=style_svd", "protocol.styles.folder=FILES/nowhere"], "does not exist"),
    (["eval.py", "protocol=style", "method=style_svd", "protocol.styles.folder=FILES/photos_cut"], "cannot read the"),
    (
        ["eval.py", "protocol=style_parti", "method=style_svd", "protocol.prompts.tsv_path=FILES/nowhere"],
        "there is no file",
    ),
    (
        ["eval.py", "protocol=style_parti", "method=style_svd", "protocol.prompts.tsv_path=FILES/photos/0.png"],
        "0.png",
    ),
    ([*SUITE, "suite.subjects.pip.data.instance_dir=FILES/nowhere"], "does not exist"),
    ([*SUITE, "suite.subjects.herbie.data.instance_dir=FILES/photos_cut"], "cannot read the image"),
    ([*SUITE, "suite.subjects.herbie.class_noun=''"], "class_noun"),
    ([*SUITE, "training.data.class_dir=FILES/nowhere"], "does not exist"),
    ([*SWEEP, "protocol.styles.folder=FILES/nowhere"], "does not exist"),
    ([*SWEEP, "protocol.styles.folder=FILES/photos_text"], "cannot read the image"),
    ([*SWEEP, "paths.images_dir=elsewhere"], "paths.images_dir=elsewhere is given, but the points of a sweep"),
    (["eval.py", "suite=llmdiff", "protocol=captions", "training.llm.path=FILES/llm"], "no language model folder"),
    (["eval.py", "suite=llmdiff", "protocol=captions", "adapter=FILES/adapter.safetensors"], "leave one of the two"),
]


@pytest.mark.parametrize(("command", "sentence"), CASES, ids=lambda value: " ".join(value)[-70:])
def test_what_is_cheap_is_said_first(files, tmp_path, monkeypatch, capsys, command, sentence) -> None:
    script, *arguments = (word.replace("FILES", str(files)) for word in command)
    root = [f"paths.root={tmp_path}", f"paths.cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, *root])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr().err.splitlines()
    assert sentence in said[-1], said


@pytest.mark.parametrize("command", [GENERATE[:1] + ["prompt='a cat'"], [*STYLE, "style_prompt=neon"], TRAIN], ids=str)
def test_the_test_sees_weights_being_read(tmp_path, monkeypatch, command) -> None:
    root = [f"paths.root={tmp_path}", f"paths.cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", [*command, *root])
    with pytest.raises(Exception, match="weights|Weights|target") as raised:
        runpy.run_path(command[0], run_name="__main__")
    assert isinstance(raised.value, WeightsReadError) or isinstance(raised.value.__cause__, WeightsReadError)
