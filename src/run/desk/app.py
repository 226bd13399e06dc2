"""The desk as an ASGI application: addresses of the page, and what each asks of queue, concepts and trainings."""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from src.run.desk.answers import answering, told_object
from src.run.desk.cells import Cell, axis
from src.run.desk.concepts import Concepts
from src.run.desk.gallery import Gallery
from src.run.desk.gallery_routes import gallery_handlers
from src.run.desk.pages import Pages
from src.run.desk.places import Places
from src.run.desk.queue import Job, Queue
from src.run.desk.recall import recalled_settings
from src.run.desk.security import Guard
from src.run.desk.training import FOLDER, Training, keep_photo
from src.run.desk.worker import Message, Worker
from src.run.words import shortened

HERE = Path(__file__).parent / "page"
PATIENCE = 15.0
"""Seconds that a page waits for news before it asks again."""
MOST_CELLS = 256


@dataclass(frozen=True)
class Start:
    """What the desk was started with.

    Attributes:
        root: Folder of all runs.
        base: Arguments of generate.py, without those of the desk, and without banks.
        banks: Name to path of those that were given.
        backbone: Name of the backbone's configuration.
        folders: Further folders that files may come from.
        cache_dir: Where embeddings are kept.
        prompt: What the prompt is at first.
        token: See ``Guard``.
    """

    root: Path
    base: Sequence[str]
    banks: dict[str, str]
    backbone: str
    folders: Sequence[str] = ()
    cache_dir: str = ".cache"
    prompt: str | None = None
    token: str | None = None


