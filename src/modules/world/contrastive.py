"""Pretrain the world's CLIP, an image and a text tower of open_clip, on scenes and their captions."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP, ClipLoss
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from transformers import CLIPTokenizer

from src.data.ranges import Count, Seed, Share
from src.data.world.tokenizers import write_clip_tokenizer
from src.data.world.vocabulary import HELD_OUT_STYLES
from src.modules.training.groups import matrices_and_vectors
from src.modules.training.learner import Learner, TrainingRecord

IMAGE_SIZE = 64
MAX_TOKENS = 40
GROUP = 100
MAX_LOGIT_SCALE = math.log(100)
PREPROCESS = {
    "size": [IMAGE_SIZE, IMAGE_SIZE],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


class ContrastivePretraining(Learner):
    """Trains CLIP to tell which caption belongs to which scene of the batch.

    Args:
        export_dir: Folder that receives an open_clip checkpoint (``local-dir:`` of ``open_clip.create_model``).
        vision_cfg: As in open_clip's model configs; a list of layers means its modified ResNet, a number its ViT.
        text_cfg: As in open_clip's model configs, without the tokenizer's keys.
        embed_dim: Dimensions of the space that images and texts share.
        full_caption_share: Share of images paired with their longest true caption; the others keep a sampled caption.
        init_from: Folder that ``export`` wrote, whose weights to start from, with those of a word under the word's
            number here; None for random weights.
        seed: Seed of the initial weights and the choice of captions.
    """

    def __init__(
        self,
        export_dir: str,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        embed_dim: Count = 128,
        full_caption_share: Share = 0.5,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.full_caption_share, self.seed = export_dir, full_caption_share, seed
        # Embeddings belong to the vocabulary that they were trained with, so a resumed run keeps the one in its folder.
        if not (Path(export_dir) / "vocab.json").exists():
            write_clip_tokenizer(export_dir, HELD_OUT_STYLES.values())
        self.tokenizer = CLIPTokenizer.from_pretrained(export_dir, model_max_length=MAX_TOKENS)
        # Any name makes open_clip read the tokenizer that lies beside the weights.
        words = {"context_length": MAX_TOKENS, "vocab_size": len(self.tokenizer), "hf_tokenizer_name": "local"}
        image = {"image_size": IMAGE_SIZE, **vision_cfg}
        self.model_cfg = {"embed_dim": embed_dim, "vision_cfg": image, "text_cfg": {**words, **text_cfg}}
        torch.manual_seed(seed)
        # Half-precision convolutions on CPUs are twice as fast with channels last.
        self.clip = CLIP(**self.model_cfg).to(memory_format=torch.channels_last)
        if init_from:
            self._start_from(Path(init_from))
        self.loss = ClipLoss()
        self.matches: list[tuple[Tensor, Tensor, list[str]]] = []

    def _start_from(self, folder: Path) -> None:
        """Load weights that may know fewer words; those that they do not know keep their random rows."""
        state = load_file(folder / "open_clip_model.safetensors")
        numbers = CLIPTokenizer.from_pretrained(folder).get_vocab()
        rows = self.clip.token_embedding.weight.detach().clone()
        for word, row in self.tokenizer.get_vocab().items():
            if word in numbers:
                rows[row] = state["token_embedding.weight"][numbers[word]]
        self.clip.load_state_dict({**state, "token_embedding.weight": rows})

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the symmetric cross-entropy of Radford et al., 2021, over a batch; the temperature is only logged."""
        full = torch.rand(len(batch["caption"]), generator=generators[0]) < self.full_caption_share
        pairs = zip(full, batch["full_caption"], batch["caption"], strict=True)
        captions = [longest if use else caption for use, longest, caption in pairs]
        loss = self.loss(*self.clip(_channels_last(batch["pixel_values"]), self._tokens(captions)))
        return {"loss": loss, "logit_scale": self.clip.logit_scale.exp()}

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Embed the validation scenes and their full captions."""
        images = self.clip.encode_image(_channels_last(batch["pixel_values"]), normalize=True)
        texts = self.clip.encode_text(self._tokens(batch["full_caption"]), normalize=True)
        self.matches.append((images.float(), texts.float(), batch["full_caption"]))
        return {}

    def validated(self) -> dict[str, float]:
        """Return the share of images whose nearest caption among 100 is their own."""
        images, texts = (torch.cat(parts) for parts in list(zip(*self.matches, strict=True))[:2])
        captions = [caption for _, _, group in self.matches for caption in group]
        self.matches.clear()
        nearest = [
            start + int(index)
            for start in range(0, len(images), GROUP)
            for index in (images[start : start + GROUP] @ texts[start : start + GROUP].T).argmax(1)
        ]
        hits = [captions[index] == caption for index, caption in zip(nearest, captions, strict=True)]
        return {"recall_at_1": sum(hits) / len(hits)}

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters so that gains, biases and the temperature have no weight decay."""
        return matrices_and_vectors(self.clip)

    def after_step(self) -> None:
        """Keep the temperature in its published range."""
        self.clip.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write configuration, half-precision weights and tokenizer in open_clip's layout."""
        folder = Path(self.export_dir)
        self.tokenizer.save_pretrained(folder)
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": PREPROCESS}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        state = {name: tensor.detach().half().contiguous() for name, tensor in self.clip.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
        return {"image and text encoder": str(folder)}

    def _tokens(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return tokens.to(self.device)


def _channels_last(pixel_values: Tensor) -> Tensor:
    return pixel_values.contiguous(memory_format=torch.channels_last)
