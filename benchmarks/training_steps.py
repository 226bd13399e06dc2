"""What a training step costs, beside others' in one run: ``python -m benchmarks.training_steps [rounds]``.

Random UNets of two kinds, as Stable Diffusion's (35 M) and as SDXL's (106 M), take turns: one step, forward and
backward, of each method on the same latents, with as many class images as photos. Seconds are those of the process
itself, and ratios are to Custom Diffusion with latents given.

``the reference's way`` is LaTexBlend without what we keep between steps: photos go through the autoencoder, and the
prompts of both flows and of the class images through the text encoder, in every step. ``the UNet alone`` goes forward
on as many samples and backward to its text rows: no method that learns in cross-attention can take less.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from src.modules.backbones.architectures import MERGES, write_clip_words
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.rivals.custom_diffusion import CustomDiffusion

PHOTOS = 2
"""Photos in a step, and as many class images."""
SIDE = 32
"""Of the latents."""
KINDS: dict[str, dict[str, Any]] = {
    "SD-like": {
        "block_out_channels": (64, 160, 224, 224),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "SDXL-like": {
        "block_out_channels": (64, 128, 256),
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
        "cross_attention_dim": 512,
    },
}
"""Their UNets: depth and kind of the blocks are those of the published models, widths are smaller."""


def backbone(kind: str, folder: Path) -> UNetBackbone:
    """A pipeline with random weights; its text encoder is small beside the UNet, as published ones are."""
    torch.manual_seed(0)
    write_clip_words(folder)
    width = KINDS[kind]["cross_attention_dim"]
    text = CLIPTextConfig(
        vocab_size=MERGES + 512 + 2, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1,
        num_attention_heads=width // 64, projection_dim=width,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128), latent_channels=4, layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        unet=UNet2DConditionModel(sample_size=SIDE, layers_per_block=2, **KINDS[kind]),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return UNetBackbone(pipeline, kind)


def prepared(learner: Any, frozen: UNetBackbone) -> Any:
    """Give a learner what it would prepare: latents of photos and of class images, and text that stays."""
    generator = torch.Generator().manual_seed(0)
    for name in ("instance", "prior"):
        latents = torch.randn(PHOTOS, 4, SIDE, SIDE, generator=generator)
        setattr(learner, name, (latents, torch.ones(PHOTOS, 1, SIDE, SIDE)))
    learner.class_text = frozen.encode_text(["dog"])
    if isinstance(learner, LaTexBlend):
        learner.base_text = frozen.encode_text(learner.flow.prompts)
    return learner


def as_the_reference(learner: LaTexBlend, pixel_values: Tensor) -> Callable[[], None]:
    """What the reference does in every step, and we do once."""

    def again() -> None:
        frozen = learner.backbone
        learner.instance = (frozen.encode_images(pixel_values[:PHOTOS]), learner.instance[1])
        assert learner.prior is not None
        learner.prior = (frozen.encode_images(pixel_values[PHOTOS:]), learner.prior[1])
        # Of each photo its own prompt.
        prompts = learner.flow.prompts
        frozen.encode_text(prompts[:PHOTOS])
        frozen.encode_text(["dog"] * PHOTOS)

    return again


def steps(learner: Any, before: Callable[[], None] = lambda: None) -> Iterator[float]:
    """Take one step after another, and yield the seconds of each."""
    optimizer = torch.optim.AdamW(learner.averaged_parameters(), lr=1e-5)
    step = 0
    while True:
        batch = {"index": torch.arange(PHOTOS), "step": torch.tensor(step), "position": torch.arange(PHOTOS)}
        start = time.process_time()
        before()
        loss, _ = learner.reduce(learner.losses(batch, learner.generators(batch, 0, 1)))
        with learner.installed():
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield time.process_time() - start
        step += 1


def unet_alone(frozen: UNetBackbone) -> Iterator[float]:
    """Go forward and backward, to rows of text, once after another, and yield the seconds of each."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2 * PHOTOS, 4, SIDE, SIDE, generator=generator)
    text = frozen.encode_text(["dog"] * (2 * PHOTOS)).prompt_embeds.requires_grad_()
    while True:
        start = time.process_time()
        frozen.pipeline.unet(latents, torch.arange(2 * PHOTOS), text).sample.square().mean().backward()
        yield time.process_time() - start


def measured(kind: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each method's steps, which take turns; the first round warms up."""
    frozen = backbone(kind, folder)
    subject = Subject("dog", "rex")
    ours, theirs, reference = (
        LaTexBlend(frozen, subject, str(folder), str(folder / "rex.safetensors")),
        CustomDiffusion(frozen, subject, str(folder), str(folder / "cd.safetensors")),
        LaTexBlend(frozen, subject, str(folder), str(folder / "rex.safetensors")),
    )
    pixel_values = torch.rand(2 * PHOTOS, 3, 8 * SIDE, 8 * SIDE) * 2 - 1
    arms = {
        "Custom Diffusion, latents given": steps(prepared(theirs, frozen)),
        "LaTexBlend": steps(prepared(ours, frozen)),
        "the UNet alone": unet_alone(frozen),
        "LaTexBlend, the reference's way": steps(
            prepared(reference, frozen), as_the_reference(reference, pixel_values)
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            seconds = next(arm)
            if number:
                found[name].append(seconds)
    return found


def main(rounds: int = 5) -> None:
    """Measure and print."""
    for kind in KINDS:
        with TemporaryDirectory() as folder:
            found = measured(kind, rounds, Path(folder))
        with torch.device("meta"):
            unet = UNet2DConditionModel(sample_size=SIDE, layers_per_block=2, **KINDS[kind])
        size = sum(one.numel() for one in unet.parameters())
        title = f"{kind}, {size / 1e6:.0f} M, {PHOTOS} photos and class images, {rounds} rounds"
        table = Table("arm", "fastest (s)", "median (s)", "ratio of fastest", title=title)
        least = min(found["Custom Diffusion, latents given"])
        for name, times in found.items():
            median = sorted(times)[len(times) // 2]
            table.add_row(name, f"{min(times):.3f}", f"{median:.3f}", f"{min(times) / least:.3f}")
        Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
