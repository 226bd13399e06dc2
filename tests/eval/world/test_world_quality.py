import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from src.data.world.datamodules import ATTRIBUTES, VALIDATION_START
from src.data.world.families import EDITS
from src.data.world.linear_code import LinearCode
from src.data.world.render import render
from src.data.world.scenes import attribute_scene, full_caption, sample_scene, subject_scene
from src.data.world.vocabulary import ALL_STYLES, HELD_OUT_STYLES
from src.eval.draw import measured_plan
from src.eval.encoders.models import OpenClipEncoder, TimmEncoder
from src.eval.protocols.base import Frame
from src.eval.world.probe import Probe
from src.eval.world.quality import (
    WorldQuality,
    likeness,
    linear_psnr,
    psnr,
    reidentification_hits,
    retrieval_hits,
    styled_retrieval,
    to_tensor,
)
from tests.tiny import tiny_sd

WORLD = Path(__file__).parents[3] / "world"
HELD_OUT = [sample_scene(VALIDATION_START + index) for index in range(100)]


def committed(name):
    folder = WORLD / name
    if not list(folder.glob("*.safetensors")):
        pytest.skip(f"world/{name} is not there yet; train it: python train.py +experiment=world/{name}")
    return f"local-dir:{folder}"


class PerfectGenerator:
    """Draws the held-out scene that each caption was made from."""

    batch_size = 64

    def identity(self, prompt=None):
        return {"draws": "scenes"}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        scenes = {full_caption(scene): scene for scene in HELD_OUT}
        for index in range(4):
            scene = attribute_scene(VALIDATION_START + index)
            scenes[scene.caption] = scene
        return [render(scenes[request.prompt]) for request in requests]


@pytest.fixture
def probe(tmp_path):
    outputs = sum(map(len, ATTRIBUTES.values()))
    size = {"channels": [8, 8, 16, 16], "stem_width": 8}
    model = timm.create_model("resnet10t", num_classes=outputs, **size)
    folder = tmp_path / "probe"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    normal = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": outputs}
    config = {"architecture": "resnet10t", "num_classes": outputs, "model_args": size, "pretrained_cfg": normal}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Probe(f"local-dir:{folder}")


def test_psnr_is_that_of_a_peak_of_two():
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image + 0.2, image) == [pytest.approx(20.0, abs=1e-4)]


def test_retrieval_counts_twins_as_right_and_groups_apart():
    texts = torch.eye(4)
    images = texts[[0, 0, 2, 3]]
    assert retrieval_hits(images, texts, ["a", "b", "c", "d"], 2) == [True, False, True, True]
    assert retrieval_hits(images, texts, ["a", "a", "c", "d"], 2) == [True] * 4
    with pytest.raises(ValueError, match="groups of 3"):
        retrieval_hits(images, texts, ["a"] * 4, 3)


def test_reidentification_compares_queries_with_first_views():
    views = torch.eye(2)[:, None].repeat(1, 3, 1)
    views[1, 2] = views[0, 0]
    assert reidentification_hits(views) == [True, True, True, False]
    # All queries show the other individual, though those of one individual are alike.
    crossed = torch.eye(2)[torch.tensor([[0, 1, 1], [1, 0, 0]])]
    assert reidentification_hits(crossed) == [False] * 4


def test_a_perfect_generator_scores_what_renders_score(tmp_path, profile, probe):
    pipeline = tiny_sd(tmp_path)
    pipeline.vae.save_pretrained(tmp_path / "world" / "sd" / "vae")
    code = LinearCode.fit(to_tensor([render(scene) for scene in HELD_OUT[:20]]).numpy(), 4)
    code.save(tmp_path / "world" / "sd" / "linear_code.safetensors")
    quality = WorldQuality(str(tmp_path / "world"), profile, probe, str(tmp_path / "images"), 4, 100, 100, 4, 3)
    numbers = quality.run(PerfectGenerator(), [], str(tmp_path / "run"))
    assert numbers["sample_recall_at_1"] == numbers["clip_recall_at_1"]
    for name in ATTRIBUTES:
        assert numbers[f"sample_{name}"] == numbers[f"sample_{name}_reference"]
    assert {f"clip_text_{style}" for style in HELD_OUT_STYLES} < set(numbers)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert written["autoencoder_psnr"] == numbers["autoencoder_psnr"]
    assert written["autoencoder_psnr_reference"] > written["autoencoder_psnr"]
    assert (tmp_path / "run" / "samples.png").exists()
    assert len((tmp_path / "run" / "images.jsonl").read_text(encoding="utf-8").splitlines()) == 104
    table = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "dino_reidentification" in table
    assert "dino_marking_color" in table
    assert numbers["dino_same_reference"] >= max(numbers[f"dino_{name}"] for name in EDITS)
    assert numbers["dino_swapped_reference"] == numbers["dino_same"]


def test_attributes_of_samples_are_held_against_those_of_renders(tmp_path, profile, root):
    quality = WorldQuality("world", profile, Probe(f"local-dir:{root}/world/probe"), str(tmp_path), 4, 100, 100, 8, 3)
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    items = quality.items()[:8]
    drawn, renders = quality._attributes(Frame(items, [tmp_path / "black.png"] * 8))["sample_object"]
    assert sum(drawn) < 4 < sum(renders)


