"""Real encoder classes at tiny size with random weights, and pictures of the world."""

import json

import open_clip
import pytest
import timm
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.data.world.tokenizers import write_clip_tokenizer
from src.eval.concepts import Concept
from src.eval.encoders.models import OpenClipEncoder, TimmEncoder
from src.eval.profile import Profile

SIZE, TOKENS = 32, 24
PREPROCESS = {"size": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic"}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_clip_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    text = {"context_length": TOKENS, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": SIZE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "local"}}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}), encoding="utf-8"
    )
    torch.manual_seed(0)
    network = CLIP(16, vision_cfg=dict(vision), text_cfg=dict(model["text_cfg"]))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    size = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)
    save_file(network.state_dict(), folder / "model.safetensors")
    mean = {"input_size": [3, SIZE, SIZE], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 0.9}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": size, "pretrained_cfg": mean}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder):
    return OpenClipEncoder(f"local-dir:{clip_folder}")


@pytest.fixture(scope="session")
def dino(dino_folder):
    return TimmEncoder(f"local-dir:{dino_folder}")


@pytest.fixture(scope="session")
def profile(clip, dino):
    return Profile("tiny", clip, dino, text="class_noun", pairing="all")


@pytest.fixture(scope="session")
def pictures():
    return [render(subject_scene(0, view, "dog")) for view in range(5)]


@pytest.fixture
def concepts():
    return [
        Concept(name, noun, [render(subject_scene(index, view, noun)) for view in range(3)])
        for index, (name, noun) in enumerate({"rex": "dog", "tom": "cat"}.items())
    ]


class DrawnSubjects:
    """A perfect generator: <rex> and <tom> are drawn as their references are, any other word as someone else."""

    batch_size = 4

    def __init__(self):
        self.requests = []

    def identity(self, prompt=None):
        return {"draws": "subjects"}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        self.requests += requests
        return [self._draw(request) for request in requests]

    def _draw(self, request):
        index = 0 if "<rex>" in request.prompt else 1 if "<tom>" in request.prompt else 50
        noun = "dog" if "rex" in request.prompt or "dog" in request.prompt else "cat"
        return render(subject_scene(index, 100 + request.seed, noun))


@pytest.fixture
def generator():
    return DrawnSubjects()


@pytest.fixture(scope="session")
def open_clip_directly(clip_folder):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{clip_folder}")
