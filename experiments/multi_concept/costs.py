"""What each method costs, and what it changes unasked: ``python -m experiments.multi_concept.costs``.

Of each method, with the six subjects of ``suite=world``: bytes of a concept, seconds to make a new combination of 2, 3
and 5 ready, time of an image over that of the stock model, measured side by side, and *drift*: how far prompts without
any concept move while a concept's weights stay in the model, 1 minus DINO's cosine to the stock picture. LaTexBlend
changes no weight. For methods that learn subjects together, a combination is ready when its training is over, and the
bytes are those of its file.
"""

import csv
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.data.banks import concept_header, subjects_of
from src.data.files import write_text
from src.data.request import Request
from src.eval.results.results import Table, provenance
from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.modules.rivals.generator import RivalGenerator
from src.modules.rivals.joint import JointGenerator
from src.run.suites import trained

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
RIVALS = (
    "latexblend_published",
    "custom_diffusion",
    "dreambooth_lora",
    "textual_inversion",
    "mix_of_show",
    "cones2",
    "omg",
    "custom_diffusion_joint",
    "mudi",
)
NUMBERS = (2, 3, 5)
PLAIN = [
    *("a dog on the grass", "a cat in the snow", "a red car in a room", "a photo of a bird at night"),
    *("a blue cup left of a robot", "a watercolor painting of a rabbit", "a pencil sketch of a tree", "a house"),
]
REPEATS = 5


def prompt_of(names: Sequence[str]) -> str:
    """A prompt that names concepts from left to right."""
    mentions = [f"a <{name}>" for name in names]
    return (
        f"{', '.join(mentions[:-1])} and {mentions[-1]} on the grass"
        if len(names) > 1
        else f"{mentions[0]} on the grass"
    )


def made(rival: str) -> tuple[Any, dict[str, list[str]], Any]:
    """The generator of a method with its six concepts, the files of each, and the profile."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("eval", ["suite=world", f"+rivals={rival}", "paths.run_dir=."], return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        suite = instantiate(whole.suite)
        asked = [Request(prompt_of(sorted(list(suite.subjects)[:number])), 0) for number in NUMBERS]
        banks = {key.partition(".")[2]: files for key, files in trained(suite, asked).items()}
        generator = instantiate(whole.method, banks=banks, _convert_="all")
        files = {name: each if isinstance(each, list) else [each] for name, each in banks.items()}
        return generator, files, instantiate(whole.metrics)


def training_seconds(file: str) -> float:
    """How long the training of a file took, by the log that it left: its steps over the median of its rates."""
    (log,) = Path(file).with_suffix("").glob("logs/*/metrics.csv")
    with open(log, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    rates = [float(row["perf/it_s"]) for row in rows if row.get("perf/it_s")]
    return (1 + max(int(row["step"]) for row in rows)) / median(rates)


def seconds(run: Callable[[], object]) -> float:
    """The median of some runs, after one that warms up."""
    run()
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    return median(spent)


def measured(rival: str) -> dict[str, Any]:
    """Everything that is measured of one method."""
    generator, banks, profile = made(rival)
    names = list(banks)
    files = {path for each in banks.values() for path in each}
    found: dict[str, Any] = {"bytes": median(Path(path).stat().st_size for path in files)}
    stock = [Request("a dog, a cat and a bird on the grass", 0)]
    for number in NUMBERS:
        chosen = tuple(sorted(names[:number]))
        asked = [Request(prompt_of(chosen), 0)]
        if isinstance(generator, JointGenerator):
            (file,) = (path for path in files if len(subjects_of(concept_header(path))) == number)
            found[f"tuning_{number}"] = training_seconds(file)
        elif isinstance(generator, RivalGenerator):
            started = time.perf_counter()
            generator.combined(chosen)
            found[f"tuning_{number}"] = time.perf_counter() - started
        else:
            found[f"tuning_{number}"] = 0.0
        found[f"time_{number}"] = seconds(partial(generator.sample, asked)) / seconds(partial(generator.sample, stock))
    found["drift"] = drift(generator, names, profile).as_dict()
    return found


def drift(generator: Any, names: Sequence[str], profile: Any) -> Interval:
    """1 minus the likeness of plain prompts' pictures, with a concept's weights in the model, to the stock ones."""
    requests = [Request(prompt, seed) for prompt in PLAIN for seed in (0, 1)]
    prompts, seeds = [one.prompt for one in requests], [one.seed for one in requests]
    stock = profile.dino.encode_images(generator.backbone.draw(prompts, seeds, generator.sampling))
    far, groups = list[float](), list[str]()
    for name in names[:3]:
        acting: AbstractContextManager[Any] = nullcontext()
        if isinstance(generator, RivalGenerator):
            acting = generator.acting((name,))
        with acting:
            drawn = profile.dino.encode_images(generator.backbone.draw(prompts, seeds, generator.sampling))
        far += (1 - (drawn * stock).sum(-1)).tolist()
        groups += prompts
    return bootstrap_mean(far, [groups], 0)


def main() -> None:
    """Measure every method; write a line for each."""
    found = {rival: measured(rival) for rival in RIVALS}
    columns = [
        "",
        "KiB a concept",
        *(f"s to combine {n}" for n in NUMBERS),
        *(f"time of {n}" for n in NUMBERS),
        "drift",
    ]
    lines = []
    for rival, one in found.items():
        drifted = Interval(**{key: one["drift"][key] for key in ("mean", "low", "high")})
        spent = [f"{one[f'tuning_{number}']:.2f}" for number in NUMBERS]
        ratios = [f"{one[f'time_{number}']:.2f}x" for number in NUMBERS]
        lines.append([rival, f"{one['bytes'] / 1024:.1f}", *spent, *ratios, str(drifted)])
    title = "What methods cost, and how far plain prompts move with a concept's weights (1 - cosine of DINO)"
    write_text(RESULTS / "costs.md", Table(title, columns, lines).markdown())
    write_text(RESULTS / "costs.json", json.dumps({"methods": found, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
