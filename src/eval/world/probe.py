"""Reads object, colour, pattern and background off an image of the world; it only measures, no method sees it."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch

from src.data.identity import weights_fingerprint
from src.data.images import Picture
from src.data.world.datamodules import ATTRIBUTES
from src.eval.encoders.models import LOCAL, read_ahead
from src.eval.encoders.preprocessing import Preprocessing, of_timm


class Probe:
    """The classifier that ``python train.py +experiment=world/probe`` trains on ground truth.

    Args:
        model: A timm folder, such as ``local-dir:world/probe``.
        device: Where it runs.

    Raises:
        ValueError: If there is no such folder.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        folder = Path(model.removeprefix(LOCAL))
        if not (folder / "config.json").exists():
            raise ValueError(f"there is no probe in {folder}; train it: python train.py +experiment=world/probe")
        self.source, self.device = model, device
        self.sizes = [len(words) for words in ATTRIBUTES.values()]

    @cached_property
    def model(self) -> Any:
        """The network, which is loaded when it is first asked.

        Raises:
            ValueError: If it answers other questions.
        """
        model = timm.create_model(self.source, pretrained=True).eval()
        if model.num_classes != sum(self.sizes):
            raise ValueError(f"the probe {self.source} has {model.num_classes} outputs, not {sum(self.sizes)}")
        return model.to(self.device)

    @cached_property
    def identity(self) -> str:
        """Its folder, hash of the weights, preprocessing."""
        return f"{self.source}, weights {weights_fingerprint(self.model.state_dict())}, {self.preprocessing}"

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of the network's training."""
        return of_timm(self.model.pretrained_cfg)

    @torch.inference_mode()
    def read(self, images: Iterable[Picture]) -> dict[str, list[str]]:
        """One word per image for each of ``ATTRIBUTES``."""
        device = next(self.model.parameters()).device
        batches = (torch.stack(batch).to(device) for batch in read_ahead(self.preprocessing, images))
        logits = torch.cat([self.model(batch).cpu() for batch in batches])
        answers = zip(ATTRIBUTES.items(), logits.split(self.sizes, -1), strict=True)
        return {name: [words[index] for index in one.argmax(-1).tolist()] for (name, words), one in answers}
