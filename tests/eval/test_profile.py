import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.eval.encoders.cache import CachedEncoder
from src.eval.profile import PAIRINGS, TEXTS, Profile, same_profile_or_raise
from src.eval.protocols.concept import ConceptProtocol
from src.eval.scores.similarity import clip_t, own_reference, pair_mean, within_set

B32 = "open_clip ViT-B-32-quickgelu openai"
PUBLISHED = {
    "dreambooth": (B32, "vit_small_patch16_224.dino", 256, None, "class_noun", "all", 1.0, False),
    "customconcept101": (B32, "vit_small_patch16_224.dino", 256, None, "class_noun", "all", 2.5, True),
    "style": (B32, "vit_base_patch14_dinov2.lvd142m", 256, 224, "full", "one_each", 1.0, False),
    "style_aligned": (B32, "vit_base_patch8_224.dino", 256, None, "without_style", "within_set", 1.0, False),
}


def built(root, name, tmp_path):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("eval", [f"metrics={name}", f"paths.cache_dir={tmp_path}"])
    return instantiate(cfg.metrics, _convert_="all")


def changed(clip, dino, **arguments):
    return Profile(**{"name": "tiny", "clip": clip, "dino": dino, "text": "class_noun", "pairing": "all"} | arguments)


@pytest.mark.parametrize("name", PUBLISHED)
def test_conventions_are_built_without_their_weights(name, root, tmp_path):
    profile = built(root, name, tmp_path)
    clip, dino = profile.clip.encoder, profile.dino.encoder
    ours = (clip.name, dino.source, dino.resize, dino.crop)
    assert (*ours, profile.text, profile.pairing, profile.text_scale, profile.text_clamp) == PUBLISHED[name]
    assert profile.name == name
    assert not {"model", "identity"} & (set(vars(clip)) | set(vars(dino)))


def test_the_world_is_a_profile_like_any_other(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    profile = built(root, "world", tmp_path)
    assert profile.identity()["encoders"]["clip"].startswith("open_clip local-dir:world/clip, weights ")
    assert profile.rules() == {"text": "class_noun", "pairing": "all", "text_scale": 1.0, "text_clamp": False}


def test_the_scale_of_customconcept101_is_that_of_clip_score(root, tmp_path):
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[0.3, 0.9], [-0.3, 0.9]])
    scores = {
        name: built(root, name, tmp_path).text_score(images, texts) for name in ("dreambooth", "customconcept101")
    }
    torch.testing.assert_close(scores["dreambooth"], torch.tensor([0.3, -0.3]))
    torch.testing.assert_close(scores["customconcept101"], torch.tensor([0.75, 0.0]))


def test_pairs_follow_the_rule(clip, dino, pictures):
    embeddings = dino.encode_images(pictures)
    generated, references = embeddings[:3], embeddings[3:]
    rules = {pairing: changed(clip, dino, pairing=pairing) for pairing in PAIRINGS}
    assert torch.equal(rules["all"].image_score(generated, references), pair_mean(generated, references))
    one = rules["one_each"].image_score(generated, references[:1])
    assert torch.equal(one, own_reference(generated, references[:1]))
    assert torch.equal(rules["within_set"].image_score(generated), within_set(generated))
    with pytest.raises(ValueError, match="every generated image with every reference, but there are no references"):
        rules["all"].image_score(generated)


def test_texts_follow_the_rule(clip, dino):
    texts = {"class_noun": "a dog, sketched", "full": "a rex, sketched", "without_style": "a dog"}
    assert texts.keys() == TEXTS.keys()
    for rule, text in texts.items():
        assert changed(clip, dino, text=rule).scored_text(texts) == text
    with pytest.raises(ValueError, match="scores the prompt without its style words, this protocol the whole prompt"):
        changed(clip, dino, text="without_style").scored_text({"full": "a dog, sketched"})


def test_a_protocol_refuses_rules_that_it_cannot_follow(clip, dino):
    with pytest.raises(ValueError, match="the profile tiny scores the generated images of a set with each other"):
        ConceptProtocol(["a {}"], 1, changed(clip, dino, pairing="within_set"), "images")


def test_unknown_rules_are_refused(clip, dino):
    with pytest.raises(ValueError, match="pairing='al'; choose one of: all, one_each, within_set"):
        changed(clip, dino, pairing="al")
    with pytest.raises(ValueError, match="text='ful'; choose one of: class_noun, full, without_style"):
        changed(clip, dino, text="ful")


def test_scores_of_one_profile_may_be_joined(clip, dino, tmp_path):
    cached = changed(clip, dino, cache_dir=str(tmp_path))
    assert isinstance(cached.dino, CachedEncoder)
    identity = json.loads(json.dumps(cached.identity()))
    same_profile_or_raise([changed(clip, dino).identity(), identity | {"seed": 3, "overall": {}}, identity])
    same_profile_or_raise([])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "other"}, "another profile are not put side by side .'tiny' and 'other'."),
        ({"text_scale": 2.5}, "another text_scale are not put side by side .1.0 and 2.5."),
        ({"pairing": "one_each"}, "another pairing"),
        ({"text": "full"}, "another text"),
    ],
)
def test_scores_of_different_profiles_are_not(arguments, said, clip, dino):
    identities = [changed(clip, dino).identity(), changed(clip, dino, **arguments).identity()]
    with pytest.raises(ValueError, match=said):
        same_profile_or_raise(identities)


def test_other_weights_and_unsaid_rules_are_not_joined(clip, dino):
    ours = changed(clip, dino).identity()
    other = ours | {"encoders": ours["encoders"] | {"dino": "timm other, weights 0123"}}
    with pytest.raises(ValueError, match="another encoder dino"):
        same_profile_or_raise([ours, ours, other])
    with pytest.raises(ValueError, match="another text"):
        same_profile_or_raise([ours, {"profile": "tiny", "encoders": ours["encoders"]}])


def test_text_score_is_raw_by_default(clip, dino, pictures):
    images, texts = clip.encode_images(pictures), clip.encode_texts(["a dog"])
    assert torch.equal(changed(clip, dino).text_score(images, texts), clip_t(images, texts))
