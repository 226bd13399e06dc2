"""Draws cells as generate.py does, with models that stay loaded: what one worker of the desk does."""

import io
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from src.data.notes import read_note
from src.eval.draw import draw_missing, request_paths
from src.run.cli import respelled
from src.run.desk.parts import Parts
from src.run.desk.watching import watched
from src.run.drawing import Call
from src.run.errors import explain
from src.run.recall import key_of, worth_noting
from src.run.start import check_start
from src.run.targets import CONF, refuse_foreign_files
from src.run.words import refuse_words, shortened

SHARE_OF_PREVIEWS = 1 / 80
"""How much of the time previews may take; the first one, which is worth more, is made in any case."""
EVERY_SECONDS = 0.2
"""Between two reports of progress: on a small model, telling of each step would take longer than the steps."""
MOST_COMPOSED = 128
PLAIN = re.compile(r"prompt='([\w <>:.,;!-]*\w[\w <>:.,;!-]*)' seed=(\d{1,9})")
"""Prompt and seed of a fader's move, in which no sign means anything to Hydra."""
MEMORY = (
    "out of memory: give fewer pixels (method.sampling.resolution), a smaller card (card=8gb), or close other programs"
)


class CancelledError(Exception):
    """Nobody waits for the picture any more."""


class Drawer:
    """Draws one picture at a time.

    Args:
        folder: Where pictures are kept; what is there is not drawn again.
        report: Is told what happens: ``step`` with share and seconds left, ``preview`` with a small WebP.
        is_cancelled: Asked after every step whether the picture is still wanted.
    """

    def __init__(
        self,
        folder: str | Path,
        report: Callable[..., None] = lambda *_: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.report, self.is_cancelled = Path(folder), report, is_cancelled
        self.parts = Parts()
        self._composed: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()

    def draw(self, words: Sequence[str]) -> dict[str, Any]:
        """Draw the picture of a command of generate.py.

        Args:
            words: Arguments, as typed.

        Returns:
            ``picture``, the file's name; ``seconds``; ``new``, whether it was drawn now; ``said``, sentences beside it.

        Raises:
            CancelledError: If nobody wants it any more.
            ValueError: As generate.py does.
        """
        began = time.perf_counter()
        cfg, given = self.composed(words)
        call = Call.read(cfg)
        generator = call.conditioned(self.parts.generator(cfg.method))
        with _said() as said:
            is_there = all(path.exists() for path in request_paths(generator, call.requests, self.folder))
            with watched(generator, self._on_step()):
                [path] = draw_missing(generator, call.requests, self.folder, worth_noting(given))
        seconds = time.perf_counter() - began
        note = read_note(str(path))
        return {
            "picture": path.name,
            "seconds": seconds,
            "new": not is_there,
            "said": list(dict.fromkeys(said)),
            "spectra": note.said,
        }

    def composed(self, words: Sequence[str]) -> tuple[DictConfig, list[str]]:
        """Compose and check a configuration of generate.py.

        Returns:
            It, and the arguments as Hydra gets them.
        """
        given = respelled(words, "generate.py")
        own = [word for word in given if key_of(word) in ("prompt", "seed")]
        rest = tuple(word for word in given if word not in own)
        plain = PLAIN.fullmatch(" ".join(own))
        if plain and rest in self._composed:
            # A fader moves the prompt alone. What Hydra reads in a plain text is the text, as ``override`` writes it.
            cfg = self._composed[rest].copy()
            cfg.prompt, cfg.seed = plain[1], int(plain[2])
            return cfg, given
        refuse_words(given)
        refuse_foreign_files(given)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("generate", given)
        check_start(cfg)
        self._composed[rest] = cfg
        while len(self._composed) > MOST_COMPOSED:
            self._composed.popitem(last=False)
        return cfg, given

    def _on_step(self) -> Callable[[float, Callable[[], Image.Image | None]], None]:
        began = time.perf_counter()
        spent, last, told = 0.0, 0.0, -EVERY_SECONDS

        def on_step(share: float, preview: Callable[[], Image.Image | None]) -> None:
            nonlocal spent, last, told
            if self.is_cancelled():
                raise CancelledError
            now = time.perf_counter() - began
            if now - told >= EVERY_SECONDS:
                self.report("step", share, now / share - now if share else None)
                told = now
            if share < 1 and spent <= SHARE_OF_PREVIEWS * now and (not last or now - last > 0.1):
                if (image := preview()) is not None:
                    self.report("preview", _small(image))
                last = time.perf_counter() - began
                spent += last - now if image is not None else now  # What gives no preview is not asked often.

        return on_step

    def facts(self, words: Sequence[str]) -> dict[str, Any]:
        """Load the model of a command, and say what a page needs to know of it.

        Raises:
            ValueError: As generate.py does.
        """
        cfg, _ = self.composed([*words, "prompt='a photo'", "num_images=1"])
        generator: Any = self.parts.generator(cfg.method)
        backbone: Any = getattr(generator, "backbone", None)
        sampling = getattr(generator, "sampling", {})
        name = getattr(backbone, "name", None) or getattr(backbone, "name_or_path", "") or "a model"
        return {
            "model": Path(str(name)).name,
            "fingerprint": getattr(backbone, "fingerprint", None),
            "steps": sampling.get("num_inference_steps"),
            "guidance": sampling.get("guidance_scale"),
            "resolution": sampling.get("resolution"),
            "styles": not hasattr(backbone, "denoiser"),
            "words": sorted(backbone.known_words.words) if getattr(backbone, "known_words", None) else [],
            "device": str(getattr(backbone, "device", "cpu")),
        }

    def sentence(self, error: Exception) -> str:
        """Say in one sentence what went wrong, as the command line does."""
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
            self.parts.forget()
            return MEMORY
        told = explain(error)
        return shortened(told if told is not None else f"a bug of ours: {type(error).__name__}: {error}")


def _small(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.thumbnail((256, 256))
    image.convert("RGB").save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


class _said(logging.Handler):  # noqa: N801
    """While active, warnings of ours are collected: words that a model was never taught, another file of a concept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one sentence."""
        self.sentences.append(shortened(record.getMessage()))

    def __enter__(self) -> list[str]:
        logging.getLogger("src").addHandler(self)
        return self.sentences

    def __exit__(self, *_: object) -> None:
        logging.getLogger("src").removeHandler(self)