class Desk:
    """All that is behind the page.

    Args:
        start: What it was started with.
        worker: Draws; started again when it dies.
    """

    def __init__(self, start: Start, worker: type[Worker] = Worker) -> None:
        self.start, self.folder, self._worker = start, start.root / "desk", worker
        given = [str(Path(path).parent) for path in start.banks.values()]
        self.places = Places([start.root, "world", self.folder, *start.folders, *given])
        self.pages = Pages(self.folder / "pages")
        self.concepts = Concepts(start.root, self.places, start.banks)
        self.training = Training(start.root, start.base, start.backbone, self.pages.tell_all)
        self.queue: Queue | None = None
        self.started = secrets.token_hex(8)

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """While active, a worker draws."""
        loop = asyncio.get_running_loop()

        def start() -> Worker:
            worker: Worker | None = None

            def received(message: Message) -> None:
                with suppress(RuntimeError):  # The desk has ended, and nobody listens any more.
                    loop.call_soon_threadsafe(self._received, worker, message)

            arguments = (str(self.folder / "pictures"), list(self.start.base), self.start.cache_dir)
            worker = self._worker(arguments, received)
            return worker

        self.queue = Queue(start, self._tell, self.pages.tell_all)
        try:
            yield
        finally:
            self.queue.stop()
            await self.training.close()

    def _received(self, worker: Worker | None, message: Message) -> None:
        if worker and self.queue:
            self.queue.received(worker, message)

    def _tell(self, job: Job, told: dict[str, Any]) -> None:
        if "image" in told:
            told = {**told, "image": base64.b64encode(told["image"]).decode()}
        self.pages.tell(job.page, {**told, "cell": job.cell, "version": job.version})

    async def facts(self, request: Request) -> Response:
        """What a page needs to know at first."""
        queue = self._queue
        return JSONResponse(
            {
                "facts": queue.facts,
                "trouble": queue.trouble,
                "backbone": self.start.backbone,
                "prompt": self.start.prompt,
                "given": list(self.start.banks),
                "training": self.training.state,
            }
        )

    @property
    def _queue(self) -> Queue:
        assert self.queue, "the application has not started"
        return self.queue

    def _page(self, told: dict[str, Any]) -> str:
        """The page that asks, which is known from then on."""
        name = str(told.get("page"))
        self.pages[name]
        return name

    async def state(self, request: Request) -> Response:
        """What a page kept, or keeps now."""
        name = request.query_params.get("page", "")
        if request.method == "GET":
            return JSONResponse(await asyncio.to_thread(self.pages.kept, name))
        await asyncio.to_thread(self.pages.keep, name, await told_object(request))
        return JSONResponse({})

    async def events(self, request: Request) -> Response:
        """What happened since a number."""
        page = self.pages[request.query_params.get("page", "")]
        after, wait = request.query_params.get("after", "0"), request.query_params.get("wait", "1")
        found = await page.after(int(after) if after.isdecimal() else 0, PATIENCE if wait == "1" else 0)
        return JSONResponse({"events": found, "started": self.started})

    async def draw(self, request: Request) -> Response:
        """Draw some cells of a page: what each is refused for is told at once."""
        told = await told_object(request)
        page, cells = self._page(told), told.get("cells")
        if not isinstance(cells, list) or len(cells) > MOST_CELLS:
            raise ValueError(f"give cells, at most {MOST_CELLS} of them")
        refused, commands = {}, {}
        for one in cells:
            name, version, kind = str(one.get("cell"))[:80], int(one.get("version", 0)), one.get("kind", "draw")
            try:
                cell = Cell.read(one, self.places)
                commands[name] = cell.command(self.start.base)
                if kind not in ("draw", "attention"):
                    raise ValueError("a cell is drawn, or its attention is looked at")
                self._queue.add(Job(page, name, kind, [cell.words(self.start.base)], version))
            except ValueError as error:
                refused[name] = shortened(error)
        return JSONResponse({"refused": refused, "commands": commands})

    async def numbers(self, request: Request) -> Response:
        """Score a picture, when nothing is to be drawn."""
        told = await told_object(request)
        page, picture = self._page(told), str(told.get("picture"))
        if not self._picture(picture).is_file():
            raise ValueError("there is no such picture any more")
        known = {one.path: one for one in await asyncio.to_thread(self.concepts.found)}
        banks = {str(name): known[path] for name, path in dict(told.get("banks") or {}).items() if path in known}
        photos = {name: one.photos for name, one in banks.items() if one.photos}
        job = [picture, str(told.get("text", ""))[:4000], photos]
        self._queue.add(Job(page, str(told.get("cell"))[:80], "numbers", job, int(told.get("version", 0))))
        return JSONResponse({})

    async def cancel(self, request: Request) -> Response:
        """Draw no more of a page."""
        told = await told_object(request)
        cells = told.get("cells")
        if not isinstance(cells, list | None):
            raise ValueError("give the names of cells, or leave them out for all")
        self._queue.cancel(self._page(told), cells)
        return JSONResponse({})

    async def axis(self, request: Request) -> Response:
        """Split the values of an axis."""
        told = await told_object(request)
        key, values = told.get("key"), told.get("values")
        if not isinstance(key, str) or not isinstance(values, str):
            raise ValueError("an axis has a key and values; write KEY and 1,2,5")
        words = await asyncio.to_thread(axis, key, values, self.places)
        return JSONResponse({"words": words})

    async def banks(self, request: Request) -> Response:
        """The concepts that there are."""
        found = await asyncio.to_thread(self.concepts.found)
        return JSONResponse({"concepts": [one.told(self._queue.facts or {}) for one in found]})

    async def picture(self, request: Request) -> Response:
        """A picture that was drawn."""
        path = self._picture(request.path_params["name"])
        if not path.is_file():
            return PlainTextResponse("there is no such picture any more", 404)
        return FileResponse(path, headers={"cache-control": "private, max-age=31536000, immutable"})

    def _picture(self, name: str) -> Path:
        folder = self.folder / "pictures"
        path = folder / name
        if not name.endswith(".png") or path.parent != folder or not Places([folder]).holds(path):
            raise ValueError("this is no name of a picture")
        return path

    async def shown(self, request: Request) -> Response:
        """A photo of a concept, small, or a grid of samples of the training."""
        name = request.path_params["name"]
        if path := self.training.pictures.get(name):
            return FileResponse(path) if self.places.holds(path) else PlainTextResponse("not here", 404)
        if name not in self.concepts.pictures:
            await asyncio.to_thread(self.concepts.found)
        if not (path := self.concepts.pictures.get(name)) or not self.places.holds(path):
            return PlainTextResponse("there is no such photo any more", 404)
        return Response(await asyncio.to_thread(_thumbnail, path), media_type="image/webp")

    async def photos(self, request: Request) -> Response:
        """Keep one dropped photo for a training."""
        batch = request.query_params.get("batch", "")
        path = await asyncio.to_thread(keep_photo, self.folder / "photos", batch, await request.body())
        return JSONResponse({"number": len(list(path.parent.glob("*.png")))})

    async def style(self, request: Request) -> Response:
        """Keep a dropped picture as a style."""
        data = await request.body()
        name = hashlib.sha256(data).hexdigest()[:16]
        path = await asyncio.to_thread(keep_photo, self.folder / "styles", name, data)
        return JSONResponse({"path": str(path)})

    async def train(self, request: Request) -> Response:
        """Start a training, or stop it."""
        told = await told_object(request)
        if told.get("stop"):
            self.training.stop()
            return JSONResponse({})
        batch = str(told.get("batch"))
        if not FOLDER.fullmatch(batch) or not (self.folder / "photos" / batch).is_dir():
            raise ValueError("drop photos first: 3 to 10 of the same subject")
        photos, steps = str(self.folder / "photos" / batch), told.get("steps")
        name, noun = str(told.get("name")).strip(), str(told.get("noun")).strip()
        words = self.training.words(photos, noun, name, int(steps) if steps else None)
        await self.training.start(words, name)
        return JSONResponse({})

    async def recall(self, request: Request) -> Response:
        """Read from a dropped picture how it was drawn."""
        known = {one.path for one in await asyncio.to_thread(self.concepts.found)}
        found = await asyncio.to_thread(recalled_settings, await request.body(), self.places, known)
        return JSONResponse(found)


def _thumbnail(path: str) -> bytes:
    from src.data.images import load_image

    image, buffer = load_image(path), BytesIO()
    image.thumbnail((96, 96))
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def application(start: Start, worker: type[Worker] = Worker) -> tuple[Guard, Desk]:
    """Make the application, and return what is behind it as well; arguments as of ``Desk``."""
    desk = Desk(start, worker)
    gallery = gallery_handlers(Gallery(start.root, desk.places, desk.folder / "votes.csv"))
    gets = {
        **gallery["GET"],
        "/api/desk": desk.facts,
        "/api/events": desk.events,
        "/api/concepts": desk.banks,
        "/api/pictures/{name}": desk.picture,
        "/api/shown/{name}": desk.shown,
    }
    posts = {
        **gallery["POST"],
        "/api/draw": desk.draw,
        "/api/numbers": desk.numbers,
        "/api/cancel": desk.cancel,
        "/api/axis": desk.axis,
        "/api/photos": desk.photos,
        "/api/style": desk.style,
        "/api/train": desk.train,
        "/api/recall": desk.recall,
    }
    routes: list[Route | Mount] = [Route(path, answering(one)) for path, one in gets.items()]
    routes += [Route(path, answering(one), methods=["POST"]) for path, one in posts.items()]
    routes.append(Route("/api/state", answering(desk.state), methods=["GET", "POST"]))
    routes.append(Mount("/", StaticFiles(directory=HERE, html=True)))
    return Guard(Starlette(routes=routes, lifespan=desk.running), start.token), desk
