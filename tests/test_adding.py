"""The pages "Add a method" and "Add a backbone" of docs/adding.md, done as they say, with their own code."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from src.data.request import Request, TextStyle
from src.eval.draw import draw_missing
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.training.learner import TrainingRecord
from src.run.cli import respelled
from src.run.types import check_types
from tests.modules.backbones import test_contract as contract
from tests.tiny import tiny_sd


@pytest.fixture
def added(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a page's module and YAML where it says; returns the folder of the YAML."""
    page = (root / "docs" / "adding.md").read_text(encoding="utf-8")

    def add(title: str) -> Path:
        section = page.split(f"## {title}\n")[1].split("\n## ")[0]
        for place, kind, block in re.findall(r"`((?:src|conf)/[\w/.]+)`\s+```(\w+)\n(.*?)```", section, re.DOTALL):
            if kind == "python":
                module = types.ModuleType(place.removesuffix(".py").replace("/", "."))
                exec(block, module.__dict__)
                monkeypatch.setitem(sys.modules, module.__name__, module)
                parent, _, name = module.__name__.rpartition(".")
                if parent not in sys.modules:
                    monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
                monkeypatch.setattr(sys.modules[parent], name, module, raising=False)
            else:
                path = tmp_path / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block, encoding="utf-8")
        return tmp_path / "conf"

    return add


def composed(root: Path, conf: Path, *arguments: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return compose("generate", [*respelled(arguments, "generate.py"), f"hydra.searchpath=[file://{conf}]"])


def test_a_rival_is_added_as_the_page_says(added, root: Path, tmp_path: Path) -> None:
    conf = added("Add a rival")
    tiny_sd(tmp_path / "words").save_pretrained(tmp_path / "sd")
    here = [f"backbone.path={tmp_path / 'sd'}"]
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[file://{conf}]", f"paths.run_dir={tmp_path}", f"paths.cache_dir={tmp_path}"]
    typed = respelled(["+experiment=concept_dog", "method=new_word", *here], "train.py")
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("train", [*typed, *search])
    check_types(cfg)
    learner = instantiate(cfg.method).learner
    path = learner.export(TrainingRecord(0, 0.1, 0.0))["concept bank"]
    cfg = composed(root, conf, "method=new_word", f"bank.rex={path}", *here)
    check_types(cfg)
    generator = instantiate(cfg.method, _convert_="all")
    image, plain = generator.sample([Request("a <rex>", 0), Request("a dog", 0)])
    assert (np.asarray(image) != np.asarray(plain)).any()


def test_a_method_is_added_as_the_page_says(added, root: Path, tmp_path: Path) -> None:
    conf = added("Add a method")
    tiny_sd(tmp_path / "words").save_pretrained(tmp_path / "sd")
    here = [f"backbone.path={tmp_path / 'sd'}"]
    cfg = composed(root, conf, "method=without_words", *here)
    check_types(cfg)
    generator = instantiate(cfg.method, _convert_="all")
    requests = [Request("a dog", seed) for seed in (0, 1)]
    paths = draw_missing(generator, requests, tmp_path / "images")
    assert [path.exists() for path in paths] == [True, True]
    plain = ConceptGenerator(generator.backbone).sample(requests)
    assert not np.array_equal(np.asarray(generator.sample(requests)[0]), np.asarray(plain[0]))
    other = composed(root, conf, "method=without_words", "backbone.sampling.guidance_scale=1.5", *here)
    assert instantiate(other.method, _convert_="all").identity() != generator.identity()
    with pytest.raises(ValueError, match="draws no styles"):
        generator.check([Request("a dog", 0, TextStyle("neon"))])
    with pytest.raises(ValueError, match="a NextScalePipeline, but a Backbone is needed; choose backbone="):
        check_types(composed(root, conf, "method=without_words", "backbone=world_infinity"))


def test_a_backbone_is_added_as_the_page_says(added, root: Path, tmp_path: Path) -> None:
    conf = added("Add a backbone")
    target = yaml.safe_load((conf / "backbone" / "plain.yaml").read_text(encoding="utf-8"))["_target_"]
    pipeline = tiny_sd(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "saved")
    backbone = instantiate({"_target_": target, "path": str(tmp_path / "saved"), "sampling": contract.SAMPLING})
    contract.test_without_concepts_every_image_is_the_stock_pipelines_bit_for_bit(backbone)
    contract.test_a_concept_changes_its_own_image_alone_and_nothing_stays(backbone)
    contract.test_a_concept_is_learnt_kept_and_drawn(backbone, tmp_path)