def test_a_dry_run_counts_scenes_and_attributes(tmp_path, profile, probe):
    quality = WorldQuality("world", profile, probe, str(tmp_path), 4, 100, 100, 4, 3)
    plan = dict(measured_plan(PerfectGenerator(), quality.requests([]), tmp_path).rows)
    assert (plan["images asked for"], plan["left to draw"]) == ("104", "104")


def test_captions_must_fill_their_groups(profile, probe):
    with pytest.raises(ValueError, match="multiple of 100"):
        WorldQuality("world", profile, probe, "images", num_captions=150)
    with pytest.raises(ValueError, match="exceeds"):
        WorldQuality("world", profile, probe, "images", num_captions=100, num_scene_samples=200)


def test_a_missing_probe_says_how_to_train_it(tmp_path):
    with pytest.raises(ValueError, match=r"experiment=world/probe"):
        Probe(f"local-dir:{tmp_path}")


def test_the_linear_code_restores_more_with_more_channels(tmp_path):
    pixel_values = to_tensor([render(scene) for scene in HELD_OUT[:20]])
    for channels in (4, 24):
        LinearCode.fit(pixel_values.numpy(), channels).save(tmp_path / f"{channels}.safetensors")
    few, many = (linear_psnr(tmp_path / f"{channels}.safetensors", pixel_values) for channels in (4, 24))
    assert sum(few) < sum(many)


def test_the_committed_clip_finds_captions():
    encoder = OpenClipEncoder(committed("clip"))
    captions = [full_caption(scene) for scene in HELD_OUT]
    images = encoder.encode_images([render(scene) for scene in HELD_OUT])
    hits = retrieval_hits(images, encoder.encode_texts(captions), captions, 100)
    assert sum(hits) >= 80


def test_the_committed_clip_knows_what_is_drawn_in_styles_that_no_generator_saw():
    scenes = [sample_scene(VALIDATION_START + index) for index in range(300)]
    found = styled_retrieval(OpenClipEncoder(committed("clip")), scenes)
    hits, photos = found.pop("clip_recall_in_styles")
    assert mean(hits) > 0.2 and mean(photos) > 0.7
    assert len(found) == 10
    for style, (ours, theirs) in found.items():
        assert mean(ours) > 0.7 * mean(theirs) > 0.45, style


def test_pictures_in_styles_are_held_against_photos_of_the_same_scenes(profile, monkeypatch):
    """An encoder that sees whether a picture is a photo, and nothing else."""
    scenes, seen = HELD_OUT[:20], []

    class Photos:
        def encode_images(self, pictures):
            seen.extend(picture.args[0] for picture in pictures)
            return torch.tensor([[float(picture.args[0].style == "photo"), 1.0] for picture in pictures])

        def encode_texts(self, texts):
            assert not any(style in text for text in texts for style in ALL_STYLES.values())
            return torch.tensor([[1.0, 0.0]] * len(texts))

    monkeypatch.setattr("src.eval.world.quality.GROUP", 20)
    found = styled_retrieval(Photos(), scenes)
    assert found["clip_text_neon"] == ([0.0, 0.0], [1.0, 1.0])
    assert [replace(scene, style="photo") for scene in seen[:20]] == seen[20:]
    assert {scene.style for scene in seen[:20]} == set(HELD_OUT_STYLES)


class Remembers:
    """Embeds photos of families in their order as told."""

    def __init__(self, embeddings):
        self.embeddings = embeddings

    def encode_images(self, images):
        return self.embeddings


def test_members_of_a_family_are_measured_under_their_names():
    query = torch.tensor([3.0, 0, 4.0, 0, 0, 0, 0, 0])  # 0.6 to the individual, 0.8 to the swapped one
    found = likeness(Remembers(torch.cat([torch.eye(8), query.repeat(5, 1)])), 1)
    values = {name: (value[0], reference[0]) for name, (value, reference) in found.items()}
    assert values["dino_same"] == pytest.approx((0.6, 0.8))
    assert values["dino_swapped"] == pytest.approx((0.8, 0.6))
    assert values["dino_noun"] == pytest.approx((0.0, 0.6))
    assert values["dino_hard_reidentification"][0] == 0


def test_the_committed_dino_beats_raw_pixels():
    encoder = TimmEncoder(committed("dino"), projected=True)
    images = [render(subject_scene(index, view)) for index in range(50) for view in range(3)]
    hits = reidentification_hits(encoder.encode_images(images).reshape(50, 3, -1))
    raw = reidentification_hits(to_tensor(images).reshape(50, 3, -1))
    # Raw pixels find the background; chance is one in fifty.
    assert sum(hits) > max(sum(raw), 0.4 * len(hits))


def test_the_committed_probe_reads_renders():
    probe = Probe(committed("probe"))
    scenes = [attribute_scene(VALIDATION_START + index) for index in range(100)]
    answers = probe.read([render(scene) for scene in scenes])
    right = {
        name: sum(answer in scene.caption for answer, scene in zip(answers[name], scenes, strict=True))
        for name in ("object", "color", "pattern")
    }
    # What it misreads on renders stands in the quality table as the ceiling of what it can say about samples.
    assert right["object"] >= 95 and right["pattern"] >= 85 and right["color"] >= 75
