"""What a pipeline is loaded from: a folder in diffusers' layout, a repository of the hub, or one file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from src.data.first_looks import looks_local
from src.data.identity import pipeline_parts, read_tensors
from src.data.model_index import read_model_index
from src.modules.backbones.single_file import SingleFile


@dataclass(frozen=True)
class Checkpoint:
    """A model on a disk or on the hub.

    Attributes:
        path: Folder, hub id or ``.safetensors``.
        local_files_only: Whether what is on the hub must have been fetched before.
        config: Folder or hub id with the configurations of a file; None for those of the published model.
    """

    path: str
    local_files_only: bool = False
    config: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Choose what belongs to a checkpoint among the settings of a backbone."""
        return cls(**{one.name: settings[one.name] for one in fields(cls) if one.name in settings})

    @property
    def place(self) -> Path | None:
        """Folder or file on this machine; None for a hub id."""
        return Path(self.path).expanduser() if looks_local(self.path) else None

    @property
    def file(self) -> SingleFile | None:
        """The file, if it is one."""
        place = self.place
        is_file = place is not None and place.is_file()
        return SingleFile(place, self.config, self.local_files_only) if place is not None and is_file else None

    @property
    def name(self) -> str:
        """Name of the model in banks and reports."""
        return self.path if self.place is None else self.place.name

    @property
    def overrides(self) -> dict[str, str]:
        """Settings that choose this checkpoint on the command line."""
        return {"backbone.path": self.path, **({"backbone.config": self.config} if self.config else {})}

    def check(self) -> None:
        """Refuse what cannot be loaded, before weights are read.

        Raises:
            ValueError: If the folder is missing or of another kind, or the file holds something else.
        """
        if self.file:
            self.file.check()
            return
        if self.config is not None:
            raise ValueError(
                f"backbone.config goes with one file of weights, and {self.path} has its own: leave backbone.config out"
            )
        if self.place is not None:
            if not (self.place / "model_index.json").exists():
                raise ValueError(f"{self.path} is no diffusers pipeline folder: it has no model_index.json")
            read_model_index(self.place)

    def load(self, dtype: torch.dtype) -> DiffusionPipeline:
        """Load the pipeline.

        Raises:
            ValueError: As in ``check``.
        """
        self.check()
        if self.file:
            return self.file.load(dtype)
        return DiffusionPipeline.from_pretrained(
            str(self.place or self.path), dtype=dtype, local_files_only=self.local_files_only, use_safetensors=True
        )

    def parts(self) -> dict[str, str]:
        """Hash each part of what is loaded, without loading it; a hub id is fetched.

        Raises:
            ValueError: As in ``check``.
        """
        return self.file.parts() if self.file else pipeline_parts(self._folder())

    def denoiser_tensors(self, part: str, names: list[str]) -> dict[str, Tensor]:
        """Read some weights of the denoiser by their names, in the precision of its files.

        Args:
            part: The denoiser's folder, ``unet`` or ``transformer``.
            names: Names in diffusers.
        """
        return self.file.unet_tensors(names) if self.file else read_tensors(self._folder() / part, names)

    def _folder(self) -> Path:
        """The folder on this machine; a hub id is fetched, unless that is forbidden."""
        if self.place is not None:
            return self.place
        return Path(DiffusionPipeline.download(self.path, local_files_only=self.local_files_only, use_safetensors=True))
