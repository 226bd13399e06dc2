"""What ships in world/ is what the manifest says, small enough for a repository, and loads."""

import json
from pathlib import Path

import pytest

from src.data.world import manifest
from src.data.world.families import EDITS
from src.data.world.manifest import check_manifest, read_manifest, world_files, write_manifest
from src.eval.encoders.models import TimmEncoder
from src.eval.world.quality import likeness


@pytest.fixture
def small_world(tmp_path: Path) -> Path:
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "sd" / "unet" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "sd" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("prose", encoding="utf-8")
    (tmp_path / ".DS_Store").write_text("", encoding="utf-8")
    write_manifest(tmp_path)
    return tmp_path


@pytest.fixture
def world(root: Path) -> Path:
    if not (root / "world" / manifest.NAME).exists():
        pytest.skip("world/manifest.json is absent; write it with: python -m src.data.world.manifest")
    return root / "world"


def test_the_shipped_world_is_whole(world: Path) -> None:
    check_manifest(world)


def test_the_shipped_world_is_small(world: Path) -> None:
    sizes = [path.stat().st_size for path in world_files(world).values()]
    assert max(sizes) <= 25_000_000
    assert sum(sizes) <= 120_000_000


def test_the_shipped_pipeline_loads(root: Path) -> None:
    if not (root / "world" / "sd" / "model_index.json").exists():
        pytest.skip("world/sd is not a whole pipeline yet")
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(root / "world" / "sd", local_files_only=True)
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
    assert pipeline.vae.config.latent_channels == pipeline.unet.config.in_channels
    assert pipeline.text_encoder.config.vocab_size == len(pipeline.tokenizer)


@pytest.fixture(scope="module")
def likenesses(root: Path) -> dict[str, float]:
    found = likeness(TimmEncoder(f"local-dir:{root}/world/dino", projected=True), 25)
    return {name: sum(values) / len(values) for name, (values, _) in found.items()}


def test_the_shipped_dino_sees_each_thing_that_tells_individuals_apart(likenesses: dict[str, float]) -> None:
    """Before it learnt from families: 0.63 for another noun, 0.73 for swapped colours, and 0.69 found in the family."""
    assert likenesses["dino_same"] > 0.85
    assert likenesses["dino_noun"] < 0.5 and likenesses["dino_swapped"] < 0.62 and likenesses["dino_color"] < 0.3
    assert max(likenesses[f"dino_{name}"] for name in EDITS) < likenesses["dino_same"] - 0.25
    assert likenesses["dino_hard_reidentification"] > 0.85


def test_a_whole_world_passes(small_world: Path) -> None:
    check_manifest(small_world)
    entries = read_manifest(small_world)
    assert list(entries) == ["sd/model_index.json", "sd/unet/weights.safetensors"]
    assert entries["sd/unet/weights.safetensors"]["bytes"] == 7


def test_writing_twice_is_the_same(small_world: Path) -> None:
    before = (small_world / manifest.NAME).read_bytes()
    write_manifest(small_world)
    assert (small_world / manifest.NAME).read_bytes() == before


def test_changed_file_of_the_same_size_is_noticed(small_world: Path) -> None:
    (small_world / "sd" / "unet" / "weights.safetensors").write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not the file that the manifest lists \(7 bytes\)"):
        check_manifest(small_world)


def test_cut_file_is_noticed(small_world: Path) -> None:
    (small_world / "sd" / "unet" / "weights.safetensors").write_bytes(b"wei")
    with pytest.raises(ValueError, match=r"weights\.safetensors is not the file"):
        check_manifest(small_world)


def test_missing_file_is_noticed(small_world: Path) -> None:
    (small_world / "sd" / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"model_index\.json is missing, but the manifest lists it"):
        check_manifest(small_world)


def test_unlisted_file_is_noticed(small_world: Path) -> None:
    (small_world / "sd" / "extra.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sd/extra\.json is not in the manifest"):
        check_manifest(small_world)


@pytest.mark.parametrize(("limit", "message"), [("LARGEST_FILE", "at most 6 are"), ("LARGEST_TOTAL", "in all")])
def test_sizes_are_limited(small_world: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str) -> None:
    monkeypatch.setattr(manifest, limit, 6)
    for check in (check_manifest, write_manifest):
        with pytest.raises(ValueError, match=message):
            check(small_world)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "write it with"), ("{", "may be truncated"), (json.dumps({"format": 99}), "not a manifest of format 1")],
)
def test_unreadable_manifest(small_world: Path, content: str | None, message: str) -> None:
    path = small_world / manifest.NAME
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        check_manifest(small_world)


def test_empty_world_has_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no files to list"):
        write_manifest(tmp_path)


def test_command(small_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["manifest", str(small_world), "--check"])
    manifest.main()
    assert "2 files" in capsys.readouterr().out
    (small_world / "sd" / "model_index.json").unlink()
    with pytest.raises(SystemExit, match="error: .*is missing"):
        manifest.main()
