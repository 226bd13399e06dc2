import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch.nn.functional import normalize

from src.eval.encoders import OpenClipEncoder, Preprocessing, TimmEncoder

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


def test_features_equal_timm_called_directly(dino, dino_folder, pictures):
    model = timm.create_model(f"local-dir:{dino_folder}", pretrained=True, num_classes=0).eval()
    config = model.pretrained_cfg
    transform = create_transform(
        config["input_size"], interpolation="bicubic", mean=config["mean"], std=config["std"], crop_pct=1.0
    )
    images = oddly_sized(pictures)
    with torch.no_grad():
        expected = normalize(model(torch.stack([transform(image) for image in images])), dim=-1)
    torch.testing.assert_close(dino.encode_images(images), expected, atol=1e-6, rtol=0)


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
    red = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(Image.new("RGBA", (20, 20), (255, 0, 0, 255)))
    assert red.shape == (3, 8, 8)
    torch.testing.assert_close(red[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_errors_say_what_to_do(clip, tmp_path):
    with pytest.raises(ValueError, match="needs the file"):
        OpenClipEncoder(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="needs weights"):
        OpenClipEncoder("ViT-B-32")
    with pytest.raises(ValueError, match="no images"):
        clip.encode_images([])


def test_openai_weights_without_their_activation_are_refused():
    with pytest.raises(ValueError, match="use model=ViT-B-32-quickgelu"):
        OpenClipEncoder("ViT-B-32", pretrained="openai")
