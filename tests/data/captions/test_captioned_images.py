"""Images with captions from folders, Hugging Face datasets and shards: every pair once, in an order that can resume."""

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from src.data.captions.buckets import aspect_buckets, fitted, nearest_bucket, size_ids
from src.data.captions.datamodule import CaptionedImages
from src.data.captions.shard_datamodule import CaptionedShards
from src.data.captions.sources import CaptionFolder
from src.data.order import BucketBatchSampler, StepBatchSampler
from tests.placed import global_batches, place

SHAPES = ((64, 64), (96, 64), (64, 96), (80, 64), (128, 64))


def grey(number: int) -> int:
    return 10 + 6 * number


def picture(number: int) -> Image.Image:
    return Image.new("RGB", SHAPES[number % len(SHAPES)], (grey(number),) * 3)


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty grey images, their caption is their number; a third of them in a subfolder."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    for number in range(30):
        path = root / ("more" if number % 3 == 0 else "") / f"{number:02d}.png"
        path.write_bytes(encoded(number))
        path.with_suffix(".txt").write_text(f"number\n  {number}\n", encoding="utf-8")
    return root


def encode(pixel_values: torch.Tensor) -> torch.Tensor:
    """Stands for an autoencoder's encoder: means of cells."""
    return F.avg_pool2d(pixel_values, 8)


def data(folder: Path, cache: Path | None = None, **options) -> CaptionedImages:
    options = {"resolution": 64, "bucket_step": 16, "batch_size": 4, **options}
    return CaptionedImages(CaptionFolder(folder), cache_dir=cache and str(cache), **options)


def batches(module) -> list[dict]:
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


# Folders


