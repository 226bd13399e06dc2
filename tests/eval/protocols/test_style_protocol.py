import csv
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.data.images import load_image
from src.data.request import ImageStyle
from src.data.styles import StylePrompt, style_references
from src.data.world.export import STYLE_IMAGES, write_style_images
from src.data.world.render import render
from src.data.world.scenes import sample_scene
from src.eval.draw import measured_plan
from src.eval.profile import Profile
from src.eval.protocols.style import StyleProtocol
from src.eval.scores.sets import PerceptualDiversity, SetMetrics, SetScores
from src.eval.sweeps.comparison import compare_points

PROMPTS = ["a red dog on the grass", "a blue cat at night", "a green bird in the snow"]
SEEDS = 2


class Mixing:
    """Draws a scene of its own for each prompt and seed, mixed with so much of the style image, if there is one."""

    batch_size = 4

    def __init__(self, strength=0.5):
        self.strength, self.requests = strength, []

    def identity(self, prompt=None):
        return {"draws": "mixtures", "reference.strength": str(self.strength)}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        self.requests += requests
        return [self._draw(request) for request in requests]

    def _draw(self, request):
        plain = render(sample_scene(sum(map(ord, request.prompt)) + request.seed))
        if not isinstance(request.style, ImageStyle):
            return plain
        return Image.blend(plain, load_image(request.style.path), self.strength)


class Particular(Mixing):
    """Draws without a style only."""

    def check(self, requests):
        if any(request.style for request in requests):
            raise ValueError("a style was asked for")


@pytest.fixture
def styles(tmp_path):
    write_style_images(tmp_path / "styles")
    return style_references(tmp_path / "styles")[:3]


def changed(clip, dino, **rules):
    return Profile("tiny_style", clip, dino, **({"text": "full", "pairing": "one_each"} | rules))


def asked(names=(), real_dir=None, dino=None):
    measures = SetMetrics(*([dino.model, dino.preprocess] if dino else []), subset_size=5, num_subsets=2)
    return SetScores(names, real_dir, measures, PerceptualDiversity(Squared()))


class Squared(torch.nn.Module):
    def forward(self, first, second):
        return ((first - second) ** 2).mean((1, 2, 3))


@pytest.fixture
def protocol(styles, clip, dino, tmp_path):
    return StyleProtocol(PROMPTS, styles, SEEDS, changed(clip, dino), str(tmp_path / "images"), asked())


def rows(folder, name="per_image"):
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def of(table, arm, style=None):
    return [row for row in table if row["arm"] == arm and (style is None or row["style"] == style.name)]


def column(table, name):
    return np.array([float(row[name]) for row in table])


def likeness(embeddings):
    """Mean over pairs."""
    return np.mean([embeddings[i] @ embeddings[j] for i in range(len(embeddings)) for j in range(i)])


