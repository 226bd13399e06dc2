"""What a training is of, noted in its checkpoints."""

from collections.abc import Mapping
from typing import Any

import lightning as L


class Recorded(L.Callback):
    """Notes in every checkpoint what the product depends on, by which a resumed training knows it again.

    Args:
        record: Nested settings and hashes, as plain values.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = dict(record)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add it."""
        checkpoint["record"] = self.record
