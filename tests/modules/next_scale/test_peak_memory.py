"""What is counted before a call is what it takes, as torch's own profiler sees it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from src.data.request import ImageStyle, Request, TextStyle
from src.modules.next_scale import memory as free_memory
from src.modules.next_scale import pipeline as pipeline_call
from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.pipeline import waiting_bytes
from src.modules.next_scale.switti.pipeline import SwittiPipeline
from src.modules.style_svd.generator import StyleGenerator
from src.modules.style_svd.injection import InjectionGenerator
from src.run.precision import fastest_precision
from tests.modules.next_scale import tiny_infinity, tiny_switti

SIDES = (1, 2, 4, 8, 16)
PROMPTS = ("a dog on the grass", "a red cat")
NOTHING: Mapping[str, object] = {}
LARGE_IMAGES = {"base_channels": 32, "channel_multipliers": [1, 1, 1, 1]}
"""128 pixels a side: decoding them takes more than drawing."""
FACTOR = 1.4
"""How much more than is taken may be counted; less may not."""
EMULATED = 1.1 if fastest_precision("cpu") == "32-true" else 1.0
"""How much more may be taken in bfloat16: a processor that emulates it keeps copies in float32."""


def infinity(folder: Path, vae: Mapping[str, object] = NOTHING, **changes: object) -> DiffusionPipeline:
    sizes = {"depth": 2, "width": 64, "max_scales": len(SIDES), **changes}
    return tiny_infinity.tiny_pipeline(
        folder,
        transformer=tiny_infinity.tiny_transformer(**sizes),
        vae=tiny_infinity.tiny_vae(**{"base_channels": 16, **vae}),
        scale_grids={"1.000": [[side, side] for side in SIDES]},
        scale_prefixes={"all": len(SIDES)},
    )


def switti(
    folder: Path, vae: Mapping[str, object] = NOTHING, num_codes: int = 16, **changes: object
) -> DiffusionPipeline:
    sizes = {"depth": 2, "width": 64, "sides": SIDES, "num_codes": num_codes, **changes}
    parts = {
        "transformer": tiny_switti.tiny_transformer(**sizes),
        "vae": tiny_switti.tiny_vqvae(**{"num_codes": num_codes, "base_channels": 16, **vae}),
    }
    return SwittiPipeline(**tiny_switti.tiny_pipeline(folder).components | parts)


MODELS: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "infinity": infinity,
    "infinity, many keys": lambda folder: infinity(folder, depth=8, width=32),
    "switti": switti,
    "switti, many codes": lambda folder: switti(folder, num_codes=1024),
    "switti, all scales": lambda folder: switti(folder, use_ar=True),
}
ARMS: dict[str, tuple[list[str | None], dict[str, object]]] = {
    "plain": ([None], {}),
    "a style": (["0.png"], {}),
    "two styles": (["0.png", "1.png"], {}),
    "words": (["a blue house"], {}),
    "corrected later": (["0.png"], {"correct_from": 3}),
    "not corrected": (["0.png", "1.png"], {"correct": False}),
    "not guided": (["0.png"], {"sampling": {"guidance_scale": None}}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Each thread of torch's kernels takes some, which a real model would not notice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every count that was compared with what is free."""
    seen, compare = [], pipeline_call.room_or_raise

    def watched(nbytes: int, *further: object) -> None:
        seen.append(nbytes)
        compare(nbytes, *further)

    monkeypatch.setattr(pipeline_call, "room_or_raise", watched)
    return seen


