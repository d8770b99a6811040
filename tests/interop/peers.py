"""Peers of the relay that are not ours, as programs run beside the test, and where they find the relay.

A program is told what to do by its environment and one JSON plan on stdin, and reports one JSON object a line on stdout
(the drivers in ``node/`` and ``curl_sender.py`` say which). Tests wait for those reports, never for a time.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import quote, urlsplit

import trio

from relaycore.wire import sas

HERE = Path(__file__).resolve().parent
INSTALLED = HERE.parent.parent / "build" / "interop"  # filled by install.sh


class PeerFailed(AssertionError):
    """A program ended or went silent before it reported what the test waits for."""


@dataclass
class Reports:
    """What a peer has reported so far, in order. Waiting for a report consumes nothing."""

    name: str
    reports: list[dict[str, Any]] = field(default_factory=list)
    has_ended: bool = False
    _news: trio.Event = field(default_factory=trio.Event)

    def add(self, *reports: dict[str, Any], is_last: bool = False) -> None:
        """Add reports and wake those who wait; not a checkpoint."""
        self.reports.extend(reports)
        self.has_ended = self.has_ended or is_last
        news, self._news = self._news, trio.Event()
        news.set()

    def all(self, event: str) -> list[dict[str, Any]]:
        """Reports of one event so far, without the event name."""
        return [
            {key: value for key, value in report.items() if key != "event"}
            for report in self.reports
            if report["event"] == event
        ]

    async def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until an event was reported ``count`` times and return the last of those reports.

        Raises: PeerFailed if the peer ends first.
        """
        while len(self.all(event)) < count:
            if self.has_ended:
                raise PeerFailed(f"{self.name} ended without report {event!r} number {count}")
            await self._news.wait()
        return self.all(event)[count - 1]

    async def wait_end(self) -> None:
        """Wait until the peer will report nothing more."""
        while not self.has_ended:
            await self._news.wait()


@dataclass
class Peer(Reports):
    """A driver that runs beside the test."""

    process: trio.Process = field(kw_only=True)
    stderr: bytearray = field(default_factory=bytearray)

    async def send_plan(self, plan: Mapping[str, object]) -> None:
        """Hand over the plan and end the program's stdin."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(plan).encode())
        await self.end_input()

    async def end_input(self) -> None:
        """End the program's stdin; a listener takes that as the order to close."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def _read_reports(self) -> None:
        assert self.process.stdout is not None
        pending = b""
        async for chunk in self.process.stdout:
            *lines, pending = (pending + chunk).split(b"\n")
            self.add(*(json.loads(line) for line in lines))
        self.add(is_last=True)

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            self.stderr += chunk

    def _account(self) -> str:
        reports = "\n".join(f"  {report}" for report in self.reports[-20:])
        errors = self.stderr[-4000:].decode(errors="replace")
        return (
            f"{self.name} (status {self.process.returncode}) reported last:\n{reports}\n and wrote to stderr:\n{errors}"
        )


@asynccontextmanager
async def run_peer(name: str, command: list[str], environment: Mapping[str, str]) -> AsyncIterator[Peer]:
    """Run a driver while the block lasts; it is ended with the block.

    If the block raises, what the driver reported and wrote to stderr is added to the exception.
    """
    process = await trio.lowlevel.open_process(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={**os.environ, **environment}
    )
    peer = Peer(name, process=process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer._read_reports)
            nursery.start_soon(peer._read_stderr)
            yield peer
            nursery.cancel_scope.cancel("the test needs the peer no more")
    except BaseException as error:
        error.add_note(peer._account())
        raise
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # bounded: a killed child of ours ends at once
            await process.wait()


@dataclass(frozen=True)
class Target:
    """Where a peer finds the relay, with the key it signs its tokens with."""

    base_url: str
    key_name: str
    key: str = field(repr=False)
    ca_file: str | None = None

    def with_key(self, key: str) -> Target:
        return replace(self, key=key)

    def listen_url(self, path: str) -> str:
        return f"{self.base_url}/$hc/{path}?sb-hc-action=listen"

    def connect_url(self, path: str, query: str = "", *, token: str = "header") -> str:
        """Connect URL.

        Args:
          query: the user's part; ends in ``&`` unless it is empty.
          token: where the token goes, ``header`` or ``query``.
        """
        url = f"{self.base_url}/$hc/{path}?{query}sb-hc-action=connect"
        return url if token != "query" else f"{url}&sb-hc-token={quote(self.make_token(path), safe='')}"

    def connect_headers(self, path: str, *, token: str = "header") -> dict[str, str]:
        return {"ServiceBusAuthorization": self.make_token(path)} if token == "header" else {}

    def make_token(self, path: str) -> str:
        """A token that lasts five minutes, for the path and all under it."""
        host = urlsplit(self.base_url).hostname
        return sas.make_token(f"http://{host}/{path}/", self.key_name, self.key, int(time.time()) + 300)

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca_file) if self.ca_file is not None else None

    def environment(self) -> dict[str, str]:
        """What a driver in ``node/`` needs beside its URL."""
        environment = {"NODE_PATH": str(INSTALLED / "node" / "node_modules")}
        environment |= {"RELAY_KEY_NAME": self.key_name, "RELAY_KEY": self.key}
        if self.ca_file is not None:
            environment["NODE_EXTRA_CA_CERTS"] = self.ca_file
        return environment


