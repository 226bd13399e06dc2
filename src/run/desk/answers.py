"""What is read from a page's request, and how it is told what was refused."""

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from src.run.words import shortened

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Request"], Awaitable["Response"]]


async def told_object(request: "Request") -> dict[str, Any]:
    """Read the object that a page sends.

    Raises:
        ValueError: If it is none.
    """
    try:
        told = json.loads(await request.body())
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ValueError("an object in JSON was expected; reload the page")
    return told


def answering(handler: Handler) -> Handler:
    """Make what a handler refuses one sentence to the page."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def answered(request: "Request") -> "Response":
        try:
            return await handler(request)
        except (ValueError, TypeError) as error:
            return JSONResponse({"error": shortened(error)}, 400)
        except ClientDisconnect:
            return JSONResponse({"error": "this is too much at once; send less"}, 413)

    return answered
