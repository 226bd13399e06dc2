import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.eval.encoders.cache import CachedEncoder
from src.eval.encoders.models import BATCH, TimmEncoder


class Counting(TimmEncoder):
    """A real encoder that counts what passes through the network."""

    number = 0

    def features(self, pixel_values):
        self.number += len(pixel_values)
        return super().features(pixel_values)


@pytest.fixture
def counting(dino_folder):
    return Counting(f"local-dir:{dino_folder}")


@pytest.fixture(scope="module")
def many():
    return [render(subject_scene(index, 0, "dog")) for index in range(BATCH + 6)]


def test_what_is_kept_equals_what_was_computed(counting, many, tmp_path):
    plain = counting.encode_images(many)
    counting.number = 0
    first = CachedEncoder(counting, tmp_path).encode_images(many)
    again = CachedEncoder(counting, tmp_path).encode_images(many)
    assert counting.number == len(many)
    assert torch.equal(first, plain) and torch.equal(again, plain)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_files_and_images_and_any_order_are_the_same_pictures(counting, many, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(len(many))]
    for image, path in zip(many, paths, strict=True):
        image.save(path)
    encoder = CachedEncoder(counting, tmp_path / "cache")
    first = encoder.encode_images(path for path in paths)
    number = counting.number
    torch.testing.assert_close(first, counting.encode_images(many), atol=1e-6, rtol=0)
    counting.number = number
    assert torch.equal(encoder.encode_images(many[::-1]), first.flip(0))
    assert torch.equal(encoder.encode_images(map(str, paths[3:5])), first[3:5])
    assert counting.number == number


def test_only_what_is_new_is_computed_and_twins_once(counting, many, tmp_path):
    encoder = CachedEncoder(counting, tmp_path)
    encoder.encode_images(many[:3])
    embeddings = encoder.encode_images([many[4], many[1], many[4], many[5]])
    assert counting.number == 5
    assert torch.equal(embeddings[0], embeddings[2])
    torch.testing.assert_close(embeddings, counting.encode_images([many[i] for i in (4, 1, 4, 5)]), atol=1e-6, rtol=0)


def test_pixels_size_and_encoder_tell_apart(counting, dino_folder, tmp_path):
    tall, wide = (Image.new("RGB", size, "red") for size in ((20, 40), (40, 20)))
    encoder = CachedEncoder(counting, tmp_path)
    encoder.encode_images([tall])
    encoder.encode_images([wide])
    almost = tall.copy()
    almost.putpixel((0, 0), (254, 0, 0))
    encoder.encode_images([almost])
    assert counting.number == 3
    other = Counting(f"local-dir:{dino_folder}", resize=40)
    CachedEncoder(other, tmp_path).encode_images([tall])
    assert other.number == 1
    assert encoder.identity == counting.identity != other.identity


MEAN_COLOR = SimpleNamespace(
    identity="mean color",
    preprocess=lambda image: torch.tensor(image.resize((1, 1)).getpixel((0, 0))) / 255,
    encode_pixel_values=lambda pixel_values: pixel_values,
)


def _score(images, cache, target):
    embeddings = [CachedEncoder(MEAN_COLOR, cache).encode_images(images[at : at + 10]) for at in range(0, 60, 5)]
    save_file({"embeddings": torch.cat(embeddings)}, target)


def test_processes_share_one_folder(many, tmp_path):
    context = multiprocessing.get_context("fork")
    targets = [tmp_path / f"{index}.safetensors" for index in range(3)]
    workers = [context.Process(target=_score, args=(many, tmp_path / "cache", target)) for target in targets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = torch.stack([MEAN_COLOR.preprocess(image) for at in range(0, 60, 5) for image in many[at : at + 10]])
    for target in targets:
        assert torch.equal(load_file(target)["embeddings"], expected)
    assert not list(tmp_path.rglob("*.partial"))


def test_there_must_be_images(counting, tmp_path):
    with pytest.raises(ValueError, match="no images"):
        CachedEncoder(counting, tmp_path).encode_images([])