LIBRARY_CLOSE = {"code": 1000, "reason": "CloseAsync"}
"""What our own library says when it closes, whatever one may want: as .NET, it has no call that takes a code (8.7)."""


@dataclass(frozen=True)
class ListenerKind:
    """One implementation of an echo listener. Calling it gives a listener that is registered when the block begins.

    Its orders are text messages, which it does not echo: ``close CODE REASON``, and ``abort``, which ends the TCP
    connection without a Close.
    Reports: connection {path}, open {protocol}, close {code, reason}, lost.
    """

    name: str
    run: Callable[[Target, str], AbstractAsyncContextManager[Reports]]
    chooses_close: bool = True

    def __call__(self, target: Target, path: str) -> AbstractAsyncContextManager[Reports]:
        return self.run(target, path)

    def close_sent_for(self, wanted: dict[str, object]) -> dict[str, object]:
        return wanted if self.chooses_close else LIBRARY_CLOSE


@dataclass(frozen=True)
class SenderKind:
    """One implementation of a sender. Calling it gives a sender at work on a plan; ``node/sender.js`` explains plans.

    ``query`` is the user's part of the query and ends in ``&`` unless it is empty.
    Reports: open {protocol}, message {kind, bytes, sha256}, refused {status, reason}, close {code, reason}, lost.
    """

    name: str
    run: Callable[[Target, str, str, Mapping[str, Any]], AbstractAsyncContextManager[Reports]]
    chooses_close: bool = True

    def __call__(
        self, target: Target, path: str, plan: Mapping[str, Any], *, query: str = ""
    ) -> AbstractAsyncContextManager[Reports]:
        return self.run(target, path, query, DEFAULT_PLAN | plan)

    def close_sent_for(self, wanted: dict[str, object]) -> dict[str, object]:
        return wanted if self.chooses_close else LIBRARY_CLOSE


DEFAULT_PLAN: dict[str, Any] = {"messages": [], "protocols": None, "token": "header", "last": None, "close": None}


def node_command(driver: str) -> list[str]:
    # ws 1.1 uses a Buffer constructor that Node now warns of on every start.
    return [shutil.which("node") or "node", "--no-deprecation", str(HERE / "node" / driver)]


@asynccontextmanager
async def hyco_ws_listener(target: Target, path: str) -> AsyncIterator[Peer]:
    """An echo listener on hyco-ws that is registered when the block begins."""
    environment = {**target.environment(), "RELAY_URL": target.listen_url(path)}
    async with run_peer("hyco-ws listener", node_command("listener.js"), environment) as peer:
        await peer.wait("listening")
        yield peer


@asynccontextmanager
async def hyco_ws_sender(target: Target, path: str, query: str, plan: Mapping[str, Any]) -> AsyncIterator[Peer]:
    """A hyco-ws sender at work on a plan (see ``node/sender.js``)."""
    environment = {**target.environment(), "RELAY_URL": target.connect_url(path, query)}
    async with run_peer("hyco-ws sender", node_command("sender.js"), environment) as peer:
        await peer.send_plan(plan)
        yield peer


@asynccontextmanager
async def libcurl_sender(target: Target, path: str, query: str, plan: Mapping[str, Any]) -> AsyncIterator[Peer]:
    """A libcurl sender at work on a plan (see ``curl_sender.py``)."""
    environment = {
        "PYTHONPATH": str(INSTALLED / "curl"),
        "RELAY_URL": target.connect_url(path, query, token=plan["token"]),
        "RELAY_TOKEN": target.make_token(path) if plan["token"] == "header" else "",
        "RELAY_CA_FILE": target.ca_file or "",
    }
    async with run_peer("libcurl sender", [sys.executable, str(HERE / "curl_sender.py")], environment) as peer:
        await peer.send_plan(plan)
        yield peer
