"""An ordinary Starlette application. Nothing in it knows of a relay.

On its own machine, or behind a relay at https://RELAY/web/::

    uvicorn starlette_app:app
    relaycore asgi starlette_app:app --path web

It has what applications have: a small REST resource, an upload and a download, a long answer, events as they happen,
and a WebSocket.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

PAGE = """<!doctype html>
<title>Notes</title>
<ul id="said"></ul>
<form><input name="text" autofocus></form>
<script>
  const socket = new WebSocket(new URL("chat/hall", location.href.replace(/^http/, "ws")))
  socket.onmessage = (event) => document.getElementById("said").append(
    Object.assign(document.createElement("li"), { textContent: event.data }))
  document.forms[0].onsubmit = (event) => {
    event.preventDefault(); socket.send(event.target.text.value); event.target.reset() }
</script>
"""


@dataclass
class Shop:
    """What requests have in common while the application lives."""

    notes: dict[int, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    rooms: dict[str, set[WebSocket]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class State(TypedDict):
    shop: Shop


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    """Opens what requests need, and gives it back at the end."""
    shop = Shop()
    yield {"shop": shop}
    shop.log.append("closed")


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


# REST ----------------------------------------------------------------------------------------------------------------


async def list_notes(request: Request) -> Response:
    shop: Shop = request.state.shop
    word = request.query_params.get("word", "")
    return JSONResponse({str(number): text for number, text in shop.notes.items() if word in text})


async def add_note(request: Request) -> Response:
    shop: Shop = request.state.shop
    number = max(shop.notes, default=0) + 1
    shop.notes[number] = (await request.json())["text"]
    return JSONResponse(
        {"id": number},
        status_code=201,
        headers={"Location": str(request.url_for("note", number=number))},
        background=BackgroundTask(shop.log.append, f"note {number}"),
    )


async def note(request: Request) -> Response:
    shop: Shop = request.state.shop
    number: int = request.path_params["number"]
    if number not in shop.notes:
        raise HTTPException(404, "no such note")
    if request.method == "DELETE":
        del shop.notes[number]
        return Response(status_code=204)
    return PlainTextResponse(shop.notes[number])


# Files ---------------------------------------------------------------------------------------------------------------


async def upload(request: Request) -> Response:
    """A form with files, as browsers send it."""
    shop: Shop = request.state.shop
    found = {}
    async with request.form() as form:
        for name, value in form.multi_items():
            if not isinstance(value, str):
                shop.files[value.filename or name] = data = await value.read()
                found[value.filename or name] = len(data)
    return JSONResponse(found)


async def download(request: Request) -> Response:
    shop: Shop = request.state.shop
    name: str = request.path_params["name"]
    if name not in shop.files:
        raise HTTPException(404, "no such file")
    return Response(
        shop.files[name],
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def digest(request: Request) -> Response:
    """A body of any length, in constant memory."""
    found = hashlib.sha256()
    async for chunk in request.stream():
        found.update(chunk)
    return PlainTextResponse(found.hexdigest())


# Long answers --------------------------------------------------------------------------------------------------------


async def count(request: Request) -> Response:
    """So many lines, made while they are sent."""

    async def lines() -> AsyncIterator[bytes]:
        for number in range(request.path_params["number"]):
            yield b"%d\n" % number

    return StreamingResponse(lines(), media_type="text/plain")


async def ticks(request: Request) -> Response:
    """Server-sent events, until the browser leaves."""
    shop: Shop = request.state.shop
    seconds = float(request.query_params.get("every", "1"))

    async def events() -> AsyncIterator[bytes]:
        try:
            number = 0
            while True:
                yield b"id: %d\ndata: tick %d\n\n" % (number, number)
                number += 1
                await anyio.sleep(seconds)
        finally:
            shop.log.append("nobody listens to ticks any more")

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def blocking(request: Request) -> Response:
    """Not async: runs in a thread."""
    shop: Shop = request.state.shop
    return JSONResponse(shop.log)


# WebSocket -----------------------------------------------------------------------------------------------------------


async def chat(websocket: WebSocket) -> None:
    """Passes on what each one says to everybody in the room."""
    shop: Shop = websocket.state.shop
    room = shop.rooms.setdefault(websocket.path_params["room"], set())
    if websocket.path_params["room"] == "cellar":
        raise HTTPException(401, "members only")
    offered = websocket.scope["subprotocols"]
    await websocket.accept("chat" if "chat" in offered else None)
    room.add(websocket)
    try:
        while (text := await websocket.receive_text()) != "/leave":
            for other in list(room):
                try:
                    await other.send_text(text)
                except WebSocketDisconnect:
                    room.discard(other)
        await websocket.close(4000, "bye")
    except WebSocketDisconnect:
        pass
    finally:
        room.discard(websocket)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Mount(
            "/notes",
            routes=[
                Route("/", list_notes, methods=["GET"]),
                Route("/", add_note, methods=["POST"]),
                Route("/{number:int}", note, methods=["GET", "DELETE"], name="note"),
            ],
        ),
        Route("/upload", upload, methods=["POST"]),
        Route("/files/{name}", download),
        Route("/digest", digest, methods=["PUT"]),
        Route("/count/{number:int}", count),
        Route("/ticks", ticks),
        Route("/log", blocking),
        WebSocketRoute("/chat/{room}", chat),
    ],
)
