"""Requests to images on disk, each drawn once and found again by what it was drawn from."""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from src.data.files import save_png, take_turns
from src.data.images import check_png, load_image
from src.data.layout import layout_key
from src.data.notes import chunks
from src.data.peak_memory import peak_memory
from src.data.request import Generator, Request, Style
from src.data.store import read_or_remove
from src.eval.grid import Grid
from src.eval.results.results import Table

ONLY_WITH_REFERENCE = "reference."


def request_path(folder: Path, request: Request, drawn_with: dict[str, str]) -> Path:
    """``<words of the prompt>_s<seed>_<hash>.png``; the hash covers prompt, seed and what it is drawn with."""
    record = json.dumps([request.prompt, request.seed, sorted(drawn_with.items())])
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40]
    return folder / f"{words}_s{request.seed:04d}_{hashlib.sha256(record.encode()).hexdigest()[:10]}.png"


def request_paths(generator: Generator, requests: Sequence[Request], folder: str | Path) -> list[Path]:
    """Where each request is, or will be, in ``folder``.

    Raises:
        ValueError: If a request could not be drawn, or its style cannot be read.
    """
    generator.check(requests)
    return _paths(folder, requests, _drawn_with(generator, requests))


def _paths(folder: str | Path, requests: Sequence[Request], drawn_with: Sequence[dict[str, str]]) -> list[Path]:
    return [request_path(Path(folder), request, one) for request, one in zip(requests, drawn_with, strict=True)]


def _drawn_with(generator: Generator, requests: Sequence[Request]) -> list[dict[str, str]]:
    """The generator's identity for each request, with the key of the style if there is one."""
    identities = {prompt: generator.identity(prompt) for prompt in {request.prompt for request in requests}}
    keys = _style_keys(requests)

    def one(request: Request) -> dict[str, str]:
        identity = identities[request.prompt] | _layout_key(request)
        if request.style is not None:
            return identity | {"reference": keys[request.style]}
        return {key: value for key, value in identity.items() if not key.startswith(ONLY_WITH_REFERENCE)}

    return [one(request) for request in requests]


def _layout_key(request: Request) -> dict[str, str]:
    return {"layout": layout_key(request.layout)} if request.layout else {}


def _style_keys(requests: Sequence[Request]) -> dict[Style, str]:
    """Each image is read once."""
    return {style: style.key() for style in {request.style for request in requests} if style is not None}


def draw_missing(
    generator: Generator, requests: Sequence[Request], folder: str | Path, command: Sequence[str] | None = None
) -> list[Path]:
    """Draw what ``folder`` does not hold yet.

    A run that was killed goes on where it stopped; several processes share the work. Batches are cut from the whole
    list, so that what is drawn anew stands in the batch that it stood in: not even rounding differs.

    Args:
        generator: Draws them; its ``sampling``, if it has one, is told to viewers of the images.
        requests: All that there should be.
        folder: Where they are and will be.
        command: Arguments of the command that asks, as of ``Note``.

    Returns:
        One path per request, in order. How each was drawn stands in the PNG's text chunks, see ``src.data.notes``.

    Raises:
        ValueError: If a request could not be drawn, or its style cannot be read; nothing was drawn then.
    """
    generator.check(requests)
    drawn_with = _drawn_with(generator, requests)
    paths = _paths(folder, requests, drawn_with)
    noted = dict(zip(paths, drawn_with, strict=True))
    for path in noted:
        read_or_remove(path, check_png)
    drawable = list(dict.fromkeys(zip(requests, paths, strict=True)))
    size = generator.batch_size
    batches = [drawable[start : start + size] for start in range(0, len(drawable), size)]
    number = sum(not _is_drawn(batch) for batch in batches)
    with closing(take_turns(batches, _lock_path, _is_drawn)) as turns:
        for batch in track(turns, f"drawing {len(drawable)} images", total=number, disable=not number):
            images = generator.sample([request for request, _ in batch])
            for (request, path), image in zip(batch, images, strict=True):
                if not path.exists():
                    # What a generator has to say of an image, such as its singular spectra.
                    said = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
                    sampling = getattr(generator, "sampling", {})
                    save_png(image, path, chunks(request, image.size, noted[path], sampling, command, said))
    return paths


def draw_timed(
    generator: Generator, requests: Sequence[Request], folder: str | Path
) -> tuple[list[Path], float | None]:
    """As ``draw_missing``; also the seconds, to the saved file, of each image that ``folder`` did not hold yet.

    Returns:
        The paths, and the wall time divided by the number of new images; None if there were none.
    """
    missing = {path for path in request_paths(generator, requests, folder) if not path.exists()}
    begin = time.perf_counter()
    paths = draw_missing(generator, requests, folder)
    return paths, (time.perf_counter() - begin) / len(missing) if missing else None


def manifest_lines(requests: Sequence[Request], paths: Sequence[Path]) -> str:
    """JSON lines, one per request in order: file name, sha256 of the file, prompt, seed, and a style's key."""
    keys = _style_keys(requests)
    lines = [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        | {"prompt": request.prompt, "seed": request.seed}
        | _layout_key(request)
        | ({"reference": keys[request.style]} if request.style is not None else {})
        for request, path in zip(requests, paths, strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _is_drawn(batch: Sequence[tuple[Request, Path]]) -> bool:
    return all(path.exists() for _, path in batch)


def _lock_path(batch: Sequence[tuple[Request, Path]]) -> Path:
    names = " ".join(path.name for _, path in batch)
    return batch[0][1].parent / ".locks" / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.lock"


def write_grid(paths: Sequence[Path], requests: Sequence[Request], columns: int, target: str | Path) -> None:
    """All images of a call as one picture."""
    images = [load_image(path, min_side=1) for path in paths]
    Grid(images, columns, [f"{request.prompt} | seed {request.seed}" for request in requests]).save(target)


def measured_plan(generator: Generator, requests: Sequence[Request], folder: str | Path) -> Table:
    """Count images; draw two batches of what is missing, the first of which warms up; extrapolate from the second.

    Args:
        generator: Draws them.
        requests: All that a run would ask for.
        folder: Where they would be. What is drawn now is kept if it holds images already, as the run will find them
            there, and else thrown away, as the run will have a folder of its own.

    Returns:
        Images asked for, there already and to draw; bytes, time left and peak memory.
    """
    wanted = dict(zip(request_paths(generator, requests, folder), requests, strict=True))
    missing = [request for path, request in wanted.items() if not path.exists()]
    size, kept = generator.batch_size, any(Path(folder).glob("*.png"))
    seconds, sizes = 0.0, list[int]()
    with TemporaryDirectory() as scratch:
        for start in (0, size):
            batch = missing[start : start + size]
            begin = time.perf_counter()
            drawn = draw_missing(generator, batch, folder if kept else scratch)
            seconds = (time.perf_counter() - begin) / len(batch) if batch else seconds
            sizes += [path.stat().st_size for path in drawn]
    image_bytes = sum(sizes) / max(len(sizes), 1)
    left = max(len(missing) - 2 * size, 0) if kept else len(missing)
    rows = [
        ["images asked for", str(len(wanted))],
        ["there already", str(len(wanted) - len(missing))],
        ["drawn now, to measure", str(len(sizes))],
        ["left to draw", str(left)],
        ["time for them", f"{left * seconds / 60:.1f} min ({seconds:.2f} s an image)"],
        ["disk for them", f"{left * image_bytes / 1e6:.1f} MB"],
        ["peak memory", f"{peak_memory() / 2**30:.1f} GiB"],
    ]
    return Table("Dry run", ["", ""], rows)