def measured_peak(call: Callable[[], object], folder: Path) -> int:
    """Bytes that were allocated at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((one for one in events if one["name"] == "[memory]"), key=lambda one: one["ts"])
    totals = [one["args"]["Total Allocated"] for one in changes]
    return max(totals) - (totals[0] - changes[0]["args"]["Bytes"])


def in_precision(pipeline: DiffusionPipeline, dtype: torch.dtype) -> DiffusionPipeline:
    for part in (pipeline.transformer, pipeline.vae):
        part.in_precision(dtype)
    return pipeline


def styled(references: list[str | None], folder: Path) -> list[Request]:
    for index, color in enumerate(("navy", "orange")):
        image = Image.new("RGB", (64, 64), color)
        image.paste("white", (8 * index, 8, 40, 40))
        image.save(folder / f"{index}.png")
    styles = [one and (ImageStyle(str(folder / one)) if one.endswith(".png") else TextStyle(one)) for one in references]
    return [Request(prompt, seed, style) for style in styles for seed, prompt in enumerate(PROMPTS)]


FLOAT32 = [(model, arm, torch.float32) for model in MODELS for arm in ARMS]
BFLOAT16 = [(model, arm, torch.bfloat16) for model in ("infinity", "switti") for arm in ("plain", "a style")]


@pytest.mark.parametrize(("model", "arm", "dtype"), [*FLOAT32, *BFLOAT16])
def test_what_is_counted_is_what_a_call_takes(model, arm, dtype, tmp_path, counted) -> None:
    backbone = in_precision(MODELS[model](tmp_path), dtype)
    references, options = ARMS[arm]
    sampling = {"guidance_scale": 0.0 if model.startswith("switti") else 1.0} if arm == "not guided" else {}
    options = {"blend_after": 2, **options, "sampling": sampling or {"guidance_scale": 2.0}}
    drawing, requests = StyleGenerator(backbone, **options), styled(references, tmp_path)
    drawing.sample(requests)
    peak = measured_peak(lambda: drawing.sample(requests), tmp_path)
    most = counted[-1] * (EMULATED if dtype == torch.bfloat16 else 1)
    assert peak <= most and counted[-1] <= FACTOR * peak


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("model", ["infinity", "switti"])
def test_decoding_is_counted_where_it_takes_most(model, tiled, tmp_path, counted) -> None:
    large = LARGE_IMAGES | ({"patch_size": 8} if model == "infinity" else {})
    # Deep enough that keys, values and text that were still there would be noticed, and drawing took more than a tile.
    depth = 2 if tiled else 16
    backbone = {"infinity": infinity, "switti": switti}[model](tmp_path, vae=large, width=32, depth=depth)
    if tiled:
        backbone.vae.enable_tiling(size=8, overlap=2)
    backbone.set_progress_bar_config(disable=True)
    peak = measured_peak(lambda: backbone("a dog"), tmp_path)
    assert peak <= counted[-1] <= FACTOR * peak
    backbone("a dog", output_type="latent")
    assert counted[-1] < counted[-2]


def test_prompts_that_are_injected_are_counted(tmp_path, counted) -> None:
    drawing = InjectionGenerator(infinity(tmp_path), inject_at=2, sampling={"guidance_scale": 2.0})
    requests = styled(["a blue house"], tmp_path)
    drawing.sample(requests)
    peak = measured_peak(lambda: drawing.sample(requests), tmp_path)
    assert peak <= counted[-1] <= FACTOR * peak


def test_rows_that_leave_do_so_block_by_block(tmp_path) -> None:
    states, cache = torch.ones(4, 2, 64, 16), KeyValueCache(num_blocks=8, capacity=64)

    def fill_and_halve() -> None:
        for block in range(8):
            cache.attend(block, states, states, states, 1.0)
        cache.keep(torch.tensor([0, 2]))

    full = 16 * states.nbytes
    assert full <= measured_peak(fill_and_halve, tmp_path) < full + 4 * states.nbytes
    assert cache.nbytes == full // 2


def test_what_to_type_depends_on_what_takes_most(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(free_memory, "free_memory", lambda device: 1)
    with pytest.raises(ValueError, match=r"drawing 1 images at a time would take .* draw fewer images at a time"):
        infinity(tmp_path)("a dog")
    large = infinity(tmp_path, vae=LARGE_IMAGES | {"patch_size": 8}, width=32)
    with pytest.raises(ValueError, match=r"decode in overlapping squares \(backbone\.placement\.tiling=true\)"):
        large("a dog")
    large.vae.enable_tiling(size=8, overlap=2)
    with pytest.raises(ValueError, match=r"draw fewer images at a time \(method\.batch_size=1\)"):
        large("a dog")


def test_weights_that_wait_elsewhere_are_counted() -> None:
    part = torch.nn.Linear(3, 5)
    assert waiting_bytes(part, torch.device("cpu")) == 0
    assert waiting_bytes(part, torch.device("cuda")) == 4 * (15 + 5)
