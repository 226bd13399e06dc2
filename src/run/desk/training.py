"""A concept that is learnt from the page: dropped photos, the command that learns from them, and how it gets on."""

import asyncio
import csv
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from src.data.commands import in_shell, override
from src.data.mentions import check_name
from src.run.desk.places import named
from src.run.recall import key_of
from src.run.targets import CONF
from src.run.words import shortened

MOST_PHOTOS, MOST_FOLDERS = 32, 200
NOUN = re.compile(r"[\w'-]+( [\w'-]+){0,3}")
FOLDER = re.compile(r"[a-z0-9]{8,32}")
EVERY_SECONDS = 0.5


def keep_photo(folder: Path, batch: str, data: bytes) -> Path:
    """Keep one dropped photo as an upright RGB picture; nothing else of the file is kept, its name neither.

    Args:
        folder: Where all dropped photos are kept.
        batch: Name of the photos that are dropped together.
        data: The file.

    Raises:
        ValueError: If it is no image, or there are too many.
    """
    # Seconds of imports, which the page need not wait for.
    from src.data.files import save_png
    from src.data.images import decode_image

    if not FOLDER.fullmatch(batch):
        raise ValueError("photos that are dropped together have a name of 8 to 32 small letters and digits")
    image = decode_image(BytesIO(data), "that was dropped")
    there = sorted((folder / batch).glob("*.png")) if (folder / batch).is_dir() else []
    if len(there) >= MOST_PHOTOS:
        raise ValueError(f"{MOST_PHOTOS} photos are enough for one concept; drop fewer")
    if not there and len([one for one in folder.glob("*") if one.is_dir()]) >= MOST_FOLDERS:
        raise ValueError(f"{folder} holds {MOST_FOLDERS} folders of photos; remove some")
    path = folder / batch / f"{len(there):02d}.png"
    save_png(image, path)
    return path


def experiment_of(backbone: str) -> str:
    """Name the experiment that learns a concept on a backbone of ``conf/backbone``.

    Raises:
        ValueError: If there is none.
    """
    for path in sorted((CONF / "experiment").glob("concept_*.yaml")):
        if f"override /backbone: {backbone}\n" in path.read_text(encoding="utf-8"):
            return path.stem
    raise ValueError(
        f"no experiment learns a concept on backbone={backbone}; start the desk with sd15, sdxl or world_sd"
    )


