"""What concepts cost at generation: ``python -m benchmarks.blending_cost [pipeline folder] [steps] [rounds]``.

Times the stock pipeline and the same pipeline with 1, 4 and 8 concepts, and with 4 that are guided in a fifth
of the steps, in turns within one process, and prints the ratios of the fastest rounds. Text keys and values are read
once per call, so the ratio should be at most 1 without guidance; with it, at most 1.3 is the goal. Where image and text
attend together, as in ``world/sd3``, a concept acts at every step, which should cost at most 1.02; it is not guided,
but 4 are masked as well. ``random/sd3`` in the place of a folder is two blocks of Stable Diffusion 3.5 medium with
random weights, at 256 pixels: how much of the cost is left at a width that people use.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from src.data.model_index import read_model_index
from src.modules.backbones.architectures import MERGES, write_clip_words
from src.modules.backbones.base import Backbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank, JointBank
from src.modules.latexblend.generator import Placement, blended
from src.modules.latexblend.guidance import BlendingGuidance
from src.modules.latexblend.joint import RANK, joint_blended

PROMPT = "a dog, a cat, a bird, a car, a cup, a hat, a fish and a duck"
COUNTS = (0, 1, 4, 8)


RANDOM = "random/sd3"
"""What is made here and read from no folder."""


def random_sd3(folder: Path) -> SD3Backbone:
    """Two blocks of the published widths behind two CLIPs of one layer each, and without T5."""
    torch.manual_seed(0)
    write_clip_words(folder)
    words = CLIPTokenizer.from_pretrained(folder)

    def clip(width: int) -> CLIPTextModelWithProjection:
        config = CLIPTextConfig(
            vocab_size=MERGES + 512 + 2, hidden_size=width, intermediate_size=width, num_hidden_layers=1,
            num_attention_heads=width // 64, projection_dim=width,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    transformer = SD3Transformer2DModel(
        sample_size=32, num_layers=2, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=32,
        qk_norm="rms_norm", dual_attention_layers=(0, 1),
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(32,) * 4, latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=clip(768),
        tokenizer=words,
        text_encoder_2=clip(1280),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip
    return SD3Backbone(pipeline, RANDOM, sampling={"max_sequence_length": 0})


def placements(backbone: Backbone, number: int) -> list[Placement]:
    """``number`` random banks of two rows, on the first phrases of the prompt (article, noun, comma ...)."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(backbone.device, backbone.dtype)

    def joint() -> ConceptBank:
        rows = {"text": random(2, backbone.denoiser.config.joint_attention_dim)}
        for name, linear in backbone.text_layers().items():
            rows |= {f"down.{name}": random(RANK, linear.in_features), f"up.{name}": random(linear.out_features, RANK)}
        return JointBank(rows, {})

    def static() -> ConceptBank:
        return ConceptBank({name: random(2, one.out_features) for name, one in backbone.text_layers().items()}, {})

    bank = joint if backbone.joint else static
    return [Placement(bank(), [1 + 3 * index, 2 + 3 * index]) for index in range(number)]


def seconds(
    backbone: Backbone,
    steps: int,
    concepts: list | None,
    guidance: BlendingGuidance | None = None,
    masked: bool = False,
) -> float:
    """One image, classifier-free guidance on; None is the plain pipeline with nothing installed."""

    def draw(**arguments: Any) -> float:
        # On the CPU, seconds of this process alone: other work on the machine does not count.
        clock = time.perf_counter if backbone.device.type == "cuda" else time.process_time
        start = clock()
        given = {"num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "latent", **backbone.call}
        backbone.pipeline(PROMPT, **given, **arguments)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    if concepts is None:
        return draw()
    if backbone.joint:
        with joint_blended(backbone.denoiser, [concepts], isolate=backbone.joint if masked else None):
            return draw()
    phrases = [[one.positions for one in concepts]]
    guiding = (guidance or BlendingGuidance()).acting(backbone, phrases)
    with blended(backbone.denoiser, [concepts]), guiding as arguments:
        return draw(**arguments)


def main(path: str = "world/sd", steps: int = 25, rounds: int = 9) -> None:
    """Measure and print."""
    joint = path == RANDOM or read_model_index(Path(path))["_class_name"] == "StableDiffusion3Pipeline"
    backbone: Backbone
    if path == RANDOM:
        with TemporaryDirectory() as folder:
            backbone = random_sd3(Path(folder))
    elif joint:
        backbone = SD3Backbone.from_pretrained(path, sampling={"max_sequence_length": 0})
    else:
        backbone = UNetBackbone.from_pretrained(path)
    arms = {f"{count} concepts": placements(backbone, count) for count in COUNTS}
    forms: list[Literal["latent", "noise"]] = ["latent", "noise"]
    guided = {f"4 concepts, {form} guided": BlendingGuidance(steps // 5, form=form) for form in forms if not joint}
    masked = ["4 concepts, masked"] if joint else []
    measured: dict[str, list[float]] = {name: [] for name in ("plain pipeline", *arms, *guided, *masked)}
    with torch.no_grad():
        seconds(backbone, 2, None)
        for _ in range(rounds):
            measured["plain pipeline"].append(seconds(backbone, steps, None))
            for name, concepts in arms.items():
                measured[name].append(seconds(backbone, steps, concepts))
            for name, guidance in guided.items():
                measured[name].append(seconds(backbone, steps, arms["4 concepts"], guidance))
            for name in masked:
                measured[name].append(seconds(backbone, steps, arms["4 concepts"], masked=True))
    table = Table(
        "arm", "fastest (s)", "median (s)", "ratio of fastest", title=f"{path}, {steps} steps, {rounds} rounds"
    )
    fastest = min(measured["plain pipeline"])
    for name, times in measured.items():
        median = sorted(times)[len(times) // 2]
        table.add_row(name, f"{min(times):.3f}", f"{median:.3f}", f"{min(times) / fastest:.3f}")
    Console().print(table)


if __name__ == "__main__":
    path, *numbers = sys.argv[1:4] or ["world/sd"]
    main(path, *map(int, numbers))
