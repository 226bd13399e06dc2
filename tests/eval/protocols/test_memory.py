"""However many images a protocol scores, only a few are open at a time."""

from dataclasses import replace

import pytest
import torch

from src.data.styles import StylePrompt, style_references
from src.data.trajectory import Trajectory
from src.data.world import render
from src.data.world.datamodules import ATTRIBUTES
from src.eval.encoders.models import read_ahead
from src.eval.encoders.preprocessing import of_timm
from src.eval.profile import Profile
from src.eval.protocols.base import Frame
from src.eval.protocols.concept import ConceptProtocol
from src.eval.protocols.denoising_deviation import DenoisingDeviationProtocol
from src.eval.protocols.multi_concept import MultiConceptProtocol
from src.eval.protocols.pairs import PairProtocol
from src.eval.protocols.style import StyleProtocol
from src.eval.scores.sets import PerceptualDiversity, SetMetrics, SetScores
from src.eval.world.captions import CaptionProtocol
from src.eval.world.injection import InjectionProtocol
from src.eval.world.probe import Probe
from src.eval.world.quality import WorldQuality
from tests.open_images import OpenImages

BATCH, NUMBER = 8, 160
"""Images that are read together, and that are scored together."""
OPEN = 10 * BATCH
"""Two batches that are read ahead, the last one, and what is made of each image on the way."""


@pytest.fixture
def watch(monkeypatch, concepts, pictures):
    found = OpenImages(monkeypatch)
    monkeypatch.setattr(read_ahead, "__defaults__", (BATCH,))
    monkeypatch.setattr("src.eval.world.captions.BATCH", BATCH)
    # What a renderer keeps does not grow with the images, but would be counted here.
    for cached in ("_pattern", "_light", "_background"):
        monkeypatch.setattr(render, cached, getattr(render, cached).__wrapped__)
    return found


@pytest.fixture
def probe():
    """A probe whose network sees nothing in any image."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixels):
            return torch.zeros(len(pixels), sum(map(len, ATTRIBUTES.values())))

    found = Probe.__new__(Probe)
    found.model, found.sizes = Network(), [len(words) for words in ATTRIBUTES.values()]
    found.preprocessing = of_timm({"input_size": (3, 64, 64), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0})
    return found


def concept(profile, probe, root):
    return ConceptProtocol(["a {} here"], NUMBER, profile, "images")


def pairs(profile, probe, root):
    return PairProtocol(["a {first} left of a {second}"], NUMBER, profile, "images")


def multi_concept(profile, probe, root):
    return MultiConceptProtocol(["a {} left of a {}"], NUMBER, profile, "images")


def denoising_deviation(profile, probe, root):
    return DenoisingDeviationProtocol(["a {} and a {}"], NUMBER, profile, "images")


def style(profile, probe, root):
    rules = Profile("tiny", profile.clip, profile.dino, text="full", pairing="one_each")
    prompts, styles = [StylePrompt("a dog"), StylePrompt("a cat")], style_references(root / "world" / "styles")[:1]
    sets = SetScores([], None, SetMetrics(), PerceptualDiversity())
    return StyleProtocol(prompts, styles, NUMBER // 2, rules, "images", sets)


def captions(profile, probe, root):
    return CaptionProtocol(["short"], 20, NUMBER // 20, profile, probe, "images")


def injection(profile, probe, root):
    return InjectionProtocol("object", 20, NUMBER // 20, profile, probe, "images")


def world_quality(profile, probe, root):
    sizes = {"num_scenes": 100, "num_captions": 100, "num_scene_samples": 100, "num_subjects": 17}
    return WorldQuality(str(root / "world"), profile, probe, "images", **sizes, num_attribute_samples=100)


PROTOCOLS = [concept, pairs, multi_concept, denoising_deviation, style, captions, injection, world_quality]


@pytest.mark.parametrize("make", PROTOCOLS, ids=lambda make: make.__name__)
def test_few_images_are_open_at_a_time(make, profile, concepts, generator, pictures, probe, watch, root, tmp_path):
    generator.denoising_errors = lambda images, captions, seeds: [0.0] * len(images)
    path = torch.ones(2, NUMBER, 1, 1, 1)
    generator.trajectory = lambda requests, along=None: Trajectory(path, path[1:]).part(range(len(requests)))
    files = [tmp_path / f"{index}.png" for index in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    protocol = make(profile, probe, root)
    items = protocol.items(concepts)
    whole = Frame(items, [files[at % len(files)] for at in range(len(items))])
    (part, *_) = whole.parts(protocol.scored_by)
    assert len(part.items) >= NUMBER
    rows = protocol.score(part, generator)
    if make in (captions, world_quality):
        protocol.summarise(replace(part, rows=rows))
    assert 0 < watch.most <= OPEN < len(part.items)


def test_no_protocol_is_left_out(root):
    files = {path.stem for path in (root / "conf" / "protocol").glob("*.yaml")}
    assert {make.__name__ for make in PROTOCOLS} == files - {"style_parti"}