def test_numbers_are_those_of_a_few_lines_of_numpy(protocol, styles, clip, dino, tmp_path):
    metrics = protocol.run(Mixing(), [], str(tmp_path))
    table = rows(tmp_path)
    assert len(table) == 2 * len(styles) * len(PROMPTS) * SEEDS
    for style in styles:
        made, plain = of(table, "style", style), of(table, "control", style)
        images, others = ([load_image(tmp_path / "images" / row["file"]) for row in arm] for arm in (made, plain))
        reference = [load_image(style.path)]
        texts = clip.encode_texts([f"{row['prompt']}, in {style.style} style" for row in made]).numpy()
        embedded, control = clip.encode_images(images).numpy(), clip.encode_images(others).numpy()
        np.testing.assert_allclose(column(made, "s_txt"), (embedded * texts).sum(1), atol=1e-5)
        np.testing.assert_allclose(column(plain, "s_txt"), (control * texts).sum(1), atol=1e-5)
        like = clip.encode_images(reference)[0].numpy()
        np.testing.assert_allclose(column(made, "s_img"), embedded @ like, atol=1e-5)
        content = dino.encode_images(reference)[0].numpy()
        ours, theirs = dino.encode_images(images).numpy(), dino.encode_images(others).numpy()
        np.testing.assert_allclose(column(made, "leakage"), ours @ content - theirs @ content, atol=1e-5)
        caption = clip.encode_texts([style.content])[0].numpy()
        np.testing.assert_allclose(column(made, "text_leakage"), embedded @ caption - control @ caption, atol=1e-5)
        known = clip.encode_texts([*PROMPTS, style.content]).numpy()
        nearest = (embedded @ known.T).argmax(1)
        np.testing.assert_array_equal(column(made, "taken_for_reference"), nearest == len(PROMPTS))
        np.testing.assert_array_equal(column(made, "recall_at_1"), nearest == np.repeat(range(len(PROMPTS)), SEEDS))
        for seed in range(SEEDS):
            gain = [
                np.mean([x[i] @ x[j] for i in range(3) for j in range(i)]) for x in (ours[seed::2], theirs[seed::2])
            ]
            assert column(made, "collapse")[seed::SEEDS].mean() == pytest.approx(gain[0] - gain[1], abs=1e-5)
        pairs = [1 - ours[first] @ ours[first + 1] for first in range(0, len(ours), SEEDS)]
        np.testing.assert_allclose(column(made, "diversity"), np.repeat(pairs, SEEDS), atol=1e-5)
        pictures = dino.encode_images([load_image(one.path) for one in styles]).numpy()
        ceiling = max(pictures[i] @ pictures[j] for i in range(len(styles)) for j in range(i))
        np.testing.assert_array_equal(column(made, "copied"), (ours @ pictures.T).max(1) > ceiling)
        assert {row["leakage"] for row in plain} == {row["collapse"] for row in plain} == {""}
    text, image = (column(of(table, "style"), name) for name in ("s_txt", "s_img"))
    overall = metrics["overall"]["style"]
    assert overall["s_txt"]["mean"] == pytest.approx(text.mean())
    positive = 2 * max(text.mean(), 0) * image.mean() / (text.mean() + image.mean())
    assert overall["harmonic"]["mean"] == pytest.approx(positive)
    each = np.where((text > 0) & (image > 0), 2 * text * image / (text + image), 0)
    assert overall["mean_of_harmonics"]["mean"] == pytest.approx(each.mean())
    assert metrics["overall"]["change"]["s_img"]["mean"] == pytest.approx(
        image.mean() - column(of(table, "control"), "s_img").mean()
    )


def test_the_control_is_the_same_request_without_its_reference(protocol, styles, tmp_path):
    requests = protocol.requests([])
    control, styled = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    assert [(one.prompt, one.seed) for one in control] == [(one.prompt, one.seed) for one in styled]
    expected = [f"{prompt}, in {one.style} style" for one in styles for prompt in PROMPTS for _ in range(SEEDS)]
    assert [one.prompt for one in control] == expected
    assert {one.style for one in control} == {None}
    each = len(PROMPTS) * SEEDS
    assert [one.style for one in styled] == [style.reference for style in styles for _ in range(each)]


