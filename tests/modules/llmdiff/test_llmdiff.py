"""Training an LLMDiff adapter: what moves, what must not, and that processes, batches and pauses change nothing."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from src.callbacks.progress import Ranks
from src.callbacks.run_report import read_curves
from src.data.captions.datamodule import CaptionedImages
from src.data.captions.sources import CaptionFolder
from src.modules.llmdiff.encoder import EncodingCache
from src.modules.training.diffusion import step_generator
from src.modules.training.learner import LearnerModule
from tests.llmdiff_training import LatentData, Latents, Trace, traced, trainer, training
from tests.llms import tiny_llm_folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    # The smallest gradients are sums that cancel: rounding is measured by the largest of a tensor.
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-3 * float(one[name].abs().max())) for name in one
    )


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, llm: Path) -> None:
    command = [sys.executable, "-m", "tests.llmdiff_training", str(tmp_path), str(llm)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=environment, cwd=root, encoding="utf-8"
    )
    assert finished.returncode == 0, finished.stderr
    assert "effective batch: 4 = 2 per process x 2 process(es) x 1 accumulated" in finished.stderr
    two, one = torch.load(tmp_path / "trace.pt", weights_only=True), traced(tmp_path, llm, 4)
    assert np.allclose(two["losses"], one.losses, rtol=1e-4)
    assert len(set(one.losses)) == 3
    trained = {name for name, _ in training(tmp_path, llm).named_parameters()}
    for ours, theirs in zip(two["gradients"], one.gradients, strict=True):
        assert set(ours) == trained
        assert close(ours, theirs)
    assert "2 processes train together, but the configuration of rank 1 is not that of rank 0" in two["error"]


def test_accumulated_batches_are_one_large_batch(tmp_path: Path, llm: Path) -> None:
    parts, whole = traced(tmp_path, llm, 2, accumulate_grad_batches=2), traced(tmp_path, llm, 4)
    assert np.allclose(np.reshape(parts.losses, (3, 2)).mean(1), whole.losses, rtol=1e-4)
    assert all(close(ours, theirs) for ours, theirs in zip(parts.gradients, whole.gradients, strict=True))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("options", [{}, {"snr_gamma": 5.0, "gradient_checkpointing": True, "schedule": "cosine"}])
def test_training_moves_every_tensor_of_the_adapter_and_nothing_else(
    tmp_path: Path, llm: Path, kind: str, options: dict
) -> None:
    module = training(tmp_path, llm, kind, **options)
    backbone, llama = module.learner.backbone, module.learner.encoder.language_model.decoder.module
    parts = [backbone.unet, backbone.vae, llama]
    frozen = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    trainer(3, tmp_path).fit(module, LatentData())
    for part, weights in zip(parts, frozen, strict=True):
        assert equal(part.state_dict().values(), weights.values())
        assert all(parameter.grad is None for parameter in part.parameters())
    assert {type(processor) for processor in backbone.unet.attn_processors.values()} == {AttnProcessor}
    assert {name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])} == set()
    assert all(name.startswith("adapter.") for name in module.learner.state_dict())


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, llm: Path) -> None:
    traces = []
    for checkpointing in (False, True):
        trace = Trace()
        module = training(tmp_path, llm, gradient_checkpointing=checkpointing)
        assert module.learner.backbone.unet.is_gradient_checkpointing == checkpointing
        trainer(2, tmp_path, trace).fit(module, LatentData())
        traces.append(trace)
    assert traces[0].losses == traces[1].losses
    assert all(close(ours, theirs) for ours, theirs in zip(traces[0].gradients, traces[1].gradients, strict=True))


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(tmp_path: Path, llm: Path) -> None:
    module, data = training(tmp_path, llm, snr_gamma=5.0), Latents(5)

    def losses(rows: list[int]) -> torch.Tensor:
        captions = [data.captions[row] for row in rows]
        return module.learner.denoising_errors(data.latents[rows], captions, [step_generator(0, row) for row in rows])

    together = losses([0, 1, 2, 3, 4])
    assert together.shape == (5,)
    assert torch.allclose(together, torch.cat([losses([row]) for row in range(5)]), rtol=1e-4)


def test_stopping_and_going_on_equals_never_stopping_bit_for_bit(tmp_path: Path, llm: Path) -> None:
    whole, first, second = (training(tmp_path, llm, schedule="cosine") for _ in range(3))
    once, stopped, resumed = trainer(4, tmp_path), trainer(4, tmp_path, StopAfter(2)), trainer(4, tmp_path)
    once.fit(whole, LatentData())
    stopped.fit(first, LatentData())
    stopped.save_checkpoint(tmp_path / "two.ckpt")
    resumed.fit(second, LatentData(), ckpt_path=str(tmp_path / "two.ckpt"), weights_only=True)
    assert (stopped.global_step, resumed.global_step) == (2, 4)
    assert equal(whole.state_dict().values(), second.state_dict().values())
    assert equal(whole.ema.shadow_params, second.ema.shadow_params)
    moments = [run.optimizers[0].state_dict()["state"] for run in (once, resumed)]
    assert equal(*([tensor for each in state.values() for tensor in each.values()] for state in moments))


class StopAfter(L.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def equal(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(tmp_path: Path, llm: Path) -> None:
    module, run = training(tmp_path, llm), trainer(1, tmp_path)
    run.fit(module, LatentData())
    path = tmp_path / "one.ckpt"
    run.save_checkpoint(path)
    trained = sum(parameter.numel() * 4 for parameter in module.parameters())
    # Weights, their average, two moments; names and Lightning's own records beside them.
    assert path.stat().st_size < 4 * trained + 300_000
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"].keys() == module.learner.adapter.state_dict(prefix="learner.adapter.").keys()
    del checkpoint["state_dict"]["learner.adapter.phi_bias"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"lacks 1 trained tensors, first adapter\.phi_bias"):
        trainer(2, tmp_path).fit(training(tmp_path, llm), LatentData(), ckpt_path=str(path), weights_only=True)


def test_validation_depends_on_the_weights_alone_and_leaves_the_training_alone(tmp_path: Path, llm: Path) -> None:
    def validate(module: LearnerModule, batch_size: int) -> float:
        run = trainer(0, tmp_path, limit_val_batches=1.0)
        return run.validate(module, LatentData(batch_size), verbose=False)[0]["val/loss"]

    module = training(tmp_path, llm)
    first = validate(module, 2)
    torch.rand(5)
    assert validate(module, 2) == first
    assert validate(module, 3) == pytest.approx(first, rel=1e-5)
    traces = []
    for batches in (0, 1.0):
        trace = Trace()
        module = training(tmp_path, llm)
        run = trainer(4, tmp_path, trace, limit_val_batches=batches, val_check_interval=2, check_val_every_n_epoch=None)
        run.fit(module, LatentData())
        traces.append(trace.losses)
    assert traces[0] == traces[1] and len(traces[0]) == 4
    assert run.callback_metrics["val/loss"] != pytest.approx(first, rel=1e-5)


def test_dropped_captions_are_the_empty_prompt(tmp_path: Path, llm: Path) -> None:
    def losses(change: bool, dropout: float) -> list[float]:
        data, trace = LatentData(), Trace()
        if change:
            data.train.captions = ["a very small tree"] * 10  # type: ignore[attr-defined]
        # phi starts at a weight that makes prompts matter.
        module = training(tmp_path, llm, adapter={"phi_std": 0.5}, caption_dropout=dropout)
        trainer(3, tmp_path, trace).fit(module, data)
        return trace.losses

    assert losses(False, 0.999) == losses(True, 0.999)
    assert losses(False, 0.0) != losses(True, 0.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_or_velocity_is_learnt_as_the_scheduler_says(
    tmp_path: Path, llm: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A denoiser that predicts nothing errs by the mean square of ``eps``, or of ``sqrt(a) eps - sqrt(1 - a) x``."""
    learner, data = training(tmp_path, llm).learner, Latents(3)
    learner.backbone.noise_scheduler.register_to_config(prediction_type=kind)
    monkeypatch.setattr(learner.backbone, "denoise", lambda noised, *_: torch.zeros_like(noised.target))

    def losses() -> torch.Tensor:
        return learner.denoising_errors(data.latents, data.captions, [step_generator(0, row) for row in range(3)])

    if kind == "sample":
        with pytest.raises(ValueError, match="prediction_type is 'sample'"):
            losses()
        return
    signal, expected = (1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2).cumprod(0), []
    for row, latents in enumerate(data.latents):
        generator = step_generator(0, row)
        noise = torch.randn(4, 8, 8, generator=generator)
        share = signal[torch.randint(1000, (1,), generator=generator)]
        target = noise if kind == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * latents
        expected.append(target.square().mean())
    assert torch.allclose(losses(), torch.stack(expected), rtol=1e-5)


