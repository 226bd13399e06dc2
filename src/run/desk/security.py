"""Who may talk to the desk: its own pages, in a browser on this machine or in one that has its token."""

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "desk_token"
MOST_BYTES = 2**20
MOST_UPLOADED = 32 * 2**20
UPLOADS = ("/api/photos", "/api/recall", "/api/style")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Refuses requests of other origins and other names of this machine, those without the token, and long ones.

    Args:
        app: What answers the others.
        token: What a browser must bring, once in the address and then in a cookie; None where only this machine can
            reach the desk.
    """

    def __init__(self, app: App, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self.refusal(scope, headers):
            await _answer(send, 403, refusal)
            return
        most = MOST_UPLOADED if scope["path"] in UPLOADS else MOST_BYTES
        if not headers.get("content-length", "0").isdecimal() or int(headers.get("content-length", 0)) > most:
            await _answer(send, 413, f"this is more than {most // 2**20} MB; send less at a time")
            return
        await self.app(scope, _limited(receive, most), self._with_headers(scope, send))

    def refusal(self, scope: Message, headers: dict[str, str]) -> str | None:
        """Say why a request is refused; None where it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.token is None and re.sub(r":\d+$", "", host) not in LOCAL:
            return "this desk answers to the names 127.0.0.1 and localhost alone; open the address that it printed"
        if origin is not None and re.sub(r"^https?://", "", origin) != host:
            return "this request comes from another page; open the desk itself"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "this request comes from another page; open the desk itself"
        if self.token is not None and not self._has_token(scope, headers):
            return "this desk asks for its token; open the address that it printed, with ?token= in it"
        return None

    def _has_token(self, scope: Message, headers: dict[str, str]) -> bool:
        cookies = SimpleCookie()
        cookies.load(headers.get("cookie", ""))
        brought = [morsel.value for name, morsel in cookies.items() if name == COOKIE]
        brought += parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        return any(hmac.compare_digest(one.encode(), str(self.token).encode()) for one in brought)

    def _with_headers(self, scope: Message, send: Send) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                if self.token is not None and b"token=" in scope.get("query_string", b""):
                    cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    given.append((b"set-cookie", cookie.encode()))
                message["headers"] = [*message.get("headers", []), *given]
            await send(message)

        return answer


def _limited(receive: Receive, most: int) -> Receive:
    """Count what is sent: a length that is not told, or told wrong, ends as a hang-up."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > most else message

    return counted


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
