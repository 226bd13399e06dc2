"""CLIP and DINO models by a library's name or by a local folder; a wrong name is refused before anything is loaded."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from src.eval.encoders.network import BATCH, LOCAL, NetworkEncoder, Preprocessing, quiet


class OpenClipEncoder(NetworkEncoder):
    """Any open_clip model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/clip`` or ``ViT-B-32-quickgelu``.
        pretrained: Tag or file of the weights; needless for a folder or ``hf-hub:``.
        device: Where it runs.

    Raises:
        ValueError: If there is no such model, it has no such weights, or their activation is not the model's.
    """

    def __init__(self, model: str, pretrained: str | None = None, device: str = "cpu") -> None:
        _check_folder(model, "open_clip_config.json")
        if ":" not in model:
            _check_known(model, open_clip.list_models(), "open_clip")
            _check_weights(model, pretrained)
        super().__init__(f"open_clip {model}" + (f" {pretrained}" if pretrained else ""), device)
        self.source, self.pretrained = model, pretrained

    def load(self) -> nn.Module:
        """The network with its weights."""
        return open_clip.create_model(
            self.source, pretrained=self.pretrained, require_pretrained=True, weights_only=True
        )

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens."""
        with quiet():
            return open_clip.get_tokenizer(self.source)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of the network's training."""
        config = self.model.visual.preprocess_cfg
        side = config["size"] if isinstance(config["size"], int) else config["size"][0]
        return Preprocessing(side, side, tuple(config["mean"]), tuple(config["std"]))

    def features(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings ``(N, D)``."""
        return self.model.encode_image(pixel_values)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU; each text is encoded once."""
        places = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        unique = list(places)
        chunks = (unique[start : start + BATCH] for start in range(0, len(unique), BATCH))
        features = torch.cat([self.model.encode_text(self.tokenizer(chunk).to(self.device)) for chunk in chunks])
        return normalize(features.float(), dim=-1).cpu()[[places[text] for text in texts]]


class TimmEncoder(NetworkEncoder):
    """Pooled features of any timm model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/dino`` or ``vit_small_patch16_224.dino``.
        resize: Shorter side before the centre crop; by default the crop itself. timm's own margin is not used: for the
            DINO models it is not that of their authors.
        crop: Side that a vision transformer sees, where it is not the one of timm: DINOv2 has 518 there, 224 in papers.
        device: Where it runs.

    Raises:
        ValueError: If there is no such model.
    """

    def __init__(self, model: str, resize: int | None = None, crop: int | None = None, device: str = "cpu") -> None:
        _check_folder(model, "config.json")
        if ":" not in model:
            _check_known(model, timm.list_models(pretrained=True), "timm")
        super().__init__(f"timm {model}", device)
        self.source, self.resize, self.crop = model, resize, crop

    def load(self) -> nn.Module:
        """The network with its weights and without its classifier."""
        size = {} if self.crop is None else {"img_size": self.crop}
        return timm.create_model(self.source, pretrained=True, num_classes=0, **size)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of the network's training, but for the sides."""
        config = self.model.pretrained_cfg
        side = self.crop or config["input_size"][-1]
        return Preprocessing(self.resize or side, side, tuple(config["mean"]), tuple(config["std"]))

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pooled features ``(N, D)``: for DINO the class token after the last norm."""
        return self.model(pixel_values)


def _check_folder(model: str, config: str) -> None:
    folder = Path(model.removeprefix(LOCAL))
    if model.startswith(LOCAL) and not (folder / config).exists():
        raise ValueError(f"the encoder {model} needs the file {folder / config}, which does not exist")


def _check_known(model: str, known: Sequence[str], library: str) -> None:
    if model not in known:
        close = get_close_matches(model, known, n=1)
        advice = f"did you mean model={close[0]}?" if close else f"a folder is written model={LOCAL}FOLDER"
        raise ValueError(f"{library} has no pretrained model {model!r}; {advice}")


def _check_weights(model: str, pretrained: str | None) -> None:
    """Before a download: open_clip itself only warns of a wrong activation, and every score would be off."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ValueError(f"open_clip's {model} needs weights: set pretrained, e.g. pretrained=openai")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(f"open_clip has no weights {pretrained!r} of {model}; choose one of: {', '.join(tags)}")
    trained = (open_clip.get_pretrained_cfg(model, pretrained) or {}).get("quick_gelu", False)
    if trained and not (open_clip.get_model_config(model) or {}).get("quick_gelu", False):
        raise ValueError(f"the weights {pretrained} of {model} need QuickGELU; use model={model}-quickgelu")
