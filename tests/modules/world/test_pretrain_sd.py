"""The world's autoencoder and text-to-image model: a resumed training is the same, and what is exported loads."""

from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import StableDiffusionPipeline

from src.data.world.datamodules import WorldData
from src.modules.training.ema import AveragedModule
from src.modules.world.autoencoder import AutoencoderPretraining
from src.modules.world.text_to_image import TextToImagePretraining


def data(folder: Path, latents: bool) -> WorldData:
    code = str(folder / "code.safetensors")
    return WorldData(str(folder / "cache"), 4, 32, 4, code_path=code, latent_channels=8, latents=latents)


def autoencoder(folder: Path) -> AutoencoderPretraining:
    return AutoencoderPretraining(str(folder / "sd"), str(folder / "code.safetensors"), [8, 8, 8, 8], 8)


def text_to_image(folder: Path, **options) -> TextToImagePretraining:
    return TextToImagePretraining(str(folder / "sd"), [32, 32], 8, text_width=32, text_layers=1, **options)


def fit(module: AveragedModule, source: WorldData, folder: Path, steps: int, checkpoint: Path | None = None) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, source, ckpt_path=checkpoint, weights_only=True)


@pytest.mark.parametrize(("build", "latents"), [(autoencoder, False), (text_to_image, True)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, build, latents: bool) -> None:
    torch.set_num_threads(1)
    whole, first, second = (build(tmp_path) for _ in range(3))
    # The learning rate follows the planned length, so the first half plans four steps too and is stopped by hand.
    fit(whole, data(tmp_path, latents), tmp_path, 4)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")
                trainer.should_stop = True

    trainer = L.Trainer(
        accelerator="cpu", max_steps=4, min_steps=1, logger=False, enable_checkpointing=False, callbacks=[Stop()],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(first, data(tmp_path, latents))
    fit(second, data(tmp_path, latents), tmp_path, 4, tmp_path / "two.ckpt")
    for ours, theirs in zip(whole.averaged, second.averaged, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(whole.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)


def test_the_two_exports_are_one_stock_pipeline(tmp_path: Path) -> None:
    vae = autoencoder(tmp_path)
    fit(vae, data(tmp_path, False), tmp_path, 2)
    painter = text_to_image(tmp_path)
    with pytest.raises(ValueError, match="world/sd_vae"):
        painter.export()
    vae.export()
    fit(painter, data(tmp_path, True), tmp_path, 2)
    average = [parameter.clone() for parameter in painter.ema.shadow_params]
    painter.export()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red dog", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)
    assert torch.allclose(next(pipeline.unet.parameters()), average[0], atol=1e-3)


def test_a_share_of_captions_is_read_alone(tmp_path: Path) -> None:
    def text(share: float) -> torch.Tensor:
        module = text_to_image(tmp_path, phrases_alone=share)
        ids = module._ids(["a red dog left of a blue cat", "a sketch of a green car at night"])
        with torch.no_grad():
            return module._mixed_text(ids, torch.Generator().manual_seed(0))

    plain, half, alone = text(0.0), text(0.5), text(1.0)
    assert torch.equal(half[1], plain[1]) and not torch.allclose(half[0], plain[0])
    assert not torch.allclose(alone[0], plain[0]) and not torch.allclose(alone[1], plain[1])
    # Nothing stands before the first phrase, so its rows are the plain caption's.
    assert torch.allclose(alone[0, :4], plain[0, :4], atol=1e-6)
    with pytest.raises(ValueError, match="phrases_alone is 1.5; give a share"):
        text(1.5)
