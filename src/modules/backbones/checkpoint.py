"""What a pipeline is loaded from: a folder in diffusers' layout, a repository of the hub, or one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from diffusers import DiffusionPipeline
from torch import Tensor

from src.data.first_looks import looks_local
from src.data.identity import is_variant, pipeline_parts, read_tensors
from src.data.model_index import read_model_index
from src.data.schema import read_json
from src.modules.backbones.autoencoder import Autoencoder
from src.modules.backbones.families import check_family
from src.modules.backbones.lora import Lora, loras_hash
from src.modules.backbones.single_file import SingleFile
from src.modules.backbones.tensors import DTYPES

KNOWN_BY_CONTENT = ("path", "local_files_only", "config", "variant", "revision", "vae", "lora", "controlnet")
"""Settings that say where a model is: what is there is hashed."""
HALF = "fp16"
"""The variant that a working precision of 16 bits takes, where there is one."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on a disk or on the hub.

    Attributes:
        path: Folder, hub id or ``.safetensors``.
        dtype: Working precision, a key of ``DTYPES``.
        local_files_only: Whether what is on the hub must have been fetched before.
        config: Folder or hub id with the configurations of a file; None for those of the published model.
        variant: Files of weights that are read, such as ``fp16``; None for these where ``dtype`` has 16 bits and the
            model has them, and else for the plain ones.
        revision: Branch, tag or commit of a hub id; None for its main branch.
        vae: Folder, hub id or file of another autoencoder; None for the model's own.
        lora: Changes of low rank, each ``{path: FILE, scale: 0.8}`` or a path alone.
        controlnet: Folder or hub id of a ControlNet, which reads ``control=FILE`` of generate.py.
    """

    path: str
    dtype: str = "float32"
    local_files_only: bool = False
    config: str | None = None
    variant: str | None = None
    revision: str | None = None
    vae: str | None = None
    lora: Sequence[str | Mapping[str, Any]] = ()
    controlnet: str | None = None

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
    def autoencoder(self) -> Autoencoder | None:
        """What takes the place of the model's own autoencoder."""
        return None if self.vae is None else Autoencoder(self.vae, self.local_files_only)

    @property
    def loras(self) -> list[Lora]:
        """The changes of low rank, in their order."""
        return [Lora.of(one) for one in self.lora]

    @property
    def name(self) -> str:
        """Name of the model in banks and reports."""
        return self.path if self.place is None else self.place.name

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings that choose this checkpoint on the command line."""
        names = ("path", "dtype", "config", "variant", "revision", "vae", "lora", "controlnet")
        chosen = {name: getattr(self, name) for name in names}
        return {f"backbone.{name}": value for name, value in chosen.items() if value}

    def check(self, kind: Any = None) -> None:
        """Refuse what cannot be loaded, before weights are read.

        Args:
            kind: The class of backbone that it is loaded for; None for any.

        Raises:
            ValueError: If the folder is missing or of another kind, the file holds something else, or an option does
                not go with it.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"backbone.dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        for name, value in (("revision", self.revision), ("variant", self.variant)):
            if value is not None and (self.file or name == "revision" and self.place):
                takes = "the hub" if name == "revision" else "a folder or the hub"
                raise ValueError(f"backbone.{name} is for a model of {takes}, not for {self.path}: leave it out")
        if self.autoencoder:
            self.autoencoder.check()
        width = self._text_width()
        for lora in self.loras:
            lora.check(width)
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
            if kind is not None:
                check_family(self.place, self.name, kind)
            self._variant(self.place)

    def load(self, kind: Any = None) -> DiffusionPipeline:
        """Load the pipeline.

        Args:
            kind: As of ``check``.

        Raises:
            ValueError: As in ``check``, or if the other autoencoder does not fit.
        """
        self.check(kind)
        dtype = DTYPES[self.dtype]
        if self.file:
            pipeline = self.file.load(dtype)
        else:
            folder = self.folder()
            if kind is not None:
                check_family(folder, self.name, kind)
            # SD3 may do without its third text encoder, which diffusers takes for missing unless it is told.
            absent = {
                name: None
                for name, held in read_model_index(folder).items()
                if held == [None, None] and name.startswith(("text_encoder", "tokenizer"))
            }
            pipeline = DiffusionPipeline.from_pretrained(
                str(folder),
                dtype=dtype,
                variant=self._variant(folder),
                local_files_only=True,
                use_safetensors=True,
                **absent,
            )
            pipeline.register_to_config(_name_or_path=str(self.place or self.path))
        if self.autoencoder:
            pipeline.register_modules(vae=self.autoencoder.load(pipeline.vae, dtype))
        return pipeline

    def parts(self) -> dict[str, str]:
        """Hash each part of what is loaded, without loading it; a hub id is fetched.

        Raises:
            ValueError: As in ``check``.
        """
        if self.file:
            parts = self.file.parts()
        else:
            folder = self.folder()
            parts = pipeline_parts(folder, self._variant(folder))
        if self.autoencoder:
            parts["vae"] = self.autoencoder.content_hash(parts["vae"])
        return {**parts, "lora": loras_hash(self.loras)} if self.lora else parts

    def denoiser_tensors(self, part: str, names: list[str]) -> dict[str, Tensor]:
        """Read some weights of the denoiser by their names, in the precision of its files.

        Args:
            part: The denoiser's folder, ``unet`` or ``transformer``.
            names: Names in diffusers.
        """
        if self.file:
            return self.file.unet_tensors(names)
        folder = self.folder()
        return read_tensors(folder / part, names, self._variant(folder))

    def _text_width(self) -> int | None:
        """Width of the text that the UNet's cross-attention reads; None where that takes more than a look."""
        if self.file:
            return self.file.text_width()
        path = self.place / "unet" / "config.json" if self.place else None
        return (
            read_json(path, "the UNet's configuration").get("cross_attention_dim") if path and path.exists() else None
        )

    def folder(self) -> Path:
        """The folder on this machine; a hub id is fetched, unless that is forbidden."""
        if self.place is not None:
            return self.place
        wanted = self.variant or (None if self.dtype == "float32" else HALF)
        return Path(
            DiffusionPipeline.download(
                self.path,
                variant=wanted,
                revision=self.revision,
                local_files_only=self.local_files_only,
                use_safetensors=True,
            )
        )

    def _variant(self, folder: Path) -> str | None:
        """The variant that is read from a folder.

        Raises:
            ValueError: If the one that is asked for is not there, or the folder is no pipeline.
        """
        parts = [folder / name for name, value in read_model_index(folder).items() if isinstance(value, list)]
        weights = {part: list(part.glob("*.safetensors")) for part in parts}
        wanted = self.variant or HALF
        having = [part for part, files in weights.items() if any(is_variant(one, wanted) for one in files)]
        if self.variant is not None and not having:
            raise ValueError(f"{self.path} has no files of backbone.variant={self.variant}, such as *.{self.variant}.*")
        # A folder may hold nothing but these.
        alone = any(all(is_variant(one, wanted) for one in weights[part]) for part in having)
        return wanted if having and (self.variant or alone or self.dtype != "float32") else None
