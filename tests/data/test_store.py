"""Every cache gives the same answer to a damaged file; a store with a bound stays within it."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.captions.datamodule import EncodedData
from src.data.captions.items import image_batch, load
from src.data.files import whole_file
from src.data.store import TensorStore
from src.data.subject import View
from src.data.world.rendered import rendered
from src.eval.encoders import cache
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.learner import class_images, encoded_views
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from tests.llms import tiny_llm_folder
from tests.tiny import tiny_sd

PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)) for i in range(3)]
MEAN = SimpleNamespace(
    identity="mean color",
    preprocess=lambda image: torch.tensor(np.asarray(image)).float().mean((0, 1)),
    encode_pixel_values=lambda pixel_values: pixel_values,
)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Ways to look up everything that lies in a folder, as a new process would."""
    backbone = UNetBackbone(tiny_sd(tmp_path_factory.mktemp("sd")), "sd")
    llm = LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path_factory.mktemp("llm"))))
    views = [View(np.asarray(image), np.ones((8, 8), np.float32)) for image in PICTURES]
    running: dict[Path, cache.CachedEncoder] = {}

    def captioned(folder: Path) -> torch.Tensor:
        data = EncodedData(str(folder))
        data.encode_with(lambda pixel_values: torch.nn.functional.avg_pool2d(pixel_values, 8), "means")
        batch = image_batch([load(image._repr_png_(), "a picture", (64, 64), data.store) for image in PICTURES])
        return data.on_after_batch_transfer(batch, 0)["latents"]

    def embedded(encoder: cache.CachedEncoder) -> torch.Tensor:
        cache._verified.cache_clear()
        return encoder.encode_images(PICTURES)

    return {
        "class images": lambda folder: class_images(backbone, "dog", 2, 64, folder),
        "views": lambda folder: encoded_views(backbone, views, folder)[0],
        "captioned images": captioned,
        "encodings": lambda folder: LLMEncoder(llm, cache=EncodingCache(folder)).encode(["a dog", ""]).states,
        "embeddings": lambda folder: embedded(cache.CachedEncoder(MEAN, folder)),
        "embeddings in use": lambda folder: embedded(running.setdefault(folder, cache.CachedEncoder(MEAN, folder))),
        "scenes": lambda folder: rendered(folder, "scenes", 40, 3, 32),
    }


CACHES = ["class images", "views", "captioned images", "encodings", "embeddings", "embeddings in use", "scenes"]
DAMAGE = {
    "half": lambda it: it[: len(it) // 2],
    "without its end": lambda it: it[:-2],
    "empty": lambda it: b"",
    "garbage": lambda it: b"\x07" + it[1:],
    "one bit in the middle": lambda it: (
        it[: len(it) * 2 // 3] + bytes([it[len(it) * 2 // 3] ^ 1]) + it[len(it) * 2 // 3 + 1 :]
    ),
    "zeros": lambda it: bytes(len(it)),
}


@pytest.mark.parametrize("damage", [*DAMAGE, "gone"])
@pytest.mark.parametrize("name", CACHES)
def test_a_damaged_file_is_named_once_and_made_anew(caches, name, damage, tmp_path, caplog) -> None:
    first = np.array(list(caches[name](tmp_path)))
    victim = min(path for path in tmp_path.rglob("*") if path.is_file())
    content, told = victim.read_bytes(), [f"{victim} is damaged; it was removed and is made anew"]
    victim.unlink()
    if damage in DAMAGE:
        victim.write_bytes(DAMAGE[damage](content))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        np.testing.assert_allclose(list(caches[name](tmp_path)), first, atol=0 if "images" in name else 1e-5)
        assert caplog.messages == (told if damage in DAMAGE else []) and victim.stat().st_size == len(content)
    assert not list(tmp_path.rglob("*.partial"))


def test_trouble_of_the_disk_is_said_and_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    store = TensorStore(tmp_path, "states")
    assert torch.equal(store.get("ab/c", lambda: torch.ones(2)), store.get("ab/c", lambda: torch.zeros(2)))
    monkeypatch.setattr("src.data.store.save_file", full)
    with pytest.raises(OSError, match="no space"):
        store.write("ab/d", torch.zeros(2))
    monkeypatch.setattr("src.data.store.safe_open", lambda path, kind: os.open(tmp_path, os.O_WRONLY))
    with pytest.raises(IsADirectoryError):
        store.read("ab/c")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [store.path("ab/c")]


def test_the_folder_stays_within_its_size_and_the_longest_unused_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a positive size"):
        EncodingCache(tmp_path, 0)
    store = EncodingCache(tmp_path, max_gigabytes=41_000 / 1e9)
    keys = [f"{number:02d}/0" for number in range(20)]
    for number, key in enumerate(keys):
        store.write(key, torch.zeros(1000))
        os.utime(store.path(key), (number, number))
        if number == 6:
            assert store.read(keys[0]) is not None
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 41_000
    # Read on the way, so not the oldest any more; the others went in the order in which they came.
    assert keys[0] in store and keys[1] not in store and keys[-1] in store
    left = [key in store for key in keys[1:]]
    assert left == sorted(left) and sum(left) >= 5


def test_what_killed_processes_left_half_written_is_swept(tmp_path: Path) -> None:
    old, young = (tmp_path / f".{name}.png.1.partial" for name in ("a", "b"))
    for partial in (old, young):
        partial.write_bytes(b"half")
    os.utime(old, (0, 0))
    with whole_file(tmp_path / "c") as partial:
        partial.write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "c"]


@pytest.mark.parametrize("stored", [0, 1, 3], ids=lambda number: f"{number} stored before")
def test_latents_are_the_same_whatever_the_store_holds(tmp_path: Path, stored: int) -> None:
    """Bit for bit and in one memory layout, with which training would round otherwise."""
    backbone = UNetBackbone(tiny_sd(tmp_path), "sd")
    backbone.vae.to(memory_format=torch.channels_last)

    def latents(folder: Path, pictures: list[Image.Image]) -> torch.Tensor:
        data = EncodedData(str(folder))
        data.encode_with(backbone.encode_images, backbone.autoencoder_identity)
        batch = image_batch([load(image._repr_png_(), "a picture", (64, 64), data.store) for image in pictures])
        return data.on_after_batch_transfer(batch, 0)["latents"]

    cold = latents(tmp_path / "cold", PICTURES)
    if stored:
        latents(tmp_path / "warm", PICTURES[:stored])
    warm = latents(tmp_path / "warm", PICTURES)
    assert torch.equal(cold, warm) and cold.stride() == warm.stride() and cold.is_contiguous()
    assert backbone.encode_images(torch.zeros(2, 3, 64, 64)).is_contiguous()
