"""Ratings by a vision-language model, against its logits computed without the judge."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

from src.eval.profile import Profile, same_profile_or_raise
from src.eval.protocols.concept import ConceptProtocol
from src.eval.protocols.pairs import PairProtocol
from src.eval.vision_judge import FOLLOWING, PRESERVATION, VisionJudge
from tests.vision import tiny_llava

DIGITS = "01234"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def judge(folder: Path) -> VisionJudge:
    return VisionJudge(str(folder))


def by_hand(folder: Path, question: str, images: Sequence[Image.Image]) -> tuple[float, float]:
    """Read the prompt that the template makes, written out, in one forward pass."""
    processor = LlavaProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    text = f"<s>user: {'<image>' * len(images)}{question}</s>assistant: Score: "
    inputs = processor(text=text, images=list(images), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    digits = [processor.tokenizer.convert_tokens_to_ids(digit) for digit in DIGITS]
    weights = [float(logits[at].double().exp()) for at in digits]
    expected = sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights)
    return expected, float(int(logits.argmax()) in digits)


def test_ratings_are_the_expectation_over_the_logits_of_five_tokens(judge, folder, pictures):
    references, drawn = pictures[:2], pictures[2:4]
    found = judge.preservation(drawn, references, "dog")
    question = PRESERVATION.replace("{noun}", "dog")
    for at, picture in enumerate(drawn):
        both = [by_hand(folder, question, [reference, picture]) for reference in references]
        assert float(found.scores[at]) == pytest.approx(sum(score for score, _ in both) / 2, abs=1e-5)
        assert float(found.answered[at]) == sum(answered for _, answered in both) / 2
    found = judge.following(drawn, ["a dog", "two red cats at night"])
    for at, prompt in enumerate(["a dog", "two red cats at night"]):
        expected = by_hand(folder, FOLLOWING.replace("{prompt}", prompt), [drawn[at]])
        assert (float(found.scores[at]), float(found.answered[at])) == pytest.approx(expected, abs=1e-5)
    assert len({*judge.preservation(drawn, references, "dog").scores.tolist(), *found.scores.tolist()}) == 4


def test_an_answer_counts_as_one_where_a_digit_is_the_likeliest_token_of_all(judge, pictures, monkeypatch):
    logits = torch.zeros(1000)
    logits[judge.tokens] = torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0])
    monkeypatch.setattr(judge, "logits", lambda question, images: logits)
    assert judge.following(pictures[:1], ["a dog"]).answered.tolist() == [1.0]
    before = judge.following(pictures[:1], ["a dog"]).scores
    logits[0] = 6.0
    assert judge.following(pictures[:1], ["a dog"]).answered.tolist() == [0.0]
    assert torch.equal(judge.following(pictures[:1], ["a dog"]).scores, before)


def test_a_space_may_belong_to_the_number(tmp_path):
    merged = [f"\u0120{digit}" for digit in DIGITS]
    judge = VisionJudge(str(tiny_llava(tmp_path / "a", merged=merged)))
    assert judge.processor.tokenizer.convert_ids_to_tokens(judge.tokens) == merged
    some = VisionJudge(str(tiny_llava(tmp_path / "b", merged=merged[:2])))
    with pytest.raises(ValueError, match="reads 0 to 4 as more than one token each after 'Score:'"):
        some.check()


def test_folders_of_no_use_are_refused_in_a_sentence(tmp_path, folder):
    with pytest.raises(ValueError, match="is no vision-language model folder: it has no config.json"):
        VisionJudge(str(tmp_path))
    with pytest.raises(ValueError, match="has no chat_template"):
        VisionJudge(str(tiny_llava(tmp_path / "mute", template=None))).check()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match="blind cannot be read as a vision-language model of transformers"):
        VisionJudge(str(tmp_path / "blind")).check()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "code" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="code cannot be read as a vision-language model of transformers"):
        VisionJudge(str(tmp_path / "code")).check()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def rated(clip, dino, folder) -> Profile:
    return Profile("tiny", clip, dino, text="class_noun", pairing="all", vlm=str(folder))


def test_both_arms_of_a_concept_are_rated(rated, judge, generator, concepts, tmp_path):
    protocol = ConceptProtocol(["a {} on the grass", "a {} at night"], 1, rated, str(tmp_path / "images"))
    metrics = protocol.run(generator, concepts[:1], str(tmp_path))
    with (tmp_path / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = [row for row in rows if row["arm"] != "ceiling"]
    images = [tmp_path / "images" / row["file"] for row in drawn]
    same = judge.preservation(images, concepts[0].references, "dog")
    follows = judge.following(images, ["a dog on the grass", "a dog at night"] * 2)
    for at, row in enumerate(drawn):
        assert float(row["concept_preservation"]) == pytest.approx(float(same.scores[at]), abs=1e-6)
        assert float(row["prompt_following"]) == pytest.approx(float(follows.scores[at]), abs=1e-6)
        assert float(row["answered"]) == float(same.answered[at] + follows.answered[at]) / 2
    mean = metrics["overall"]["concept"]["concept_preservation"]["mean"]
    assert mean == pytest.approx(float(same.scores[2:].mean()), abs=1e-6)
    missing = 1 - min(float((same.answered + follows.answered)[arm].mean()) / 2 for arm in (slice(2), slice(2, 4)))
    assert missing > 0
    assert f"{missing:.1%} of its answers would not have been a number" in (tmp_path / "table.md").read_text("utf-8")
    assert metrics["compared"]["scores"] == ["clip_t", "clip_i", "dino", "concept_preservation", "prompt_following"]
    assert metrics["encoders"]["vlm"] == judge.identity


def test_a_profile_with_a_model_is_another_one(rated, profile, concepts, tmp_path):
    with pytest.raises(ValueError, match="another encoder vlm"):
        same_profile_or_raise([profile.identity(), rated.identity()])
    with pytest.raises(ValueError, match="protocol=pairs asks no vision-language model; leave metrics.vlm out"):
        PairProtocol(["a {first} left of a {second}"], 1, rated, str(tmp_path)).check(concepts)
