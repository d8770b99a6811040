"""Sender on libcurl's WebSocket interface: does what one JSON plan on stdin says, then exits.

A program of its own, since libcurl blocks. Each message is sent and its echo awaited, then ``last``, then the Close;
without one the listener is to close.

Environment: RELAY_URL, RELAY_TOKEN (empty: anonymous), RELAY_CA_FILE (empty: plain ws).
Plan: messages, protocols, last and close, as ``node/sender.js`` explains them.
Reports: open {status, protocol, extensions}, message {kind, bytes, sha256}, refused {status, reason},
close {code, reason}, lost for a connection that ended without a Close.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

import pycurl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from interop.payloads import describe, payload

RECEIVE_BYTES = 1 << 18


def report(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Sender:
    """One WebSocket on a libcurl handle whose socket is never blocking."""

    def __init__(self, protocols: list[str] | None) -> None:
        self.head: list[str] = []
        self.curl = curl = pycurl.Curl()
        curl.setopt(pycurl.URL, os.environ["RELAY_URL"])
        curl.setopt(pycurl.CONNECT_ONLY, 2)  # handshake only; frames are sent and received by hand
        curl.setopt(pycurl.HEADERFUNCTION, lambda line: self.head.append(line.decode("latin-1").rstrip("\r\n")))
        headers = []
        if token := os.environ.get("RELAY_TOKEN"):
            headers.append(f"ServiceBusAuthorization: {token}")
        if protocols:
            headers.append(f"Sec-WebSocket-Protocol: {', '.join(protocols)}")
        curl.setopt(pycurl.HTTPHEADER, headers)
        if ca_file := os.environ.get("RELAY_CA_FILE"):
            curl.setopt(pycurl.CAINFO, ca_file)

    def open(self) -> bool:
        """Do the handshake; False if the relay refused, which is reported."""
        try:
            self.curl.perform()
        except pycurl.error:
            if not self.head:
                raise
            _, status, reason = self.head[0].split(" ", 2)
            report("refused", status=int(status), reason=reason)
            return False
        report(
            "open",
            status=self.curl.getinfo(pycurl.RESPONSE_CODE),
            protocol=self._header("sec-websocket-protocol"),
            extensions=self._header("sec-websocket-extensions"),
        )
        return True

    def send(self, content: bytes, flags: int) -> None:
        """Send one message as one frame.

        libcurl takes what the socket takes; WS_OFFSET says that more of the frame follows.
        """
        view = memoryview(content)
        sent = 0
        while sent < len(view):
            try:
                sent += self.curl.ws_send(view[sent:], flags | pycurl.WS_OFFSET, len(view) if sent == 0 else 0)
            except BlockingIOError:
                self._wait_writable()

    def receive(self) -> str | bytes | tuple[int, str] | None:
        """Take the next message, or ``(code, reason)`` of a Close; None when the connection is gone.

        Pings are libcurl's business.
        """
        parts: list[bytes] = []
        is_text = False
        while True:
            try:
                data, meta = self.curl.ws_recv(RECEIVE_BYTES)
            except BlockingIOError:
                select.select([self._fd()], [], [])
                continue
            except pycurl.error:
                return None
            if meta.flags & pycurl.WS_CLOSE:
                return (int.from_bytes(data[:2], "big") if data else 1005, data[2:].decode())
            if meta.flags & (pycurl.WS_PING | pycurl.WS_PONG):
                continue
            is_text = is_text or bool(meta.flags & pycurl.WS_TEXT)
            parts.append(data)
            if meta.bytesleft == 0 and not meta.flags & pycurl.WS_CONT:
                content = b"".join(parts)
                return content.decode() if is_text else content

    def wait_hang_up(self) -> None:
        """Wait until the relay ends the connection, as RFC 6455 7.1.1 asks of a client."""
        while self.receive() is not None:
            pass

    def _header(self, name: str) -> str | None:
        values = [line.partition(":")[2].strip() for line in self.head if line.lower().startswith(name + ":")]
        return values[0] if values else None

    def _fd(self) -> int:
        return self.curl.getinfo(pycurl.ACTIVESOCKET)

    def _wait_writable(self) -> None:
        select.select([], [self._fd()], [])


def run(plan: dict) -> None:
    sender = Sender(plan["protocols"])
    if not sender.open():
        return
    for message in plan["messages"]:
        content = payload(message["kind"], message["bytes"])
        flags = pycurl.WS_TEXT if isinstance(content, str) else pycurl.WS_BINARY
        sender.send(content.encode() if isinstance(content, str) else content, flags)
        echo = sender.receive()
        if not isinstance(echo, str | bytes):
            break
        report("message", **describe(echo))
    else:
        if plan["last"]:
            sender.send(plan["last"].encode(), pycurl.WS_TEXT)
        if plan["close"]:
            sender.curl.ws_close(plan["close"]["code"], plan["close"]["reason"])
        echo = sender.receive()
    if isinstance(echo, tuple):
        report("close", code=echo[0], reason=echo[1])
        if not plan["close"]:
            sender.curl.ws_close(*echo)
        sender.wait_hang_up()
    else:
        report("lost")


if __name__ == "__main__":
    run(json.load(sys.stdin))