def test_g_h_a_and_b_are_logged(tmp_path: Path, llm: Path) -> None:
    module = training(tmp_path, llm)
    names = set(module.learner.curves())
    logger = CSVLogger(tmp_path, name="logs")
    trainer(4, tmp_path, logger=logger, log_every_n_steps=2).fit(module, LatentData())
    logger.save()
    curves = read_curves([Path(logger.log_dir) / "metrics.csv"])
    assert names <= curves.keys() and {"g/00", "g/02", "h/01", "a1/00", "b2/01"} <= names
    weights = [layer.additional_weight.item() for layer in module.learner.adapter.layers.values()]
    assert [module.learner.curves()[f"additional_weight/{at:02d}"] for at in range(len(weights))] == weights
    assert module.learner.curves()["original_weight/01"] == pytest.approx(
        module.learner.curves()["a1/01"] * np.exp(module.learner.curves()["b1/01"])
    )
    assert all(curves[name][0] == [0, 2] for name in names)
    assert curves["g/00"][1][0] == pytest.approx(3**-0.5) and curves["g/00"][1][0] != curves["g/00"][1][1]


def photos(folder: Path, number: int = 4) -> CaptionedImages:
    folder.mkdir()
    for at, caption in enumerate(Latents(number).captions):
        size = (96, 64) if at % 2 else (64, 64)
        Image.new("RGB", size, (60 * at, 90, 20)).save(folder / f"{at}.png")
        (folder / f"{at}.txt").write_text(caption, encoding="utf-8")
    return CaptionedImages(CaptionFolder(folder), 64, 2, 1, 2.0, 16, cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_images_of_any_shape_and_captions_encoded_ahead(tmp_path: Path, llm: Path, kind: str) -> None:
    data, losses = photos(tmp_path / "photos"), []
    for ahead in (False, True):
        module, trace = training(tmp_path, llm, kind, encode_ahead=ahead), Trace()
        module.learner.encoder.cache = EncodingCache(tmp_path / "encodings") if ahead else None
        trainer(3, tmp_path, trace).fit(module, data)
        losses.append(trace.losses)
    # Texts that are encoded in other batches differ by rounding.
    assert np.allclose(losses[0], losses[1], rtol=1e-5)
    assert not module.learner.encoder.language_model.is_loaded


def test_sdxl_is_told_sizes(tmp_path: Path, llm: Path) -> None:
    module, data = training(tmp_path, llm, "sdxl"), Latents(2)

    def losses(*size_ids: list[list[int]]) -> torch.Tensor:
        generators = [step_generator(0, row) for row in range(2)]
        return module.learner.denoising_errors(data.latents, data.captions, generators, *map(torch.tensor, size_ids))

    whole, cut = [64, 64, 0, 0, 64, 64], [96, 64, 16, 0, 64, 64]
    assert torch.equal(losses(), losses([whole, whole]))
    assert (losses() == losses([whole, cut])).tolist() == [True, False]


def test_mistakes_are_said_before_the_first_step(tmp_path: Path, llm: Path) -> None:
    for options, message in [
        ({"schedule": "linear"}, "method.schedule is 'linear'; choose one of constant, cosine"),
    ]:
        with pytest.raises(ValueError, match=message):
            training(tmp_path, llm, **options)
    with pytest.raises(ValueError, match="method.learner.encode_ahead needs captions that are known"):
        trainer(1, tmp_path).fit(training(tmp_path, llm, encode_ahead=True), LatentData())
    data = photos(tmp_path / "photos")
    with pytest.raises(ValueError, match="give the encoder a cache"):
        trainer(1, tmp_path).fit(training(tmp_path, llm, encode_ahead=True), data)
    data.train.source.captions[2] = "dog " * 200
    with pytest.raises(ValueError, match="prompt of 202 tokens, but .* at most 128: shorten 'dog dog"):
        trainer(1, tmp_path).fit(training(tmp_path, llm), data)


def test_one_process_agrees_with_itself(tmp_path: Path, llm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(1, tmp_path, Ranks("seed: 0"), accumulate_grad_batches=3).fit(training(tmp_path, llm), LatentData())
    assert "effective batch: 6 = 2 per process x 1 process(es) x 3 accumulated" in capsys.readouterr().err