class Training:
    """One training at a time, in a process of its own: ``train.py`` as a person would start it.

    Args:
        root: Folder of all runs.
        base: Arguments that the desk was started with; those of the backbone and of a card hold for trainings, too.
        backbone: Name of the backbone's configuration.
        tell: Is told how it gets on.
    """

    def __init__(self, root: Path, base: Sequence[str], backbone: str, tell: Callable[[dict[str, Any]], None]) -> None:
        self.root, self.backbone, self._tell = root, backbone, tell
        self.base = [word for word in base if re.match(r"[+~]*(backbone[.=]|card=)", word)]
        self.state: dict[str, Any] = {"kind": "training", "state": "none"}
        self.pictures: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def words(self, photos: str, noun: str, name: str, steps: int | None) -> list[str]:
        """Write the arguments of train.py.

        Args:
            photos: Folder of the photos.
            noun: Class noun, such as ``dog``.
            name: What prompts are to call it.
            steps: Number of steps; None for the experiment's own.

        Raises:
            ValueError: If no prompt can carry the name or the noun.
        """
        check_name(name, "the name of the concept")
        if not NOUN.fullmatch(noun):
            raise ValueError(f"the noun is {noun[:40]!r}; give what it is in one to four words, such as dog")
        if steps is not None and not 1 <= steps <= 100_000:
            raise ValueError(f"a training has {steps} steps; give 1 to 100000, or leave it to the experiment")
        own = {"data.instance_dir": photos, "class_noun": noun, "concept": name}
        lengths = {"trainer.max_steps": steps, "trainer.val_check_interval": min(steps, 50)} if steps else {}
        told = [override(key, value) for key, value in {**own, **lengths}.items()]
        root = [] if str(self.root) == "outputs" else [override("paths.root", str(self.root))]
        backbone = [word for word in self.base if key_of(word) != "backbone"]
        return [f"+experiment={experiment_of(self.backbone)}", *backbone, *told, *root]

    async def start(self, words: Sequence[str], name: str) -> None:
        """Start a training.

        Raises:
            ValueError: If one is going on.
        """
        if self._task and not self._task.done():
            raise ValueError("a concept is being learnt already; stop it, or wait for its end")
        self._stopping, self.pictures = False, {}
        typed = " ".join(["python train.py", *map(in_shell, words)])
        self._say(state="starting", name=name, share=0.0, left=None, grids=[], sentence="", command=typed)
        self._task = asyncio.create_task(self._run(list(words), name))

    def _say(self, **told: Any) -> None:
        self.state = {**self.state, "kind": "training", **told}
        self._tell(self.state)

    async def _run(self, words: list[str], name: str) -> None:
        try:
            made, run_dir, error = await self._spawned(words)
            if self._stopping and not made and run_dir:
                steps = await asyncio.to_thread(_steps_of, run_dir)
                if steps:
                    self._say(state="keeping")
                    kept = [word for word in words if key_of(word) != "trainer.max_steps"]
                    made, _, error = await self._spawned([*kept, f"trainer.max_steps={steps}", "resume=true"])
                else:
                    error = "it was stopped before its first checkpoint, so there is nothing to keep"
            if made:
                self._say(state="done", share=1.0, left=0.0, bank=made)
            else:
                self._say(state="failed", sentence=shortened(error or "the training ended without a bank"))
        except Exception as error:
            self._say(state="failed", sentence=shortened(f"the training could not be followed: {error}"))
            raise

    async def _spawned(self, words: Sequence[str]) -> tuple[str, str, str]:
        """Run train.py to its end: the bank that it made, its run folder, and what it said last of an error."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(CONF.parent / "train.py"),
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
        )
        assert process.stdout
        found = {"run folder": "", "concept bank": "", "error": ""}
        watching: asyncio.Task[None] | None = None
        with suppress(ValueError):  # A bar without an end of line.
            async for line in process.stdout:
                for part in re.split(r"[\r\n]", line.decode("utf-8", "replace")):
                    key, _, value = part.partition(": ")
                    if key in found:
                        found[key] = value.strip()
                    if key == "run folder":
                        watching = asyncio.create_task(self._watch(Path(found[key])))
        await process.wait()
        if watching:
            watching.cancel()
            with suppress(OSError, ValueError):
                self._look(Path(found["run folder"]))
        return found["concept bank"], found["run folder"], found["error"]

    async def _watch(self, run_dir: Path) -> None:
        while True:
            with suppress(OSError, ValueError):
                self._look(run_dir)
            await asyncio.sleep(EVERY_SECONDS)

    def _look(self, run_dir: Path) -> None:
        """Say how far a run is, by its log, and which grids of samples it has drawn."""
        share, left = self.state["share"], self.state["left"]
        logs = sorted(run_dir.glob("logs/*/metrics.csv"))
        if logs:
            with logs[-1].open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            steps = [int(row["step"]) + 1 for row in rows if (row.get("step") or "").isdecimal()]
            hours = [float(row["perf/hours_left"]) for row in rows if row.get("perf/hours_left")]
            most = _max_steps(run_dir)
            share = min(max(steps, default=0) / most, 1.0) if most else share
            left = hours[-1] * 3600 if hours else left
        grids = [str(path) for path in sorted(run_dir.glob("samples/step-*.png"))]
        self.pictures = {named(path): path for path in grids}
        told = {"share": share, "left": left, "grids": list(self.pictures), "state": "training"}
        if any(self.state.get(key) != value for key, value in told.items()) and not self._stopping:
            self._say(**told)

    def stop(self) -> None:
        """End the training, and keep what it has learnt; without a training nothing happens."""
        process = self._process
        if process and process.returncode is None:
            self._stopping = True
            self._say(state="stopping")
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)

    async def close(self) -> None:
        """End with the desk: the training stops, and its checkpoint is kept."""
        process = self._process
        if process and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 10)


def _max_steps(run_dir: Path) -> int:
    found = re.search(r"^ +max_steps: (\d+)$", (run_dir / ".hydra" / "config.yaml").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


def _steps_of(run_dir: str) -> int:
    """Steps of the newest whole checkpoint of a run; 0 without one."""
    # Seconds of imports, for the one training that is stopped.
    from src.modules.training.checkpoints import intact

    _, content = next(intact(run_dir), (None, {}))
    return int(content.get("global_step", 0)) if content else 0