def test_run_folder_holds_everything(styles, clip, dino, tmp_path):
    prompts = [StylePrompt(prompt, "Animals") for prompt in PROMPTS]
    protocol = StyleProtocol(prompts, styles, 1, changed(clip, dino), str(tmp_path / "images"), asked())
    metrics = protocol.run(Mixing(), [], str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["profile"] == "tiny_style" and metrics["encoders"]["dino"] == dino.identity
    assert {"command", "git_commit", "seed", "versions", "generator", "rules"} <= set(metrics)
    assert [metrics["styles"][style.name]["descriptor"] for style in styles] == [style.style for style in styles]
    assert metrics["compared"]["factors"] == ["prompt", "style"]
    assert len(rows(tmp_path, "per_prompt")) == 2 * len(PROMPTS)
    assert len(rows(tmp_path, "per_style")) == 2 * len(styles)
    assert {row["category"] for row in rows(tmp_path, "per_category")} == {"Animals"}
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(protocol.requests([]))
    assert [line.get("reference", "")[:6] for line in lines] == [""] * 9 + ["image "] * 9
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(word in table for word in ("control", "change", "harmonic", "leakage", "tiny_style", styles[0].name))
    assert "| diversity |" not in table
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("<h2>Pictures: style") < page.index("<summary>Pictures: control") < page.index("<table>")
    assert Image.open(tmp_path / "grid_style.png").width > 3 * 128


def test_more_of_the_style_image_is_nearer_to_it_and_leaks_more(styles, clip, dino, tmp_path):
    found = []
    for strength in (0.0, 0.5, 1.0):
        protocol = StyleProtocol(PROMPTS, styles, 1, changed(clip, dino), str(tmp_path / "images"), asked())
        found.append(protocol.run(Mixing(strength), [], str(tmp_path / str(strength)))["overall"])
    assert found[0]["change"]["s_img"]["mean"] == found[0]["style"]["leakage"]["mean"] == 0
    means = [one["style"]["s_img"]["mean"] for one in found]
    assert means == sorted(means) and means[-1] == pytest.approx(1, abs=1e-5)
    assert found[2]["style"]["copied"]["mean"] == 1
    assert found[2]["style"]["leakage"]["mean"] > found[1]["style"]["leakage"]["mean"] > 0
    assert found[2]["style"]["collapse"]["mean"] > found[1]["style"]["collapse"]["mean"]


def test_arms_share_their_plain_images(protocol, tmp_path):
    first, second = Mixing(0.2), Mixing(0.4)
    for generator in (first, second):
        protocol.run(generator, [], str(tmp_path / str(generator.strength)))
    assert sum(one.style is None for one in first.requests) == 3 * len(PROMPTS) * SEEDS
    assert all(one.style is not None for one in second.requests)
    again = Mixing(0.4)
    protocol.run(again, [], str(tmp_path / "again"))
    assert again.requests == []


def test_the_text_is_the_profiles(styles, clip, dino, tmp_path):
    plain = changed(clip, dino, text="without_style")
    prompts = [StylePrompt(prompt, "Animals") for prompt in PROMPTS]
    StyleProtocol(prompts, styles, 1, plain, str(tmp_path / "images"), asked()).run(Mixing(), [], str(tmp_path))
    made = of(rows(tmp_path), "style", styles[0])
    images = clip.encode_images([tmp_path / "images" / row["file"] for row in made]).numpy()
    texts = clip.encode_texts([f"{row['prompt']}, animals" for row in made]).numpy()
    np.testing.assert_allclose(column(made, "s_txt"), (images * texts).sum(1), atol=1e-5)


def test_styles_in_words_are_compared_within_their_set(clip, dino, tmp_path):
    styles = style_references(None, ["retro poster", "glowing"])
    within = changed(clip, dino, pairing="within_set")
    protocol = StyleProtocol(PROMPTS, styles, SEEDS, within, str(tmp_path / "images"), asked())
    metrics = protocol.run(Mixing(), [], str(tmp_path))
    made = of(rows(tmp_path), "style", styles[1])
    images = dino.encode_images([tmp_path / "images" / row["file"] for row in made]).numpy()[::SEEDS]
    assert column(made, "s_img")[::SEEDS].mean() == pytest.approx(likeness(images), abs=1e-5)
    assert "leakage" not in metrics["overall"]["style"] and metrics["compared"]["scores"] == [
        "s_txt",
        "s_content",
        "s_img",
    ]
    with pytest.raises(ValueError, match="retro poster is words alone"):
        StyleProtocol(PROMPTS, styles, SEEDS, changed(clip, dino), "images", asked())


def test_set_metrics_are_there_where_they_are_asked_for(styles, clip, dino, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    for index in range(6):
        render(sample_scene(index)).save(real / f"{index}.png")
    names = ["fid", "kid", "lpips"]
    scores = asked(names, str(real), dino)
    protocol = StyleProtocol(PROMPTS, styles, SEEDS, changed(clip, dino), str(tmp_path / "images"), scores)
    metrics = protocol.run(Mixing(), [], str(tmp_path))
    made = [tmp_path / "images" / row["file"] for row in of(rows(tmp_path), "style")]
    assert metrics["set_metrics"]["style"]["fid"] == pytest.approx(scores.measures.fid(made, scores.real))
    pixels = [np.asarray(load_image(path), np.float64) / 127.5 - 1 for path in made]
    pairs = [((pixels[first] - pixels[first + 1]) ** 2).mean() for first in range(0, len(pixels), SEEDS)]
    assert metrics["set_metrics"]["style"]["lpips"] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert "kid_std" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_too_few_images_for_a_set_metric_are_said_before_drawing(styles, clip, dino, tmp_path):
    render(sample_scene(0)).save(tmp_path / "one.png")
    generator = Mixing()
    for names, said in ((["kid"], "set subset_size to at most 1"), (["lpips"], "set num_seeds=2 or more")):
        scores = asked(names, str(tmp_path), dino)
        protocol = StyleProtocol(PROMPTS, styles, 1, changed(clip, dino), str(tmp_path / "images"), scores)
        with pytest.raises(ValueError, match=said):
            protocol.run(generator, [], str(tmp_path))
    assert generator.requests == []
    with pytest.raises(ValueError, match="no set metric 'fed'; choose some of: fid, kid, lpips"):
        asked(["fed"])
    with pytest.raises(ValueError, match="fid compares with real images; set real_dir=FOLDER"):
        asked(["fid"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": PROMPTS[:1]}, "need two prompts, a style and a seed, got 1, 3 and 1"),
        ({"prompts": PROMPTS * 2}, "prompts must differ, and 'a red dog on the grass' is there twice"),
        ({"styles": []}, "got 3, 0 and 1"),
        ({"num_seeds": 0}, "got 3, 3 and 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments, said, styles, clip, dino):
    whole = {"prompts": PROMPTS, "styles": styles, "num_seeds": 1, "profile": changed(clip, dino)}
    with pytest.raises(ValueError, match=said):
        StyleProtocol(**{**whole, "images_dir": "images", "set_metrics": asked(), **arguments})
    with pytest.raises(ValueError, match="the profile tiny_style scores the prompt with the class noun"):
        StyleProtocol(
            **{**whole, "profile": changed(clip, dino, text="class_noun")}, images_dir="", set_metrics=asked()
        )


def test_s_content_reads_the_prompt_without_the_style(protocol, clip, tmp_path):
    protocol.run(Mixing(), [], str(tmp_path))
    (row,) = [row for row in rows(tmp_path) if row["arm"] == "style" and row["prompt"] == PROMPTS[1]][:1]
    image = clip.encode_images([tmp_path / "images" / row["file"]])
    assert float(row["s_content"]) == pytest.approx(float((image * clip.encode_texts([PROMPTS[1]])).sum()), abs=1e-5)
    assert abs(float(row["s_content"]) - float(row["s_txt"])) > 1e-3


def test_images_that_were_there_take_no_time(protocol, tmp_path):
    protocol.run(Mixing(), [], str(tmp_path))
    assert "seconds an image" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert protocol.run(Mixing(), [], str(tmp_path))["seconds_per_image"] == {"control": None, "style": None}
    assert "seconds an image" not in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_dry_run_counts_both_arms(protocol, tmp_path):
    plan = dict(measured_plan(Mixing(), protocol.requests([]), tmp_path / "images").rows)
    assert plan["images asked for"] == str(2 * 3 * len(PROMPTS) * SEEDS)


def test_points_of_a_sweep_are_compared_with_their_harmonics_and_frontiers(styles, clip, dino, tmp_path):
    for number, strength in enumerate((0.3, 0.6)):
        folder = tmp_path / "sweep" / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- generator.strength={strength}\n", encoding="utf-8")
        images = str(tmp_path / "sweep" / "images")
        StyleProtocol(PROMPTS, styles, SEEDS, changed(clip, dino), images, asked()).run(Mixing(strength), [], folder)
    compare_points(tmp_path / "sweep")
    record = json.loads((tmp_path / "sweep" / "comparison.json").read_text(encoding="utf-8"))
    assert record["differences"]["generator.strength=0.6 s_img"]["interval"]["mean"] > 0
    assert record["differences"]["generator.strength=0.6 leakage"]["wins"]["num"] == len(PROMPTS)
    assert set(record["means"]["generator.strength=0.3"]) == {"s_txt", "s_content", "leakage", "s_img", "harmonic"}
    assert "of min-max means (ours)" in (tmp_path / "sweep" / "table.md").read_text(encoding="utf-8")


def test_the_world_is_scored_by_its_configuration(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        own = ["protocol=style", "protocol.prompts=['a red dog','a blue cat']", f"paths.run_dir={tmp_path}"]
        cfg = compose("eval", [*own, f"paths.cache_dir={tmp_path}/cache"])
    protocol = instantiate(cfg.protocol, _convert_="all")
    metrics = protocol.run(Mixing(0.8), [], str(tmp_path))
    assert metrics["profile"] == "world_style" and set(metrics["styles"]) == set(STYLE_IMAGES)
    assert metrics["overall"]["change"]["s_img"]["low"] > 0


def test_what_cannot_be_drawn_is_said_before_the_control_is(protocol, tmp_path):
    generator = Particular()
    with pytest.raises(ValueError, match="a style was asked for"):
        protocol.run(generator, [], str(tmp_path / "run"))
    assert generator.requests == []
