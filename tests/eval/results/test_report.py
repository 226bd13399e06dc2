import base64
import io
import json
import re
from html.parser import HTMLParser

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader

from src.callbacks.run_report import RunReport, read_curves
from src.eval.grid import Grid
from src.eval.results.glossary import GLOSSARY
from src.eval.results.report import Report
from src.eval.scores.style import EVERY as STYLE_SCORES

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Checks that tags close in order and that nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert all(source.startswith("data:image/") for source in parser.sources)
    return parser


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_page_is_whole_escaped_and_self_contained(tmp_path):
    report = Report("a <rex> & co")
    report.add_text("1 < 2", "Text")
    report.add_table(["", "dino"], [["<rex>", "0.5"]], "Table")
    report.add_image(noise(16), "noise")
    with report.folded("More"):
        report.add_image(noise(8), "more noise")
    report.add_config({"seed": 0, "path": "a<b"})
    report.write(tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert len(parsed(page).sources) == 2
    assert page.index("<summary>More") < page.index("more noise") < page.index("</details>")
    assert "<rex>" not in page
    assert "&lt;rex&gt;" in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_a_table_has_no_empty_column_and_the_page_says_what_its_words_mean():
    report = Report("x")
    report.add_table(["", "clip_t", "published"], [["control", "0.5", ""], ["mine", "0.6", ""]])
    page = report.html()
    assert "<th>clip_t</th>" in page and "<th>published</th>" not in page and page.count("<td>") == 4
    assert page.count("<dt>") == 2 and "<dt>clip_t</dt><dd>cosine of a picture" in page and "<dt>control</dt>" in page
    assert "What the columns mean" not in Report("y").html()


def test_an_interval_stands_below_its_mean():
    report = Report("x")
    report.add_table(["", "dino"], [["a [b] c", "0.512 [0.498, 0.533]"], ["full", "0.512"]])
    page = report.html()
    assert "<td>0.512<small> [0.498, 0.533]</small></td>" in page and "<td>a [b] c</td>" in page


def test_a_grid_of_an_older_run_that_cannot_be_cut_has_the_whole_width():
    report = Report("x")
    report.add_grid(Grid([noise(200)], 1), "Step 3")
    page = report.html()
    assert "<h2>Step 3</h2>" in page and page.count("<img ") == 1 and 'class="grid' not in page


def test_little_pictures_keep_their_pixels_and_wide_plots_a_line_of_their_own():
    report = Report("x")
    report.add_grid(Grid([noise(64), noise(129)], 2, ["little", "large"]))
    report.add_plots({"narrow": noise(64), "wide": noise(64).resize((1000, 64))})
    page = report.html()
    assert 'class="small" alt="little"' in page and '<img alt="large"' in page and "--columns: 2" in page
    assert page.count('class="wide scroll"') == 1 < page.index("narrow") < page.index("wide scroll")


def test_every_score_of_a_shipped_result_stands_in_the_glossary(root):
    """The scores of all studies, and those of the style protocol, whose guards depend on what is there to compare."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in root.glob("experiments/*/results/comparison.json")]
    sweeps = [record for record in read if "compared" in record]
    found = {name for record in sweeps for scores in record["means"].values() for name in scores}
    assert {"dino", "s_txt", "clip_injected", "as_asked"} <= found
    assert sorted(name for name in {*found, *STYLE_SCORES} if name not in GLOSSARY) == []


EVIL = "<script>alert('x')</script> \" onerror=\"alert(1) & $x^"
"""What a prompt, a path or a name may hold; matplotlib takes what stands between dollar signs for a formula."""


def test_nothing_that_is_told_becomes_part_of_the_page():
    report = Report(EVIL)
    report.add_text(EVIL, EVIL)
    report.add_table([EVIL], [[EVIL], [EVIL]], EVIL)
    report.add_table(["", EVIL], [[EVIL, "<script>0.5</script> [<script>]"]])
    report.add_grid(Grid([noise(8)] * 2, 2, [EVIL] * 2), EVIL)
    report.add_plots({EVIL: noise(8)}, {EVIL: EVIL})
    report.add_image(noise(8), EVIL)
    with report.folded(EVIL):
        report.add_text(EVIL)
    report.add_config({EVIL: EVIL}, EVIL)
    page = report.html()
    parsed(page)
    assert "<script" not in page
    assert 'onerror="' not in page


def test_small_images_survive_exactly():
    report = Report("x")
    report.add_image(noise(32))
    content = re.search(r"data:image/png;base64,([^\"]+)", report.html()).group(1)
    decoded = Image.open(io.BytesIO(base64.b64decode(content)))
    assert decoded.tobytes() == noise(32).tobytes()


def test_many_large_images_shrink_until_they_fit(monkeypatch):
    monkeypatch.setattr("src.eval.results.report.MAX_BYTES", 150_000)
    report = Report("x")
    for _ in range(3):
        report.add_image(noise(300))
    page = report.html()
    assert 20_000 < len(page) < 160_000
    assert page.count("data:image/jpeg") == 3


class OneWeight(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = ((self.weight * batch) ** 2).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_training_ends_with_a_page(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("learning_rate: 0.125\n", encoding="utf-8")
    (tmp_path / "samples").mkdir()
    for name in ("step-000000", "step-000003", "references"):
        noise(8).save(tmp_path / "samples" / f"{name}.png")
    logger = CSVLogger(tmp_path, name="logs", flush_logs_every_n_steps=1000)
    trainer = L.Trainer(
        max_steps=4, log_every_n_steps=1, logger=logger, callbacks=[RunReport(str(tmp_path))], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(OneWeight(), DataLoader(torch.ones(4)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(parsed(page).sources) == 4
    assert all(text in page for text in ("OneWeight, 4 steps", 'alt="loss"', "learning_rate: 0.125"))
    places = [page.index(text) for text in ("Step 3", "The photos", "Earlier samples", "Step 0", 'alt="loss"')]
    assert places == sorted(places), "pictures first, the newest of them open"


def test_curves_skip_what_was_not_logged(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,lr-AdamW,step,train/loss\n,0.1,9,\n0,,9,1.5\n0,,19,1.25\n", encoding="utf-8"
    )
    curves = read_curves([tmp_path / "metrics.csv"])
    assert curves == {"train/loss": ([9.0, 19.0], [1.5, 1.25]), "lr-AdamW": ([9.0], [0.1])}
    assert list(curves)[0] == "train/loss"
