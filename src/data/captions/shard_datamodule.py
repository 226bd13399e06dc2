"""Images with captions streamed from shards; each image goes to one worker of one process, whatever their number."""

from typing import ClassVar

from src.data.captions.buckets import aspect_buckets
from src.data.captions.datamodule import EncodedData
from src.data.captions.shards import CaptionShards, Reader, StepBatches, StreamShares, ValidationBatches
from src.data.order import batches_of
from src.data.ranges import BatchSize, Number, Side, Workers


class CaptionedShards(EncodedData):
    """Loads shards as batches of square images.

    Every stream gives the same number of images to each global batch, at fixed positions. So the global batch of a step
    depends only on the seed, not on how many processes and workers share the streams. A resumed training reads on to
    its place without decoding anything.

    Args:
        train: Shards to train on.
        resolution: Side of the images in pixels; they are cropped to squares.
        batch_size: Images per step and rank.
        val: Shards for the validation loss, or None.
        num_val: Number of their first images that it uses.
        cache_dir: Folder for latents; None to encode every batch anew.
        skip_unreadable: Whether the next image replaces one that cannot be read, instead of stopping.
        num_workers: Number of processes that read and crop images; at most one per stream of the rank.
    """

    incidental: ClassVar[tuple[str, ...]] = ("val", "num_val", "cache_dir", "num_workers")

    def __init__(
        self,
        train: CaptionShards,
        resolution: Side = 512,
        batch_size: BatchSize = 1,
        val: CaptionShards | None = None,
        num_val: Number = 256,
        cache_dir: str | None = None,
        skip_unreadable: bool = False,
        num_workers: Workers = 0,
    ) -> None:
        super().__init__(cache_dir)
        (self.bucket,) = aspect_buckets(resolution, step=8)
        self.train, self.val, self.num_val = train, val, num_val
        self.batch_size, self.skip_unreadable, self.num_workers = batch_size, skip_unreadable, num_workers

    def setup(self, stage: str) -> None:
        """Check that the streams can be shared.

        Raises:
            ValueError: If they cannot be shared evenly by the processes or the batches, or a worker would have none.
        """
        streams, ranks = self.train.num_streams, self.trainer.world_size
        if streams % ranks or self.batch_size * ranks % streams:
            raise ValueError(
                f"data.train.num_streams is {streams}; it must be a multiple of the {ranks} processes and divide the "
                f"global batch of {self.batch_size * ranks}"
            )
        if self.num_workers > streams // ranks:
            raise ValueError(
                f"data.num_workers is {self.num_workers}, but each process has {streams // ranks} of the streams to "
                "read; give at most as many, or a larger data.train.num_streams"
            )

    def train_dataloader(self) -> StepBatches:
        """Load batches from the trainer's current step on."""
        trainer = self.trainer
        number = self.train.num_streams // trainer.world_size
        streams = range(trainer.global_rank * number, (trainer.global_rank + 1) * number)
        num_batches, first_batch = batches_of(trainer)
        steps = range(first_batch, num_batches)
        shares = StreamShares(self.train, streams, self.batch_size // number, steps, self._reader())
        return StepBatches(shares, self.num_workers)

    def val_dataloader(self) -> ValidationBatches | list:
        """Load the first images of the validation shards, the same on every rank."""
        return ValidationBatches(self.val, self.num_val, self.batch_size, self._reader()) if self.val else []

    def _reader(self) -> Reader:
        return Reader(self.bucket, self.store, self.skip_unreadable)
