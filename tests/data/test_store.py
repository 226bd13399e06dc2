"""Every cache gives the same answer to a damaged file; a store with a bound stays within it."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.captions.datamodule import EncodedData
from src.data.captions.items import image_batch, load
from src.data.store import ImageStore, TensorStore
from src.data.subject import View
from src.data.world.datamodules import rendered
from src.eval.encoders import cache
from src.eval.encoders.cache import CachedEncoder
from src.modules.backbones.unet import DiffusionBackbone
from src.modules.latexblend.images import class_images, encoded_views
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from tests.llms import tiny_llm_folder
from tests.tiny import tiny_sd

Use = Callable[[], np.ndarray]
"""Looks everything up that one cache holds, as a new process would."""
PIXELS = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(pixels) for pixels in PIXELS]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackbone:
    return DiffusionBackbone(tiny_sd(tmp_path_factory.mktemp("sd")), "sd")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path_factory.mktemp("llm"))))


class MeanColor:
    """An encoder of images."""

    identity = "mean color"

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).float().mean((0, 1))

    def encode_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


def drawn(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    return np.stack(class_images(request.getfixturevalue("backbone"), "dog", 2, 64, folder))


def views(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    sources = [View(pixels, np.ones((8, 8), np.float32)) for pixels in PIXELS]
    return encoded_views(request.getfixturevalue("backbone"), sources, folder)[0].numpy()


def captioned(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    data = EncodedData(str(folder))
    data.encode_with(lambda pixel_values: torch.nn.functional.avg_pool2d(pixel_values, 8), "means")
    files = [image._repr_png_() for image in PICTURES]
    batch = image_batch([load(file, "a picture", (64, 64), data.store) for file in files])
    return data.on_after_batch_transfer(batch, 0)["latents"].numpy()


def encodings(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    encoder = LLMEncoder(request.getfixturevalue("llm"), cache=EncodingCache(folder))
    return encoder.encode(["a red dog", "a cat on the left of a tree", ""]).states.numpy()


def embeddings(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    cache._verified.cache_clear()
    return CachedEncoder(MeanColor(), folder).encode_images(PICTURES).numpy()


def embeddings_in_use(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    """The file was whole when its names were listed."""
    encoder = request.node.stash.setdefault(IN_USE, CachedEncoder(MeanColor(), folder))
    cache._verified.cache_clear()
    return encoder.encode_images(PICTURES).numpy()


def scenes(folder: Path, request: pytest.FixtureRequest) -> np.ndarray:
    return rendered(folder, "scenes", 40, 3, 32)


IN_USE = pytest.StashKey[CachedEncoder]()
CACHES = [drawn, views, captioned, encodings, embeddings, embeddings_in_use, scenes]


@pytest.mark.parametrize("damaged", [lambda it: it[: len(it) // 2], lambda it: b"", lambda it: b"\x07" + it[1:]])
@pytest.mark.parametrize("look_up", CACHES)
def test_a_damaged_file_is_named_and_made_anew(look_up, damaged, tmp_path, caplog, request) -> None:
    first = np.array(look_up(tmp_path, request))
    victim = min(path for path in tmp_path.rglob("*") if path.is_file())
    whole = victim.read_bytes()
    victim.write_bytes(damaged(whole))
    caplog.set_level(logging.WARNING)
    np.testing.assert_allclose(look_up(tmp_path, request), first, atol=1e-5)
    assert caplog.messages == [f"{victim} is damaged; it was removed and is made anew"]
    assert len(victim.read_bytes()) == len(whole)
    np.testing.assert_allclose(look_up(tmp_path, request), first, atol=1e-5)
    assert len(caplog.messages) == 1 and not list(tmp_path.rglob("*.partial"))


def test_a_write_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("src.data.store.save_file", full)
    with pytest.raises(OSError, match="no space"):
        TensorStore(tmp_path, "states").write("ab/c", torch.zeros(2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_trouble_of_the_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(tmp_path, "latents")
    assert torch.equal(store.get("a", lambda: torch.ones(2)), store.get("a", lambda: torch.zeros(2)))
    monkeypatch.setattr("src.data.store.load_file", lambda path: os.open(tmp_path, os.O_WRONLY))
    with pytest.raises(IsADirectoryError):
        store.read("a")
    assert "a" in store and store.keys() == ["a"]


def test_the_folder_stays_within_its_size_and_the_oldest_go(tmp_path: Path) -> None:
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


def test_a_read_file_counts_as_used(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, max_gigabytes=1)
    store.write("0", PICTURES[0])
    os.utime(store.path("0"), (0, 0))
    assert store.read("0") == PICTURES[0] and store.path("0").stat().st_mtime > time.time() - 60
    assert store.read("1") is None


def test_a_size_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a positive size"):
        EncodingCache(tmp_path, 0)
