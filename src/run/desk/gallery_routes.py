"""Addresses of the gallery: what a page asks of it, and what it is answered."""

import asyncio
from typing import TYPE_CHECKING, Any

from src.data.page import STYLESHEET
from src.run.desk.answers import Handler, told_object
from src.run.desk.gallery import Gallery

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def gallery_handlers(gallery: Gallery) -> dict[str, dict[str, Handler]]:
    """By method and address, what answers; a ``ValueError`` of any of them is a sentence for the page."""
    from starlette.responses import JSONResponse, Response

    async def runs(request: "Request") -> "Response":
        found = await asyncio.to_thread(gallery.runs)
        return JSONResponse({"runs": found, "votes": str(gallery.votes)})

    async def series(request: "Request") -> "Response":
        return JSONResponse(await asyncio.to_thread(gallery.cells, request.path_params["series"]))

    async def compared(request: "Request") -> "Response":
        return JSONResponse(await asyncio.to_thread(gallery.compared, *_texts(request.query_params, "first", "second")))

    async def trial(request: "Request") -> "Response":
        asked = _texts(request.query_params, "first", "second", "rater", "question")
        return JSONResponse(await asyncio.to_thread(gallery.trial, *asked))

    async def vote(request: "Request") -> "Response":
        told = await told_object(request)
        first, second, rater, question, choice = _texts(told, "first", "second", "rater", "question", "choice")
        sides = told.get("sides")
        if not isinstance(sides, list) or not all(isinstance(side, str) for side in sides):
            raise ValueError("a vote names the pictures that stood on both sides; reload the page")
        await asyncio.to_thread(gallery.vote, first, second, rater, question, sides, choice)
        return JSONResponse({})

    async def wins(request: "Request") -> "Response":
        return JSONResponse({"preferences": await asyncio.to_thread(gallery.preferences)})

    async def picture(request: "Request") -> "Response":
        small = "small" in request.query_params
        content = await asyncio.to_thread(gallery.png, request.path_params["picture"], small)
        # Another content has another address.
        kept = {"cache-control": "private, max-age=31536000, immutable"}
        return Response(content, media_type="image/png", headers=kept)

    async def look(request: "Request") -> "Response":
        return Response(STYLESHEET, media_type="text/css")

    gets: dict[str, Handler] = {
        "/page.css": look,
        "/api/gallery/runs": runs,
        "/api/gallery/series/{series}": series,
        "/api/gallery/compared": compared,
        "/api/gallery/trial": trial,
        "/api/gallery/votes": wins,
        "/api/gallery/pictures/{picture}": picture,
    }
    return {"GET": gets, "POST": {"/api/gallery/votes": vote}}


MOST_LETTERS = 200


def _texts(told: Any, *names: str) -> list[str]:
    """Values of a query or an object, as texts that are not too long.

    Raises:
        ValueError: If one is no text, or too long.
    """
    values = [told.get(name, "") for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or len(value) > MOST_LETTERS or not value.isprintable():
            raise ValueError(f"{name} is a text of at most {MOST_LETTERS} letters on one line; type it shorter")
    return values
