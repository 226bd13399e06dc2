"""Read a model from one ``.safetensors`` in the original layout, as fine-tunes of Stable Diffusion are published.

What the file is, its header says, before any weight is read. Diffusers' own loader then converts the weights.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    convert_ldm_unet_checkpoint,
)
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn

from src.data.first_looks import looks_local
from src.data.identity import file_parts
from src.data.model_index import read_model_index
from src.modules.backbones.architectures import SD1, SD2, SDXL, Architecture
from src.modules.backbones.headers import FIRST_LAYER, LAST_LAYER, described, holds, read_header

TEXT = {"cond_stage_model.transformer.": SD1, "cond_stage_model.model.": SD2, "conditioner.embedders.1.": SDXL}
"""How the text encoder of each architecture is called in a file."""
BASE_SIDE, ASKED_SIDE, LAST_TIMESTEP = 64, 32, 999
"""Side of the latents of Stable Diffusion 2 base, which predicts noise; what such a model is asked."""
CONFIGURATIONS = ["*.json", "*.txt", "*/*.json", "*/*.txt"]


def architecture_of(path: Path) -> Architecture:
    """Tell from its header which model a file holds.

    Raises:
        ValueError: If it holds none, another one, or only a part of one.
    """
    metadata, shapes = read_header(path)
    found = next((one for prefix, one in TEXT.items() if holds(shapes, prefix)), None)
    # A UNet that reads more channels than it predicts inpaints or edits.
    reads, predicts = shapes.get(FIRST_LAYER, (0, 0))[1], shapes.get(LAST_LAYER, (1,))[0]
    if found is None or reads != predicts or not holds(shapes, "first_stage_model.") or "edm_mean" in shapes:
        raise ValueError(
            f"{path} holds {described(metadata, shapes)}, but backbone.path takes a whole text-to-image model: "
            f"{', '.join(one.name for one in TEXT.values())}, in the original layout"
        )
    if "v_pred" in shapes:  # So mark fine-tunes of SDXL that they predict velocity.
        kind, schedule = found.scheduler
        velocity = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in shapes}
        found = replace(found, scheduler=(kind, {**schedule, **velocity}))
    return found


@torch.no_grad()
def predicts_noise(unet: UNet2DConditionModel) -> bool:
    """Ask a UNet whether it predicts noise or velocity, which no header of Stable Diffusion 2.x says.

    At the last timestep an image is nearly all noise. Who predicts noise gives it back; velocity is there the image
    with its sign changed, of which the noise says nothing. Diffusers asks the number of training steps instead, which
    these files leave out, and takes all others for velocity.
    """
    noise = torch.randn(1, unet.config.in_channels, ASKED_SIDE, ASKED_SIDE, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=unet.dtype)
    found = unet(noise.to(unet.dtype), LAST_TIMESTEP, text).sample.float()
    return bool(torch.cosine_similarity(found.flatten(), noise.flatten(), dim=0) > 0.5)


class SingleFile:
    """One file of weights, with the configurations and tokenizers that belong to it.

    Args:
        path: The file.
        config: Folder or hub id in diffusers' layout, whose configurations count; None for the published model's.
        local_files_only: Whether a hub id must have been fetched before.
    """

    def __init__(self, path: Path, config: str | None = None, local_files_only: bool = False) -> None:
        self.path, self.config, self.local_files_only = path, config, local_files_only

    def check(self) -> None:
        """Refuse a file that cannot be loaded, by its header.

        Raises:
            ValueError: As in ``architecture_of``, or if the UNet is of another size than its configuration.
        """
        with self._configuration() as folder:
            self._unet_names(folder)

    def parts(self) -> dict[str, str]:
        """Hash each part of the pipeline: the file, and the part's configuration."""
        with self._configuration() as folder:
            return file_parts(folder, self.path)

    def load(self, dtype: torch.dtype) -> DiffusionPipeline:
        """Load the pipeline.

        Raises:
            ValueError: As in ``check``, or if weights are missing.
        """
        self.check()
        name = architecture_of(self.path).pipeline
        kind = StableDiffusionXLPipeline if name == "StableDiffusionXLPipeline" else StableDiffusionPipeline
        with self._configuration() as folder:
            level = logging.get_verbosity()
            logging.set_verbosity_error()  # It warns of each part that no part is kept in float32.
            try:
                pipeline = kind.from_single_file(
                    str(self.path), config=str(folder), dtype=dtype, local_files_only=True, safety_checker=None
                )
            except NotImplementedError as error:  # Torch would copy a weight that was never read.
                raise ValueError(f"{self._misfit} (weights are missing)") from error
            except (SingleFileComponentError, ValueError) as error:
                raise ValueError(f"{self._misfit} ({str(error).splitlines()[0]})") from error
            finally:
                logging.set_verbosity(level)
        for part, module in pipeline.components.items():
            missing = [n for n, p in module.named_parameters() if p.is_meta] if isinstance(module, nn.Module) else []
            if missing:
                raise ValueError(f"{self._misfit} ({missing[0]} of the {part} is missing)")
        pipeline.register_to_config(_name_or_path=str(self.path))
        if self.config is None and architecture_of(self.path).name == SD2.name and predicts_noise(pipeline.unet):
            pipeline.scheduler.register_to_config(prediction_type="epsilon")
            pipeline.unet.register_to_config(sample_size=BASE_SIDE)
        return pipeline

    def unet_tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Read some weights of the UNet by their names in diffusers, in the precision of the file."""
        with self._configuration() as folder, safe_open(self.path, "pt") as file:
            original = self._unet_names(folder)
            return {name: file.get_tensor(original[name]) for name in names}

    def text_width(self) -> int | None:
        """Return the width of the text that the UNet's cross-attention reads; None if the file holds no UNet."""
        _, shapes = read_header(self.path)
        return next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)

    @property
    def _misfit(self) -> str:
        return (
            f"{self.path} is built otherwise than {self.config or architecture_of(self.path).published}; give "
            "backbone.config=FOLDER, a folder in diffusers' layout with the configurations of this model"
        )

    def _unet_names(self, folder: Path) -> dict[str, str]:
        """Map each weight of the UNet to its name in the file; the shapes are compared on the way."""
        _, shapes = read_header(self.path)
        config = UNet2DConditionModel.load_config(str(folder), subfolder="unet")
        with torch.device("meta"):
            expected = UNet2DConditionModel.from_config(config).state_dict()
        # Diffusers' conversion of the weights moves them as they are: here it moves their names.
        try:
            names: dict[str, str] = convert_ldm_unet_checkpoint({name: name for name in shapes}, config)
        except KeyError as error:
            raise ValueError(f"{self._misfit} ({error} of the unet is missing)") from error
        for name, tensor in expected.items():
            found = shapes.get(names.get(name, ""))
            if found != tuple(tensor.shape):
                told = "is missing" if found is None else f"is {found} and not {tuple(tensor.shape)}"
                raise ValueError(f"{self._misfit} ({name} of the unet {told})")
        return names

    @contextlib.contextmanager
    def _configuration(self) -> Iterator[Path]:
        """Yield a folder in diffusers' layout, with or without weights, whose configurations belong to the file."""
        kind = architecture_of(self.path)
        if self.config is None:
            with TemporaryDirectory() as folder:
                kind.write(Path(folder))
                yield Path(folder)
            return
        if looks_local(self.config):
            found = Path(self.config).expanduser()
        else:
            found = Path(
                snapshot_download(self.config, allow_patterns=CONFIGURATIONS, local_files_only=self.local_files_only)
            )
        named = read_model_index(found)["_class_name"]
        if named != kind.pipeline:
            raise ValueError(f"{self.path} is a {kind.name}, but backbone.config={self.config} is of a {named}")
        yield found
