import json
import shutil

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import normalize
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from src.eval.encoders.models import OpenClipEncoder, TimmEncoder
from src.eval.encoders.preprocessing import of_open_clip, of_timm
from tests.eval.conftest import TOKENS

TEXTS = ["a dog on the grass", "a cat at night", "a dog on the grass"]


def oddly_sized(pictures):
    return [pictures[0], pictures[1].resize((97, 61)), pictures[2].resize((40, 133)), pictures[3].resize((500, 333))]


def test_images_equal_open_clip_called_directly(clip, open_clip_directly, pictures):
    model, preprocess, _ = open_clip_directly
    images = oddly_sized(pictures)
    with torch.no_grad():
        expected = normalize(model.encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=1e-6, rtol=0)


def test_texts_equal_open_clip_called_directly(clip, open_clip_directly):
    model, _, tokenizer = open_clip_directly
    with torch.no_grad():
        expected = normalize(model.encode_text(tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-6, rtol=0)


def test_embeddings_that_are_not_finite_are_refused(root, pictures):
    for encoder in (
        OpenClipEncoder(f"local-dir:{root}/world/clip"),
        TimmEncoder(f"local-dir:{root}/world/dino", projected=True),
    ):
        for weights in encoder.model.parameters():
            weights.data.fill_(torch.inf)
        with pytest.raises(ValueError, match="makes of its input are not finite .* its weights may be damaged"):
            encoder.encode_images(pictures[:1])
        if isinstance(encoder, OpenClipEncoder):
            with pytest.raises(ValueError, match="not finite"):
                encoder.encode_texts(["a dog"])


def test_features_equal_timm_called_directly(dino, dino_folder, pictures):
    model = timm.create_model(f"local-dir:{dino_folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_data_config(model=model))
    images = oddly_sized(pictures)
    with torch.no_grad():
        expected = normalize(model(torch.stack([transform(image) for image in images])), dim=-1)
    torch.testing.assert_close(dino.encode_images(images), expected, atol=1e-6, rtol=0)


@pytest.fixture
def files(pictures, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for image, path in zip(oddly_sized(pictures), paths, strict=True):
        image.save(path)
    return paths


def test_the_clip_of_the_world_equals_open_clip_on_the_same_files(root, files):
    source = f"local-dir:{root / 'world' / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    inputs, tokens = (
        torch.stack([preprocess(Image.open(path)) for path in files]),
        open_clip.get_tokenizer(source)(TEXTS),
    )
    with torch.no_grad():
        images = normalize(model.eval().encode_image(inputs), dim=-1)
        texts = normalize(model.encode_text(tokens), dim=-1)
    encoder = OpenClipEncoder(source)
    torch.testing.assert_close(encoder.encode_images(files), images, atol=2e-6, rtol=0)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts, atol=2e-6, rtol=0)


def test_the_dino_of_the_world_equals_timm_on_the_same_files(root, files):
    source = f"local-dir:{root / 'world' / 'dino'}"
    model = timm.create_model(source, pretrained=True).eval()
    assert model.num_classes == 128
    config = model.pretrained_cfg
    transform = create_transform(
        config["input_size"], interpolation="bicubic", mean=config["mean"], std=config["std"], crop_pct=1.0
    )
    with torch.no_grad():
        expected = normalize(model(torch.stack([transform(Image.open(path)) for path in files])), dim=-1)
    torch.testing.assert_close(TimmEncoder(source, projected=True).encode_images(files), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("size", [24, [24, 24], [32, 16]])
def test_every_preprocessing_of_open_clip(pictures, resize_mode, interpolation, size):
    config = {"size": size, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "fill_color": 9}
    config |= {"interpolation": interpolation, "resize_mode": resize_mode}
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    ours = of_open_clip(config)
    assert all(torch.equal(ours(image), theirs(image)) for image in oddly_sized(pictures))
    for name, value in (("resize_mode", resize_mode), ("interpolation", interpolation), ("fill_color", 9)):
        assert f"{name} {value}" in str(ours)


def test_weights_that_squash_see_the_whole_of_a_broad_picture(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "squashing")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    broad = Image.new("RGB", (128, 64), "blue")
    broad.paste("red", (0, 0, 16, 64))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        expected = normalize(model.eval().encode_image(preprocess(broad)[None]), dim=-1)
    squashing, cutting = OpenClipEncoder(f"local-dir:{folder}"), OpenClipEncoder(f"local-dir:{clip_folder}")
    torch.testing.assert_close(squashing.encode_images([broad]), expected, atol=1e-6, rtol=0)
    assert squashing.preprocess(broad)[:, :, 0].ne(squashing.preprocess(broad)[:, :, -1]).any()
    assert squashing.identity != cutting.identity


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_every_preprocessing_of_timm(pictures, crop_mode, interpolation, crop_pct):
    config = {"input_size": [3, 24, 24], "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "crop_pct": crop_pct}
    config |= {"interpolation": interpolation, "crop_mode": crop_mode}
    theirs, ours = create_transform(**resolve_data_config(pretrained_cfg=config)), of_timm(config)
    assert all(torch.equal(ours(image), theirs(image)) for image in oddly_sized(pictures))
    # What is cropped has timm's interpolation, too.
    given = Resize(28, getattr(InterpolationMode, interpolation.upper()))
    assert of_timm(config, resize=28).transform.transforms[0].interpolation == given.interpolation
    assert len({str(of_timm(config | {"crop_mode": mode})) for mode in ("center", "squash", "border")}) == 3


def test_texts_that_are_cut_are_said_once(clip, caplog):
    clip.said_cut = False
    fits = " ".join(["dog"] * (TOKENS - 2))
    clip.encode_texts(["a dog", "", fits])
    assert not caplog.records
    longer = f"{fits} dog"
    assert torch.equal(clip.encode_texts([longer]), clip.encode_texts([fits]))
    clip.encode_texts([longer, "a dog"])
    (record,) = caplog.records
    assert f"reads {TOKENS} tokens; 1 texts are longer and cut there, such as 'dog dog" in record.message


@pytest.mark.parametrize("tokens", [76, 77, 78])
def test_texts_of_the_published_vocabulary_that_are_cut(clip, caplog, monkeypatch, tokens):
    monkeypatch.setattr(clip, "tokenizer", open_clip.get_tokenizer("ViT-B-32"))
    monkeypatch.setattr(clip, "said_cut", False)
    clip._tokens(["a dog", " ".join(["dog"] * (tokens - 2))])
    assert len(caplog.records) == (tokens > 77)


def saved(network, folder, **more):
    """A network as a hub repository or local folder holds it."""
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    names = ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes", "first_conv", "classifier")
    config = {"architecture": network.pretrained_cfg["architecture"], "num_classes": 0, **more}
    config["pretrained_cfg"] = {name: network.pretrained_cfg[name] for name in names}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def class_tokens(network, resize, crop, files):
    """Preprocessing of the DINO authors by torchvision, and the class token after the last norm."""
    transform = Compose(
        [
            Resize(resize, InterpolationMode.BICUBIC),
            CenterCrop(crop),
            ToTensor(),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        features = network.forward_features(torch.stack([transform(Image.open(path)) for path in files]))
    return normalize(features[:, 0], dim=-1)


def test_dino_of_the_papers_is_the_class_token_at_256_and_224(files, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224.dino", num_classes=0).eval()
    source = f"local-dir:{saved(network, tmp_path / 'dino')}"
    encoder = TimmEncoder(source, resize=256)
    ours = encoder.encode_images(files[2:])
    assert ours.shape == (2, 384)
    torch.testing.assert_close(ours, class_tokens(network, 256, 224, files[2:]), atol=1e-5, rtol=0)
    assert "resize 256, input_size 3x224x224, interpolation bicubic" in encoder.identity
    # The margin of timm is another picture.
    assert (ours[:1] - class_tokens(network, 248, 224, files[2:3])).abs().max() > 1e-3


def test_dinov2_can_be_cropped_to_what_papers_use(files, tmp_path):
    torch.manual_seed(0)
    size = {"img_size": 56, "embed_dim": 24, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0, **size).eval()
    network.pretrained_cfg["input_size"] = (3, 56, 56)
    source = f"local-dir:{saved(network, tmp_path / 'dinov2', model_args=size)}"
    whole, cropped = TimmEncoder(source, resize=64), TimmEncoder(source, resize=32, crop=28)
    torch.testing.assert_close(whole.encode_images(files), class_tokens(network, 64, 56, files), atol=1e-6, rtol=0)
    small = timm.create_model(source, pretrained=True, num_classes=0, img_size=28).eval()
    torch.testing.assert_close(cropped.encode_images(files), class_tokens(small, 32, 28, files), atol=1e-6, rtol=0)
    assert "input_size 3x28x28" in cropped.identity


def test_hub_names_are_read_like_folders(clip_folder, dino_folder, clip, dino, pictures, tmp_path, monkeypatch):
    for name, folder in {"tiny-clip": clip_folder, "tiny-dino": dino_folder}.items():
        repository = tmp_path / f"models--atelier--{name}"
        shutil.copytree(folder, repository / "snapshots" / "0123")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    from_hub = TimmEncoder("hf-hub:atelier/tiny-dino")
    torch.testing.assert_close(from_hub.encode_images(pictures), dino.encode_images(pictures), atol=1e-6, rtol=0)
    from_hub = OpenClipEncoder("hf-hub:atelier/tiny-clip")
    torch.testing.assert_close(from_hub.encode_images(pictures), clip.encode_images(pictures), atol=1e-6, rtol=0)


def test_embeddings_are_unit_float32_and_do_not_depend_on_the_batch(clip, dino, pictures):
    for encoder in (clip, dino):
        together = encoder.encode_images(pictures * 14)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together.norm(dim=-1), torch.ones(70))
        torch.testing.assert_close(together[66:67], encoder.encode_images(pictures[1:2]), atol=1e-6, rtol=0)


def test_identity_tells_weights_and_preprocessing_apart(dino, dino_folder, clip):
    wider = TimmEncoder(f"local-dir:{dino_folder}", resize=40)
    again = TimmEncoder(f"local-dir:{dino_folder}")
    assert again.identity == dino.identity
    assert wider.identity != dino.identity
    with torch.no_grad():
        again.model.cls_token += 1e-3
    del again.__dict__["identity"]
    assert again.identity != dino.identity
    assert "weights" in clip.identity
    assert "bicubic" in clip.identity


def test_a_red_square_stays_red_and_transparency_does_not_crash():
    plain = of_open_clip({"size": 8, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    red = plain(Image.new("RGBA", (20, 20), (255, 0, 0, 255)))
    assert red.shape == (3, 8, 8)
    torch.testing.assert_close(red[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_errors_say_what_to_do(clip, tmp_path):
    with pytest.raises(ValueError, match="needs the file"):
        OpenClipEncoder(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="needs weights"):
        OpenClipEncoder("ViT-B-32")
    with pytest.raises(ValueError, match="no images"):
        clip.encode_images([])
    with pytest.raises(ValueError, match="there is no image file"):
        clip.encode_images([tmp_path / "nothing.png"])


def test_wrong_names_are_said_before_anything_is_loaded():
    with pytest.raises(ValueError, match="no pretrained model 'ViT-B32'; did you mean model=ViT-B-32"):
        OpenClipEncoder("ViT-B32", pretrained="openai")
    with pytest.raises(ValueError, match="no weights 'openaj' of ViT-B-32-quickgelu; choose one of: openai,"):
        OpenClipEncoder("ViT-B-32-quickgelu", pretrained="openaj")
    with pytest.raises(ValueError, match="did you mean model=vit_small_patch16_224.dino"):
        TimmEncoder("vit_smal_patch16_224.dino")


def test_loading_draws_nothing_from_the_random_state(clip_folder, dino_folder):
    state = torch.get_rng_state()
    for encoder in (OpenClipEncoder(f"local-dir:{clip_folder}"), TimmEncoder(f"local-dir:{dino_folder}")):
        assert encoder.identity
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_cannot_be_had_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for encoder in (TimmEncoder("vit_small_patch16_224.dino"), OpenClipEncoder("ViT-B-32-quickgelu", "openai")):
        with pytest.raises(ValueError, match="cannot load .*; get its weights once with a network, or set model=local"):
            _ = encoder.identity


def test_openai_weights_without_their_activation_are_refused():
    with pytest.raises(ValueError, match="use model=ViT-B-32-quickgelu"):
        OpenClipEncoder("ViT-B-32", pretrained="openai")