def test_text_files_and_metadata_say_the_same(folder: Path) -> None:
    beside = CaptionFolder(folder)
    assert [Path(beside.name(i)).stem for i in range(30)] == [f"{n:02d}" for n in by_path(range(30))]
    lines = [
        {"file_name": str(path.relative_to(folder)), "text": path.with_suffix(".txt").read_text(encoding="utf-8")}
        for path in folder.rglob("*.png")
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    listed = CaptionFolder(folder)
    assert (listed.paths, listed.captions) == (beside.paths, beside.captions)
    assert listed.captions == [f"number {number}" for number in by_path(range(30))]


def by_path(numbers) -> list[int]:
    """The root's files come before those of ``more``."""
    return sorted(numbers, key=lambda number: (number % 3 == 0, number))


def test_images_without_a_caption_are_named(folder: Path) -> None:
    (folder / "01.txt").unlink()
    (folder / "02.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"2 images \(01\.png, 02\.png\) in .* without a caption: each needs a \.txt"):
        CaptionFolder(folder)
    for path in folder.rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"30 images \(.* and 25 more\)"):
        CaptionFolder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "01.png", "text": "a"}', r"29 images .* metadata\.jsonl has no text for them"),
        ('{"file_name": "99.png", "text": "a"}', r"names 1 file \(\S+99\.png\) that the folder does not hold"),
        ('\n{"file_name": "01.png", "caption": "a"}', r"line 2 has no text 'text' \(it has: file_name, caption\)"),
        ("{", r"line 1 is not JSON"),
        ("[]", r"line 1 has no text 'file_name'"),
    ],
)
def test_bad_metadata(folder: Path, content: str, message: str) -> None:
    (folder / "metadata.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        CaptionFolder(folder)


def test_text_that_is_not_utf_8(folder: Path) -> None:
    (folder / "02.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"02\.txt is not UTF-8 text"):
        CaptionFolder(folder)
    (folder / "02.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert "café" in CaptionFolder(folder).captions


def test_what_is_left_out_of_a_folder_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    CaptionFolder(folder)
    assert "left out" not in caplog.text
    (folder / "more" / "photo.gif").write_text("", encoding="utf-8")
    CaptionFolder(folder)
    assert f"{folder} holds 30 images; left out: 1 other file: more/photo.gif" in caplog.text


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in .*the folder is empty"):
        CaptionFolder(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist"):
        CaptionFolder(tmp_path / "absent")


# Buckets


@pytest.mark.parametrize(("resolution", "ratio", "step"), [(512, 2.0, 64), (1024, 4.0, 64), (64, 2.0, 8), (512, 1, 64)])
def test_buckets_are_of_about_one_area(resolution: int, ratio: float, step: int) -> None:
    buckets = aspect_buckets(resolution, ratio, step)
    assert (resolution, resolution) in buckets
    assert len(buckets) > 2 or ratio == 1
    for width, height in buckets:
        assert (height, width) in buckets
        assert width % step == height % step == 0
        assert resolution**2 * 0.75 < width * height <= resolution**2
        assert max(width, height) <= ratio * min(width, height)


def test_impossible_buckets() -> None:
    with pytest.raises(ValueError, match="resolution 500 and bucket_step 64 do not go together"):
        aspect_buckets(500, 2.0, 64)
    with pytest.raises(ValueError, match="max_ratio is 0.5"):
        aspect_buckets(512, 0.5)


def test_an_image_goes_to_the_bucket_of_its_shape() -> None:
    buckets = aspect_buckets(512, 2.0, 64)
    assert nearest_bucket((3000, 3000), buckets) == (512, 512)
    for bucket in buckets:
        assert nearest_bucket((bucket[0] * 3, bucket[1] * 3), buckets) == bucket
    assert nearest_bucket((5000, 100), buckets) == max(buckets)


@pytest.mark.parametrize("bucket", [(64, 64), (96, 40), (40, 96)])
def test_images_are_cut_never_squashed(bucket: tuple[int, int]) -> None:
    y, x = np.mgrid[0:100, 0:200]
    disc = np.where((x - 100) ** 2 + (y - 50) ** 2 < 20**2, 255, 0).astype(np.uint8)
    pixels = fitted(Image.fromarray(disc).convert("RGB"), bucket)[..., 0] > 127
    assert pixels.shape == bucket[::-1]
    width, height = np.flatnonzero(pixels.any(0)), np.flatnonzero(pixels.any(1))
    assert abs(len(width) - len(height)) <= 1
    assert abs(width.mean() - (bucket[0] - 1) / 2) < 1 and abs(height.mean() - (bucket[1] - 1) / 2) < 1


def test_size_ids_tell_size_and_cut() -> None:
    assert size_ids((200, 100), (64, 64)) == [100, 200, 0, 32, 64, 64]
    assert size_ids((64, 64), (64, 64)) == [64, 64, 0, 0, 64, 64]


BUCKETS = [list(range(0, 5)), list(range(5, 18)), list(range(18, 20)), []]


def test_every_batch_is_of_one_bucket_and_every_item_is_seen_equally_often() -> None:
    drawn = list(BucketBatchSampler(BUCKETS, 4, 500, seed=2))
    for batch in drawn:
        assert any({draw.index for draw in batch} <= set(bucket) for bucket in BUCKETS)
    counts = Counter(draw.index for batch in drawn for draw in batch)
    assert set(counts) == set(range(20))
    # 2,000 draws of 20 items, up to one batch of a bucket that is not yet full.
    assert all(abs(times - 100) <= 4 for times in counts.values())


def test_every_bucket_is_seen_whole_before_any_of_it_comes_again() -> None:
    drawn = [draw.index for batch in BucketBatchSampler(BUCKETS, 4, 60) for draw in batch]
    for bucket in filter(None, BUCKETS):
        mine = [index for index in drawn if index in bucket]
        epochs = [mine[start : start + len(bucket)] for start in range(0, len(mine) - len(bucket) + 1, len(bucket))]
        assert len(epochs) > 3
        assert all(sorted(epoch) == bucket for epoch in epochs)


@pytest.mark.parametrize("first", [0, 1, 17, 39])
def test_a_resumed_sampler_gives_the_tail(first: int) -> None:
    whole = list(BucketBatchSampler(BUCKETS, 4, 40, seed=3))
    assert list(BucketBatchSampler(BUCKETS, 4, 40, seed=3, first_step=first)) == whole[first:]


def test_ranks_share_the_batch_of_one_process() -> None:
    single = list(BucketBatchSampler(BUCKETS, 6, 40))
    ranks = [list(BucketBatchSampler(BUCKETS, 3, 40, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == single


def test_one_bucket_is_the_plain_order() -> None:
    assert list(BucketBatchSampler([range(7)], 3, 20, seed=4)) == list(StepBatchSampler(7, 3, 20, seed=4))


# The data module over folders


def test_batches_hold_the_images_of_their_captions(folder: Path) -> None:
    module = place(data(folder, max_ratio=2.0), 40)
    module.encode_with(encode, "means")
    shapes = set()
    for batch in batches(module):
        shapes.add(batch["latents"].shape[2:])
        levels = [grey(int(text.removeprefix("number "))) / 127.5 - 1 for text in batch["caption"]]
        torch.testing.assert_close(batch["latents"].mean((1, 2, 3)), torch.tensor(levels), atol=1e-3, rtol=0)
        height, width = batch["latents"].shape[2] * 8, batch["latents"].shape[3] * 8
        assert batch["size_ids"][:, 4:].tolist() == [[height, width]] * 4
    assert shapes == {(8, 8), (6, 10), (10, 6)}


def test_two_processes_see_the_batches_of_one(folder: Path) -> None:
    for ratio in (1.0, 2.0):
        one = global_batches([place(data(folder, max_ratio=ratio, batch_size=6), 12)])
        two = global_batches([place(data(folder, max_ratio=ratio, batch_size=3), 12, 0, rank, 2) for rank in range(2)])
        assert one == two


def test_workers_change_nothing(folder: Path) -> None:
    alone, helped = (place(data(folder, num_workers=workers), 6) for workers in (0, 2))
    for ours, theirs in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert ours["caption"] == theirs["caption"]
        assert torch.equal(ours["pixels"], theirs["pixels"])


def test_an_epoch_has_every_training_image_once_and_no_validation_image(folder: Path) -> None:
    module = place(data(folder, num_val=6), 6)
    held_out = [text for batch in module.val_dataloader() for text in batch["caption"]]
    seen = [text for batch in module.train_dataloader() for text in batch["caption"]]
    assert len(held_out) == len(set(held_out)) == 6
    assert sorted(seen + held_out) == sorted(f"number {number}" for number in range(30))
    assert module.captions == sorted(seen + held_out)
    assert held_out == [text for batch in data(folder, num_val=6, seed=5).val_dataloader() for text in batch["caption"]]


def test_validation_positions_tell_its_images_apart(folder: Path) -> None:
    module = data(folder, num_val=9, max_ratio=2.0)
    positions = [at for batch in module.val_dataloader() for at in batch["position"].tolist()]
    assert sorted(positions) == list(range(9))


def test_a_full_store_changes_nothing_and_needs_no_encoder(folder: Path, tmp_path: Path) -> None:
    plain = place(data(folder, max_ratio=2.0), 20)
    plain.encode_with(encode, "means")
    expected = batches(plain)
    encoded_images = []

    def counting(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded_images.extend(pixel_values)
        return encode(pixel_values)

    def forbidden(pixel_values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the store should have had them all")

    for encoder in (counting, forbidden):
        stored = place(data(folder, tmp_path / "cache", max_ratio=2.0), 20)
        stored.encode_with(encoder, "means")
        if encoder is counting:
            stored.encode_ahead()
            assert len(encoded_images) == 30
        for ours, theirs in zip(expected, batches(stored), strict=True):
            assert ours["caption"] == theirs["caption"]
            assert torch.equal(ours["latents"], theirs["latents"])
    other = data(folder, tmp_path / "cache")
    other.encode_with(forbidden, "another key")
    with pytest.raises(AssertionError):
        batches(place(other, 1))


def test_a_store_fills_as_the_training_goes(folder: Path, tmp_path: Path) -> None:
    calls = []
    module = place(data(folder, tmp_path / "cache", batch_size=5), 12)
    module.encode_with(lambda pixel_values: calls.append(len(pixel_values)) or encode(pixel_values), "means")
    first = batches(module)
    # One by one, so that an image's latents do not depend on the batch.
    assert calls == [1] * 30
    assert [batch["step"].item() for batch in first] == list(range(12))


def test_ranks_fill_the_store_without_overlap(folder: Path, tmp_path: Path) -> None:
    shares = []
    for rank in range(2):
        share: list[torch.Tensor] = []
        module = place(data(folder, tmp_path / "cache", num_val=5), 5, rank=rank, ranks=2)
        module.encode_with(
            lambda pixel_values, share=share: share.extend(pixel_values) or encode(pixel_values), "means"
        )
        module.encode_ahead()
        shares.append(len(share))
    assert sum(shares) == 30 and min(shares) > 10


def test_a_changed_image_is_encoded_again(folder: Path, tmp_path: Path) -> None:
    def mean() -> float:
        module = place(data(folder, tmp_path / "cache", batch_size=30), 1)
        module.encode_with(encode, "means")
        return float(batches(module)[0]["latents"].mean())

    before = mean()
    Image.new("RGB", (64, 64), "white").save(folder / "01.png")
    assert mean() > before + 0.01


def test_encoding_ahead_needs_a_folder(folder: Path) -> None:
    module = place(data(folder), 1)
    module.encode_with(encode, "means")
    with pytest.raises(ValueError, match=r"set data\.cache_dir"):
        module.encode_ahead()


def test_unreadable_images_are_counted_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "01.png").write_bytes(b"not an image")
    (folder / "02.png").write_bytes(b"")
    message = r"2 of 30 images cannot be used: cannot read the image \S+01\.png: .*02\.png.*data\.skip_unreadable=true"
    with pytest.raises(ValueError, match=message):
        data(folder)
    module = place(data(folder, skip_unreadable=True, batch_size=28), 1)
    (batch,) = module.train_dataloader()
    assert sorted(batch["caption"]) == sorted(f"number {number}" for number in range(30) if number not in (1, 2))
    assert "01.png" in caplog.text and "left out" in caplog.text


def test_images_that_are_cut_short_are_found_when_they_are_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "01.png")
    (folder / "01.png").write_bytes((folder / "01.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot read the image \S+01\.png: .*; remove them, or leave them out"):
        list(place(data(folder), 8).train_dataloader())
    for _ in range(2):
        module = place(data(folder, tmp_path / "cache", skip_unreadable=True, batch_size=30), 1)
        module.encode_with(encode, "means")
        (batch,) = batches(module)
        # Its place goes to the next image.
        assert set(batch["caption"]) == {f"number {number}" for number in range(30) if number != 1}
        levels = [grey(int(text.removeprefix("number "))) / 127.5 - 1 for text in batch["caption"]]
        torch.testing.assert_close(batch["latents"].mean((1, 2, 3)), torch.tensor(levels), atol=1e-3, rtol=0)
    assert "01.png" in caplog.text


def test_too_many_validation_images(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"30 readable images cannot spare data\.num_val=30"):
        data(folder, num_val=30)


def test_small_buckets_are_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match="have fewer images than a batch"):
        place(data(folder, max_ratio=2.0, batch_size=12), 1).train_dataloader()


class Recorder(L.LightningModule):
    """Adds up what it is shown, as a training would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, str]] = []

    def setup(self, stage: str) -> None:
        self.trainer.datamodule.encode_with(encode, "means")

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen += [(int(batch["step"]), text) for text in batch["caption"]]
        return ((batch["latents"].mean() - self.weight) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: Recorder, source: L.LightningDataModule, steps: int, checkpoint: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, source, ckpt_path=checkpoint)
    return trainer


def test_a_resumed_training_sees_what_it_would_have_seen(folder: Path, tmp_path: Path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    fit(whole, data(folder, max_ratio=2.0), 11)
    # Seven batches of four end inside the first epoch.
    fit(first, data(folder, max_ratio=2.0), 4).save_checkpoint(tmp_path / "four.ckpt")
    fit(second, data(folder, max_ratio=2.0), 11, tmp_path / "four.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


# Hugging Face datasets


@pytest.fixture
def table(folder: Path):
    datasets = pytest.importorskip("datasets", reason='needs pip install -e ".[datasets]"')
    rows = {"image": [str(folder / f"{n:02d}.png") for n in (1, 2, 4)], "text": ["number 1", "number 2", "number 4"]}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def dataset(path: Path, **options):
    from src.data.captions.sources import CaptionDataset

    return CaptionDataset(str(path), **options)


def test_a_saved_dataset_is_read(table, folder: Path, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "saved")
    for path in folder.rglob("*.png"):
        path.unlink()
    source = dataset(tmp_path / "saved")
    assert (len(source), list(source.captions)) == (3, ["number 1", "number 2", "number 4"])
    module = place(CaptionedImages(source, resolution=64, bucket_step=16, batch_size=3), 1)
    (batch,) = module.train_dataloader()
    shown = dict(zip(batch["caption"], batch["pixels"][:, 0, 0, 0].tolist(), strict=True))
    assert shown == {f"number {number}": grey(number) for number in (1, 2, 4)}


def test_an_imagefolder_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason='needs pip install -e ".[datasets]"')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    lines = [{"file_name": f"{n:02d}.png", "text": f"number {n}"} for n in range(30) if n % 3]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for path in [*(folder / "more").iterdir(), *folder.glob("*.txt")]:
        path.unlink()
    source, plain = dataset(folder), CaptionFolder(folder)
    assert list(source.captions) == list(plain.captions)
    with source.open(3) as ours, plain.open(3) as theirs:
        assert ours.read() == theirs.read()


def test_bad_datasets(table, tmp_path: Path) -> None:
    table.save_to_disk(tmp_path / "saved")
    table.map(lambda row, at: {"text": "" if at == 1 else row["text"]}, with_indices=True).save_to_disk(tmp_path / "b")
    for path, options, message in [
        (tmp_path / "saved", {"split": "test"}, "has no split 'test'; choose one of: train"),
        (tmp_path / "saved", {"text_column": "caption"}, "has no column 'caption'; it has: image, text"),
        (tmp_path / "saved", {"image_column": "text"}, "the column 'text' .* not images"),
        (tmp_path / "b", {}, r"1 image \(row 1\) of .* without a caption"),
        (tmp_path / "absent", {}, r"there is no dataset at .*download=true"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataset(path, **options)


# Shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Seven shards of unequal length, 36 images in all."""
    pytest.importorskip("webdataset", reason='needs pip install -e ".[webdataset]"')
    numbers = iter(range(36))
    return [write_shard(tmp_path / f"{i}.tar", itertools.islice(numbers, size)) for i, size in enumerate(LENGTHS)]


LENGTHS = (3, 8, 5, 1, 7, 6, 6)


def write_shard(path: Path, numbers) -> str:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, content in (("png", encoded(number)), ("txt", f"number {number}".encode())):
                add(tar, f"{number:03d}.{suffix}", content)
    return str(path)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def streamed(shards: list[str], batch_size: int = 8, num_streams: int = 4, **options) -> CaptionedShards:
    from src.data.captions.shards import CaptionShards

    return CaptionedShards(CaptionShards(shards, num_streams, block=4), 64, batch_size, **options)


def test_streams_together_show_every_sample_once_an_epoch(shards: list[str]) -> None:
    from src.data.captions.shards import CaptionShards

    source = CaptionShards(shards, 3, block=4)
    orders = [np.random.default_rng([0, epoch]).permutation(7) for epoch in range(3)]
    taken = [source.stream(number) for number in range(3)]
    epochs = []
    for order in orders:
        lengths = [sum(LENGTHS[shard] for shard in order[number::3]) for number in range(3)]
        epochs.append([s.caption for flow, n in zip(taken, lengths, strict=True) for s in itertools.islice(flow, n)])
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"number {number}" for number in range(36))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (4, 0), (1, 2), (1, 3), (2, 2)])
def test_the_global_batch_does_not_depend_on_who_reads(shards: list[str], ranks: int, workers: int) -> None:
    one = global_batches([place(streamed(shards), 6)])
    shared = [place(streamed(shards, 8 // ranks, num_workers=workers), 6, 0, rank, ranks) for rank in range(ranks)]
    assert global_batches(shared) == one
    assert [[at for at, _ in step] for step in one] == [list(range(8))] * 6


def test_a_resumed_stream_gives_the_tail(shards: list[str]) -> None:
    whole = global_batches([place(streamed(shards), 12)])
    assert global_batches([place(streamed(shards), 12, first=7)]) == whole[7:]
    assert len(place(streamed(shards), 12, first=7).train_dataloader()) == 12


def test_a_resumed_training_on_shards(shards: list[str], tmp_path: Path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    fit(whole, streamed(shards), 7)
    fit(first, streamed(shards), 3).save_checkpoint(tmp_path / "three.ckpt")
    fit(second, streamed(shards), 7, tmp_path / "three.ckpt")
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


def test_shards_show_the_image_of_the_caption_and_use_the_store(shards: list[str], tmp_path: Path) -> None:
    calls: list[int] = []
    ends = []
    for _ in range(2):
        module = place(streamed(shards, cache_dir=str(tmp_path / "cache")), 9)
        module.encode_with(lambda pixel_values: calls.append(len(pixel_values)) or encode(pixel_values), "means")
        for batch in batches(module):
            levels = [grey(int(text.removeprefix("number "))) / 127.5 - 1 for text in batch["caption"]]
            torch.testing.assert_close(batch["latents"].mean((1, 2, 3)), torch.tensor(levels), atol=1e-3, rtol=0)
        ends.append(len(calls))
    assert ends[0] == ends[1] > 0


def test_validation_shards(shards: list[str]) -> None:
    from src.data.captions.shards import CaptionShards

    module = streamed(shards[2:], val=CaptionShards(shards[:2], 1), num_val=10)
    for _ in range(2):
        found = list(module.val_dataloader())
        assert [text for batch in found for text in batch["caption"]] == [f"number {number}" for number in range(10)]
        assert [at for batch in found for at in batch["position"].tolist()] == list(range(10))
    assert streamed(shards).val_dataloader() == []


def test_unreadable_images_in_shards(tmp_path: Path, shards: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.png", encoded(0)), ("a.txt", b"number 0"), ("b.png", b"no"), ("b.txt", b"bad")):
            add(tar, name, content)
        for name, content in (("c.png", encoded(2)), ("c.txt", b"number 2")):
            add(tar, name, content)
    with pytest.raises(ValueError, match=r"cannot read the image b in \S+0\.tar: .*skip_unreadable=true"):
        global_batches([place(streamed(shards[:1], 3, 1), 2)])
    seen = global_batches([place(streamed(shards[:1], 3, 1, skip_unreadable=True), 2)])
    assert {text for step in seen for _, text in step} == {"number 0", "number 2"}
    # The count goes on as if it had been readable.
    assert global_batches([place(streamed(shards[:1], 3, 1, skip_unreadable=True), 2, first=1)]) == seen[1:]
    assert "b in " in caplog.text


def test_a_shard_of_images_that_need_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.data.captions.shards.MEMBERS", ("png",))
    monkeypatch.setattr("src.data.images.EXTENSIONS", (".png",))
    with tarfile.open(tmp_path / "phone.tar", "w") as tar:
        add(tar, "a.heic", b"")
    with pytest.raises(ValueError, match=r"a in .* has no image; it has: heic; to read .heic run: pip install -e"):
        streamed([str(tmp_path / "phone.tar")], num_streams=1)


def test_bad_shards(tmp_path: Path, shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"there is no shard \S+8\.tar \(2 of 9 are missing\)"):
        streamed([*shards, str(tmp_path / "{8..9}.tar")])
    with pytest.raises(ValueError, match=r"7 shards cannot be dealt to data\.num_streams=8"):
        streamed(shards, num_streams=8)
    for name, members, message in [
        ("bare", {"a.png": encoded(0)}, "a in .* has no caption: there is no member txt, only: png"),
        ("blank", {"a.png": encoded(0), "a.txt": b" "}, "a in .* has no caption: txt holds no text"),
        ("words", {"a.txt": b"number"}, "a in .* has no image; it has: txt"),
        ("empty", {}, "is empty"),
    ]:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for member, content in members.items():
                add(tar, member, content)
        with pytest.raises(ValueError, match=message):
            streamed([str(tmp_path / f"{name}.tar")], num_streams=1)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(ValueError, match=r"the shard \S+cut\.tar is cut short"):
        streamed([str(tmp_path / "cut.tar")], 4, 1)
    (tmp_path / "noise.tar").write_bytes(b"noise" * 300 + bytes(1024))
    with pytest.raises(ValueError, match=r"the shard \S+noise\.tar cannot be read"):
        streamed([str(tmp_path / "noise.tar")], 4, 1)


def test_json_captions(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason='needs pip install -e ".[webdataset]"')
    from src.data.captions.shards import CaptionShards

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.jpg", encoded(0))
        add(tar, "a.json", json.dumps({"caption": "a  dog", "other": 3}).encode())
    assert next(CaptionShards(str(tmp_path / "0.tar"), 1, "json.caption").stream(0)).caption == "a dog"
    for field in ("other", "absent"):
        with pytest.raises(ValueError, match=f"json.{field} holds no text"):
            CaptionShards(str(tmp_path / "0.tar"), 1, f"json.{field}")


@pytest.mark.parametrize(
    ("ranks", "batch", "workers", "message"),
    [
        (3, 4, 0, "num_streams is 4; it must be a multiple of the 3 processes"),
        (1, 6, 0, "divide the global batch of 6"),
        (2, 4, 3, "num_workers is 3, but each process has 2 of the streams"),
    ],
)
def test_streams_that_cannot_be_shared(shards: list[str], ranks: int, batch: int, workers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(streamed(shards, batch, num_workers=workers), 1, ranks=ranks).setup("fit")
