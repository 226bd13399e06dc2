"""What a training of LLMDiff draws on its way and leaves at its end: the averaged adapter."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from src.callbacks.sample_grid import SampleGrid
from src.data.request import Request
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import LLMDiffGenerator, trained_encoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.learner import LLMDiff
from src.modules.training.learner import TrainingRecord
from src.run.cli import respelled
from tests.llmdiff_training import MAKERS, LatentData, Trace, trainer, training
from tests.llms import tiny_llm_folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


def equal(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_grids_and_validation_see_the_average_and_leave_the_last_weights(tmp_path: Path, llm: Path) -> None:
    module, data, requests = (
        training(tmp_path, llm, sampling={"num_inference_steps": 2}),
        LatentData(),
        [Request("a", 0)],
    )
    trainer(3, tmp_path).fit(module, data)
    last, average = (
        [tensor.clone() for tensor in tensors] for tensors in (module.averaged_parameters, module.ema.shadow_params)
    )
    assert not equal(last, average)

    def seen() -> tuple[np.ndarray, float]:
        loss = trainer(0, tmp_path, limit_val_batches=1.0).validate(module, data, verbose=False)[0]["val/loss"]
        return np.asarray(module.sample(requests)[0]), loss

    image, loss = seen()
    assert equal(last, module.averaged_parameters) and equal(average, module.ema.shadow_params)
    with pytest.raises(ValueError, match="at most 128"):
        module.sample([Request("dog " * 200, 0)])
    assert equal(last, module.averaged_parameters)
    module.ema.copy_to(module.averaged_parameters)
    again = seen()
    assert np.array_equal(image, again[0]) and loss == again[1]
    module.ema.shadow_params = last
    other = seen()
    assert not np.array_equal(image, other[0]) and loss != other[1]


def test_grids_change_nothing_that_is_learnt(tmp_path: Path, llm: Path) -> None:
    traces = []
    for every in (0, 1):
        trace, grid = Trace(), SampleGrid(str(tmp_path / f"every-{every}"), ["a red dog"], 1, every)
        module = training(tmp_path, llm, sampling={"num_inference_steps": 1})
        trainer(4, tmp_path, trace, grid).fit(module, LatentData())
        traces.append((trace.losses, module.state_dict().values()))
    assert traces[0][0] == traces[1][0] and equal(traces[0][1], traces[1][1])
    assert len(list((tmp_path / "every-1").glob("step-*.png"))) == 5


def test_the_export_is_the_average_and_draws(tmp_path: Path, llm: Path) -> None:
    module, data = training(tmp_path, llm), LatentData()
    trainer(3, tmp_path).fit(module, data)
    requests = [Request("a red dog", 0)]
    drawn = module.sample(requests)
    assert np.array_equal(drawn[0], module.sample(requests)[0]) and module.learner.adapter.training
    average = [tensor.clone() for tensor in module.ema.shadow_params]
    assert not equal(average, module.learner.adapter.parameters())
    exports = module.export()
    path = exports["adapter"]
    assert exports["next"].startswith(f"python generate.py method=llmdiff adapter={path} ")
    loaded = LLMDiffAdapter.load(path, module.learner.backbone)
    assert equal(average, loaded.parameters()) and loaded.metadata["num_steps"] == "3"
    assert json.loads(loaded.metadata["training"])["caption_dropout"] == 0.3
    from_file = LLMDiffGenerator(module.learner.backbone, path, trained_encoder(path)).sample(requests)
    assert np.array_equal(from_file[0], drawn[0])


@pytest.mark.parametrize(("kind", "dtype"), [("sd", "float32"), ("sdxl", "bfloat16")])
def test_the_command_at_the_end_draws_with_the_backbone_of_the_training(
    tmp_path: Path, llm: Path, kind: str, dtype: str
) -> None:
    MAKERS[kind](tmp_path).save_pretrained(tmp_path / "base")
    backbone = UNetBackbone.from_pretrained(str(tmp_path / "base"), dtype)
    module = LLMDiff(backbone, LLMEncoder(LanguageModel.from_pretrained(str(llm))), str(tmp_path / "a.safetensors"))
    python, script, *typed = shlex.split(module.export(TrainingRecord(0, 1e-3, 1e-2))["next"])
    assert (python, script) == ("python", "generate.py")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(__file__).parents[3] / "conf"), version_base="1.3"):
        arguments = respelled(typed, script)
        cfg = compose("generate", [*arguments, "method.sampling.num_inference_steps=1", f"paths.cache_dir={tmp_path}"])
    generator = instantiate(cfg.method, _convert_="all")
    assert generator.backbone.dtype == backbone.dtype
    assert generator.backbone.fingerprint == backbone.fingerprint
    assert generator.sample([Request(cfg.prompt, cfg.seed)])[0].size == (backbone.resolution,) * 2
