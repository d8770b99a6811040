"""HTTP/1.1 heads and bodies: bytes in, events out.

Who does what. A head is gathered here until its empty line, then llhttp takes it apart, then it is judged here once
more. The gates around llhttp exist because it is made to talk to the whole world, and a relay has another parser behind
it: what two parsers may read differently is how requests are smuggled. What llhttp alone would let through, and is
refused here:

- ``Host`` missing, twice, empty or not a host name; an absolute-form target that names another host
- HTTP/0.9 and HTTP/2.0 on the request line, several blanks in it, empty lines before it, ``#`` in the target
- ``Transfer-Encoding`` with anything beside ``chunked``, or in HTTP/1.0
- control characters in a reason phrase, status codes below 100
- heads of any length and with any number of lines

It also knows a fixed list of methods and skips the body of a request that names any ``Upgrade``. So it is always shown
a GET and never a body: a body's length is counted here, and chunk framing is read here too, because llhttp's binding
does not tell where in the bytes a body ended. h11 and llhttp are the oracles in the tests.

The earliest error wins: each limit and each illegal byte has a place in the stream, so the same bytes give the same
events and the same status however the network cuts them.

Source: RFC 9110, RFC 9112; wire contract 4 and 10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic, NoReturn, TypeAlias, TypeVar, cast, overload

import httptools

from ..errors import LocalProtocolError, RemoteProtocolError
from ..vocab import BytesLike
from . import limits
from .status import one_line

__all__ = [
    "LAST_CHUNK",
    "Body",
    "EndOfRequest",
    "EndOfResponse",
    "Headers",
    "RequestEvent",
    "RequestHead",
    "RequestReader",
    "ResponseEvent",
    "ResponseHead",
    "ResponseReader",
    "build_request",
    "build_response",
    "encode_chunk",
    "is_token",
    "is_value",
    "split_list",
]

_TOKEN_CLASS: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = re.compile(_TOKEN_CLASS + "+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"[\x21\x22\x24-\x7e]+")  # everything visible but "#"
_HOST_PATTERN: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+)(?::[0-9]{1,5})?"
_HOST = re.compile(_HOST_PATTERN)
_AUTHORITY_FORM = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~\-]+):[0-9]{1,5}")
_ABSOLUTE_FORM = re.compile(rf"(?:https?|wss?)://({_HOST_PATTERN})(?:[/?].*)?", re.IGNORECASE)

_REQUEST_LINE = re.compile(rf"({_TOKEN_CLASS}+) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: (.*))?")

# One character class in front lets the search skip quickly over what is harmless. A match ends where the fault became
# certain: a control character; LF without CR; CR without LF; a folded line.
_ILLEGAL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f](?:(?<![\r\n])|(?<=\n)(?<!\r\n)|(?<=\r)(?:[^\n]|\n[ \t]))")

_FOLD = re.compile(rb"\n[ \t]")
_HARMLESS: Final = bytes(byte for byte in range(256) if byte == 0x09 or (byte > 0x1F and byte != 0x7F))

_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_LINE = re.compile(
    rf'([0-9A-Fa-f]{{1,15}})(?:;{_TOKEN_CLASS}+(?:=(?:{_TOKEN_CLASS}+|"[^"\\\r\n]*"))?)*'.encode("ascii")
)
_PLAIN_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_TRAILER_LINE = re.compile(rf"{_TOKEN_CLASS}+:[\t\x20-\x7e\x80-\xff]*".encode("latin-1"))
# A trailer field may not say how the message is framed or routed (RFC 9110 6.5.1): readers who join trailers to the
# head would believe it, and llhttp refuses it.
_FRAMING_TRAILER = re.compile(rb"(?:content-length|transfer-encoding|host):", re.IGNORECASE)

_MAX_CHUNKS_JOINED: Final = 512
"""Chunks in one piece: they take about a millisecond."""

_END_OF_HEAD: Final = b"\r\n\r\n"

LAST_CHUNK: Final = b"0\r\n\r\n"
"""The end of a body in chunks, without trailer fields (RFC 9112 7.1)."""


def is_token(text: str) -> bool:
    """Return whether ``text`` is a token, as header names and subprotocols must be (RFC 9110 5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """Return whether ``text`` can be a header value: Latin-1 without controls but the tab."""
    return _VALUE.fullmatch(text) is not None


def split_list(value: str) -> list[str]:
    """Return the members of a comma-separated header value, without blanks around them and without empty ones."""
    return [member for member in (piece.strip(" \t") for piece in value.split(",")) if member]


class Headers:
    """Header fields in their order and their own spelling; looked up without regard to case.

    Values are Latin-1 text: each character is one byte of the wire. Immutable. The ``repr`` shows names only, because
    values may be credentials.

    Args:
      fields: ``(name, value)`` pairs, taken as they are.
    """

    __slots__ = ("_fields", "_index")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = tuple(fields)
        self._index: dict[str, list[str]] = {}
        for name, value in self._fields:
            folded = name.lower()
            if folded in self._index:
                self._index[folded].append(value)
            else:
                self._index[folded] = [value]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a field."""
        values = self._index.get(name.lower())
        return values[0] if values else default

    def get_all(self, name: str) -> list[str]:
        """Return the values of a field, one for each line it came in."""
        return list(self._index.get(name.lower(), ()))

    def joined(self, name: str) -> str | None:
        """Return the values of a field as one: ``, `` between them, ``; `` for cookies (wire contract 10)."""
        values = self._index.get(name.lower())
        if values is None:
            return None
        return ("; " if name.lower() == "cookie" else ", ").join(values)

    def members(self, name: str) -> list[str]:
        """Return the members of a list-valued field, over all its lines."""
        return [member for value in self._index.get(name.lower(), ()) for member in split_list(value)]

    def without(self, *names: str) -> Headers:
        """Return the same fields but those of these names."""
        dropped = {name.lower() for name in names}
        return Headers(pair for pair in self._fields if pair[0].lower() not in dropped)

    @property
    def wire_size(self) -> int:
        """Bytes that the fields take on the wire, separators and line ends included."""
        return sum(len(name) + len(value) + 4 for name, value in self._fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._index

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields)

    def __repr__(self) -> str:
        return f"<Headers: {', '.join(name for name, _ in self._fields)}>"


def _has_member(headers: Headers, name: str, member: str) -> bool:
    for line in headers.get_all(name):
        folded = line.lower()
        # Most lines are the word and no more, or do not hold it at all, and need not be taken apart.
        if folded == member or (member in folded and member in split_list(folded)):
            return True
    return False


class _Framing:
    """What the fields of a head say about the body behind it, and about the connection."""

    http_version: str
    headers: Headers

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow. HTTP/1.0 ends with the connection, whatever it asks for."""
        return self.http_version == "1.1" and not _has_member(self.headers, "Connection", "close")

    @property
    def content_length(self) -> int | None:
        """Length of the body in bytes, if it was announced. Only for heads whose framing has been judged."""
        value = self.headers.get("Content-Length")
        return None if value is None else int(value)

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "Transfer-Encoding" in self.headers


@dataclass(frozen=True)
class RequestHead(_Framing):
    """Request line and header fields.

    Attributes:
      method: as sent.
      target: as sent; it may hold a token and is left out of the ``repr``.
      http_version: ``"1.1"`` or ``"1.0"``.
      headers: all fields.
    """

    method: str
    target: str = field(repr=False)
    http_version: str
    headers: Headers

    @cached_property
    def is_upgrade(self) -> bool:
        """Whether a WebSocket is asked for. The handshake itself may still be wrong."""
        return (
            self.method == "GET"
            and self.http_version == "1.1"
            and _has_member(self.headers, "Connection", "upgrade")
            and _has_member(self.headers, "Upgrade", "websocket")
        )

    @property
    def host(self) -> str | None:
        """``host[:port]`` that was asked for: of an absolute-form target, else the ``Host`` field."""
        absolute = None if self.target.startswith("/") else _ABSOLUTE_FORM.fullmatch(self.target)
        return self.headers.get("Host") if absolute is None else absolute[1]

    @property
    def expects_continue(self) -> bool:
        """Whether the client may wait for a 100 before it sends its body (RFC 9110 10.1.1)."""
        return self.http_version == "1.1" and _has_member(self.headers, "Expect", "100-continue")

    @property
    def has_body(self) -> bool:
        """Whether at least one body byte may follow."""
        return self.is_chunked or bool(self.content_length)


@dataclass(frozen=True)
class ResponseHead(_Framing):
    """Status line and header fields. ``reason`` is verbatim, Latin-1, maybe empty."""

    status: int
    reason: str
    http_version: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Body:
    """A piece of a body, never empty; pieces follow the network, not the sender's chunks."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfRequest:
    """The request is complete; the next bytes begin another one."""


@dataclass(frozen=True, slots=True)
class EndOfResponse:
    """The answer is complete."""


RequestEvent: TypeAlias = RequestHead | Body | EndOfRequest
ResponseEvent: TypeAlias = ResponseHead | Body | EndOfResponse

_Event = TypeVar("_Event")
_End = TypeVar("_End")


def _refuse(message: str, http_status: int = 400, section: str = "RFC 9112") -> NoReturn:
    raise RemoteProtocolError(message, section=section, http_status=http_status)


def _is_clean(part: bytes, line_ends: int) -> bool:
    """Return whether ``part``, with so many CR LF, has neither illegal characters nor line ends that fold or lack half.

    What is left when everything harmless is taken out tells it in less than half the time of `_ILLEGAL`.
    """
    return part.translate(None, _HARMLESS) == b"\r\n" * line_ends and _FOLD.search(part) is None


def _find_illegal(buffer: bytearray, start: int, stop: int) -> re.Match[bytes] | None:
    """Search for an illegal character or line end in part of ``buffer``."""
    part = bytes(buffer[start:stop])
    return None if _is_clean(part, part.count(b"\r\n")) else _ILLEGAL.search(buffer, start, stop)


class _HeaderCollector:
    """What llhttp calls back into."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[tuple[str, str]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp keeps blanks behind a value.
        self.fields.append((name.decode("ascii"), value.strip(b" \t").decode("latin-1")))


_ParserClass: TypeAlias = type[httptools.HttpRequestParser] | type[httptools.HttpResponseParser]


def _parse_fields(parser_class: _ParserClass, start_line: bytes, lines: bytes) -> Headers:
    """Let llhttp take header lines apart; ``lines`` ends with the empty line."""
    collector = _HeaderCollector()
    try:
        parser_class(collector).feed_data(start_line + lines)
    except httptools.HttpParserUpgrade:
        pass  # said of any Upgrade field; what it means is for the caller
    except httptools.HttpParserError as error:
        raise RemoteProtocolError(f"Malformed header: {error}", section="RFC 9112 5", http_status=400) from None
    return Headers(collector.fields)


class _HeadReader:
    """Gathers bytes up to the end of a head, and refuses as soon as it can never become a good one."""

    def __init__(self, max_head_bytes: int, max_headers: int, max_line_bytes: int, line_status: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._max_line_bytes = max_line_bytes
        self._line_status = line_status
        self._forget()

    def _forget(self) -> None:
        self._looked_at = 0
        self._line_ends = 0
        self._counted_to = 0

    def extract(self, buffer: bytearray) -> bytes | None:
        """Take a whole head off the front of ``buffer``; None: not there yet. Looks at each byte once."""
        if self._looked_at == 0 and (head := self._extract_good(buffer)) is not None:
            return head
        # Three bytes are looked at again: the longest fault or end mark that can lie across two calls.
        resume_at = max(0, self._looked_at - 3)
        end = buffer.find(_END_OF_HEAD, resume_at, self._max_head_bytes)
        is_complete = end >= 0
        stop = end + len(_END_OF_HEAD) if is_complete else min(len(buffer), self._max_head_bytes)
        faults = self._find_faults(buffer, resume_at, stop, is_complete=is_complete)
        if faults:
            _, status, message = min(faults)
            _refuse(message, status)
        if not is_complete:
            self._looked_at = stop
            return None
        head = bytes(buffer[:stop])
        del buffer[:stop]
        self._forget()
        return head

    def _extract_good(self, buffer: bytearray) -> bytes | None:
        """Take a head that came in one read and has no fault; None: look closer."""
        end = buffer.find(_END_OF_HEAD, 0, self._max_head_bytes)
        if end < 0:
            return None
        head = bytes(buffer[: end + len(_END_OF_HEAD)])
        line_ends = head.count(b"\r\n")
        is_good = (
            line_ends - 2 <= self._max_headers
            and _is_clean(head, line_ends)
            and head.find(b"\r\n", 0, self._max_line_bytes + 2) >= 0
        )
        if not is_good:
            return None
        del buffer[: len(head)]
        return head

    def _find_faults(
        self, buffer: bytearray, resume_at: int, stop: int, *, is_complete: bool
    ) -> list[tuple[int, int, str]]:
        """Return ``(bytes it took to know, status, message)`` of everything that is wrong up to ``stop``."""
        faults: list[tuple[int, int, str]] = []
        illegal = _find_illegal(buffer, resume_at, stop)
        if illegal is not None:
            faults.append((illegal.end(), 400, "Illegal character or line end in the head"))
        line_room = self._max_line_bytes + 2
        if stop >= line_room and self._looked_at < line_room and buffer.find(b"\r\n", 0, line_room) < 0:
            faults.append((line_room, self._line_status, f"First line longer than {self._max_line_bytes} bytes"))
        self._line_ends += buffer.count(b"\r\n", self._counted_to, stop)
        # A CR at the very end may be half a line end: it is counted when its LF is there.
        self._counted_to = stop - 1 if buffer.endswith(b"\r", 0, stop) else stop
        # The first line and the empty one are no fields; the empty one is there only when the head is complete.
        if self._line_ends - 1 - is_complete > self._max_headers:
            place = 0
            for _ in range(self._max_headers + 2):
                place = buffer.find(b"\r\n", place) + 2
            faults.append((place, 431, f"More than {self._max_headers} header fields"))
        if not is_complete and stop == self._max_head_bytes:
            faults.append((stop, 431, f"Head longer than {self._max_head_bytes} bytes"))
        return faults


class _Reader(Generic[_Event]):
    """What reading requests and reading answers have in common: heads and bodies, and an error that stays."""

    def __init__(self, heads: _HeadReader) -> None:
        self._heads = heads
        self._buffer = bytearray()
        self._body: _SizedBody | _ChunkedBody | _EndlessBody | None = None
        self._error: RemoteProtocolError | None = None

    @property
    def trailing(self) -> bytes:
        """Bytes that have come and belong to no event yet; behind an upgrade, the peer's first frames."""
        return bytes(self._buffer)

    def receive_data(self, data: BytesLike) -> None:
        """Take bytes from the network. Nothing is judged before ``next_event``."""
        self._buffer += data

    def next_event(self) -> _Event | None:
        """Return the next event, or None when more bytes are needed.

        Raises:
          RemoteProtocolError: a rule is broken or a limit passed; ``http_status`` is 400, 414, 431, 501 or 505. Every
            later call raises it again.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_event()
        except RemoteProtocolError as error:
            self._error = error
            raise

    def _next_event(self) -> _Event | None:
        raise NotImplementedError

    def _next_of_body(self, body: _SizedBody | _ChunkedBody | _EndlessBody, end: _End) -> Body | _End | None:
        piece = body.next_piece(self._buffer)
        if piece:
            return Body(piece)
        if not body.is_complete:
            return None
        self._body = None
        return end


class RequestReader(_Reader[RequestEvent]):
    """Reads requests off one connection, one after the other.

    Give it bytes with ``receive_data``, then call ``next_event`` until it returns ``None``. A request is a
    ``RequestHead``, any number of ``Body`` and an ``EndOfRequest``. Behind a WebSocket upgrade nothing more is read:
    ``trailing`` holds what had already come. Bytes of later requests wait inside, so stop reading the network while a
    request is being answered.

    Args:
      max_head_bytes: longest head, request line and empty line included; more is 431.
      max_headers: most header fields; more is 431.
      max_line_bytes: longest request line without its line end; more is 414.
      max_fields_bytes: all header fields with their line ends; more is 431.
      takes_connect: for a proxy: CONNECT is a request too. Its target is ``HOST:PORT`` and its head stands alone;
        behind it nothing more is read, as behind an upgrade. Otherwise it is 501.
    """

    def __init__(
        self,
        *,
        max_head_bytes: int = limits.MAX_HEAD_BYTES,
        max_headers: int = limits.MAX_HEADERS,
        max_line_bytes: int = limits.MAX_START_LINE_BYTES,
        max_fields_bytes: int = limits.MAX_REQUEST_HEADERS_BYTES,
        takes_connect: bool = False,
    ) -> None:
        super().__init__(_HeadReader(max_head_bytes, max_headers, max_line_bytes, 414))
        self._max_fields_bytes = max_fields_bytes
        self._takes_connect = takes_connect
        self._is_upgraded = False

    @property
    def has_begun(self) -> bool:
        """Whether bytes of a request that is not finished have come."""
        return self._body is not None or bool(self._buffer)

    def _next_event(self) -> RequestEvent | None:
        if self._is_upgraded:
            return None
        if self._body is not None:
            return self._next_of_body(self._body, EndOfRequest())
        raw = self._heads.extract(self._buffer)
        if raw is None:
            return None
        head = _parse_request_head(raw, self._max_fields_bytes, takes_connect=self._takes_connect)
        if (head.is_upgrade and not head.has_body) or head.method == "CONNECT":
            self._is_upgraded = True
        elif head.is_chunked:
            self._body = _ChunkedBody()
        else:
            self._body = _SizedBody(head.content_length or 0)
        return head


def _parse_request_head(raw: bytes, max_fields_bytes: int, *, takes_connect: bool) -> RequestHead:
    line, _, lines = raw.partition(b"\r\n")
    if len(lines) - len(b"\r\n") > max_fields_bytes:
        _refuse(f"Header fields longer than {max_fields_bytes} bytes in all", 431, "wire contract 15")
    match = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        _refuse("Malformed request line", section="RFC 9112 3")
    method, target, version = match.groups()
    if version not in ("1.1", "1.0"):
        _refuse(f"HTTP/{version} is not spoken here", 505, "RFC 9110 15.6.6")
    if method == "CONNECT" and not takes_connect:
        _refuse("CONNECT is not available", 501, "wire contract 9.1")
    headers = _parse_fields(httptools.HttpRequestParser, b"GET / HTTP/1.1\r\n", lines)
    head = RequestHead(method, target, version, headers)
    _check_target(head)
    _check_host(head)
    _check_framing(head)
    return head


def _check_target(head: RequestHead) -> None:
    if "#" in head.target:  # the request line let nothing else through that is illegal
        _refuse("Illegal character in the request target", section="RFC 9112 3.2")
    if head.method == "CONNECT":
        if _AUTHORITY_FORM.fullmatch(head.target) is None:
            _refuse("The target of CONNECT is HOST:PORT", section="RFC 9112 3.2.3")
        if "Content-Length" in head.headers or "Transfer-Encoding" in head.headers:
            _refuse("CONNECT has no content", section="RFC 9110 9.3.6")
        return
    if head.target.startswith("/") or (head.target == "*" and head.method == "OPTIONS"):
        return
    if _ABSOLUTE_FORM.fullmatch(head.target) is None:
        _refuse("The request target is neither a path nor a URL", section="RFC 9112 3.2")


def _check_host(head: RequestHead) -> None:
    values = head.headers.get_all("Host")
    if len(values) > 1 or (not values and head.http_version == "1.1"):
        _refuse("There must be exactly one Host", section="RFC 9112 3.2")
    if not values:
        return
    if _HOST.fullmatch(values[0]) is None:
        _refuse("Host is not a host name", section="RFC 9112 3.2")
    # A client must repeat the target's host in Host. If it does not, some readers believe the one and some the other.
    if not head.target.startswith("/") and (head.host or "").lower() != values[0].lower():
        _refuse("Host is not the host of the request target", section="RFC 9112 3.2.2")


def _check_framing(head: RequestHead | ResponseHead) -> None:
    lengths = head.headers.get_all("Content-Length")
    codings = head.headers.get_all("Transfer-Encoding")
    # llhttp refuses some of these by itself; which, has changed from release to release.
    if len(lengths) > 1 or any(_CONTENT_LENGTH.fullmatch(length) is None for length in lengths):
        _refuse("Content-Length must be one number", section="RFC 9112 6.3")
    if not codings:
        return
    if lengths:
        _refuse("Content-Length beside Transfer-Encoding", section="RFC 9112 6.1")
    if head.http_version != "1.1":
        _refuse("Transfer-Encoding needs HTTP/1.1", section="RFC 9112 6.1")
    if [coding.lower() for coding in codings] != ["chunked"]:
        _refuse("The only transfer coding understood is chunked", 501, "RFC 9112 6.1")


# A body takes its bytes off the front of the buffer. An empty piece means that it is complete, or needs more bytes.


class _SizedBody:
    """A body whose length was announced; also none at all."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def is_complete(self) -> bool:
        return self._left == 0

    def next_piece(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer) if len(buffer) <= self._left else bytes(buffer[: self._left])
        del buffer[: len(piece)]
        self._left -= len(piece)
        return piece


class _EndlessBody:
    """A body of an answer that ends with the connection (RFC 9112 6.3, rule 8)."""

    is_complete = False

    def next_piece(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer)
        buffer.clear()
        return piece


class _ChunkedBody:
    """A body in chunks (RFC 9112 7.1). Extensions and trailer fields must be well-formed, and are dropped."""

    def __init__(self) -> None:
        self.is_complete = False
        self._chunk: _SizedBody | None = None
        self._is_after_chunk = False
        self._trailer_left: int | None = None
        self._error: RemoteProtocolError | None = None

    def next_piece(self, buffer: bytearray) -> bytes:
        """Join what is in hand: a sender that writes single bytes must not cost an event for each.

        But not all of it: what is in hand may be ten thousand of them, and others want their turn.
        """
        if self._error is not None:
            raise self._error
        pieces: list[bytes] = []
        try:
            while not self.is_complete and len(pieces) < _MAX_CHUNKS_JOINED and self._advance(buffer, pieces):
                pass
        except RemoteProtocolError as error:
            if not pieces:
                raise
            self._error = error  # behind the bytes that were good
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _advance(self, buffer: bytearray, pieces: list[bytes]) -> bool:
        """Take one element of the framing, or a piece of a chunk; False: more bytes are needed."""
        if self._chunk is not None:
            piece = self._chunk.next_piece(buffer)
            if self._chunk.is_complete:
                self._chunk, self._is_after_chunk = None, True
            if not piece:
                return False
            pieces.append(piece)
        elif self._is_after_chunk:
            if not b"\r\n".startswith(buffer[:2]):
                _refuse("No line end behind a chunk", section="RFC 9112 7.1")
            if len(buffer) < 2:
                return False
            del buffer[:2]
            self._is_after_chunk = False
        elif self._trailer_left is not None:
            line = self._take_line(buffer, self._trailer_left)
            if line is None:
                return False
            if line and (_TRAILER_LINE.fullmatch(line) is None or _FRAMING_TRAILER.match(line) is not None):
                _refuse("Malformed trailer field", section="RFC 9112 7.1.2")
            self._trailer_left -= len(line) + 2
            self.is_complete = not line
        elif (plain := _PLAIN_CHUNK_LINE.match(buffer)) is not None:
            line = plain[1]
            del buffer[: len(line) + 2]
            self._begin_chunk(int(line, 16))
        else:
            line = self._take_line(buffer, limits.MAX_CHUNK_LINE_BYTES)
            if line is None:
                return False
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                _refuse("Malformed chunk size", section="RFC 9112 7.1")
            self._begin_chunk(int(match[1], 16))
        return True

    def _begin_chunk(self, size: int) -> None:
        if size:
            self._chunk = _SizedBody(size)
        else:
            self._trailer_left = limits.MAX_TRAILER_BYTES

    def _take_line(self, buffer: bytearray, room: int) -> bytes | None:
        end = buffer.find(b"\r\n", 0, room)
        illegal = _find_illegal(buffer, 0, min(room, len(buffer)) if end < 0 else end)
        if illegal is not None or (end < 0 and len(buffer) >= room):
            _refuse("Overlong line or illegal character in chunk framing", section="RFC 9112 7.1")
        if end < 0:
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line


class ResponseReader(_Reader[_Event]):
    """Reads the answer to one request. Interim answers (1xx but 101) are passed over.

    Without ``request_method`` this is for upgrade requests: ``next_event`` returns the head once and ``None`` ever
    after. What stands behind the head is in ``trailing``: frames after a 101, a body that nobody needs after anything
    else. It is then a ``ResponseReader[ResponseHead]``.

    With it, a ``ResponseReader[ResponseEvent]``, the whole answer is read: a ``ResponseHead``, any number of ``Body``
    and an ``EndOfResponse``, then ``None`` ever after. A 101 has no end: the connection is not HTTP any more, and
    ``trailing`` holds what came behind it. Framing is judged as strictly as in requests.

    Args:
      max_head_bytes: longest head.
      max_headers: most header fields.
      request_method: what was asked with, other than CONNECT; an answer to HEAD has no body.

    Source: RFC 9112 6.3.
    """

    # A server that only ever announces is not answering.
    _MAX_INTERIM: Final = 8

    @overload
    def __init__(self: ResponseReader[ResponseHead], *, max_head_bytes: int = ..., max_headers: int = ...) -> None: ...

    @overload
    def __init__(
        self: ResponseReader[ResponseEvent],
        *,
        max_head_bytes: int = ...,
        max_headers: int = ...,
        request_method: str,
    ) -> None: ...

    def __init__(
        self,
        *,
        max_head_bytes: int = limits.MAX_HEAD_BYTES,
        max_headers: int = limits.MAX_HEADERS,
        request_method: str | None = None,
    ) -> None:
        super().__init__(_HeadReader(max_head_bytes, max_headers, limits.MAX_START_LINE_BYTES, 400))
        self._request_method = request_method
        self._interim = 0
        self._is_done = False
        self._is_delimited = False
        self._has_ended = False

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may carry another request; False until `EndOfResponse` has been returned.

        Not behind HTTP/1.0, ``Connection: close``, a body that ended with the connection, or bytes that nobody asked
        for. What the request itself said about it is for the caller to remember.
        """
        return self._is_done and self._is_delimited and not self._has_ended and not self._buffer

    def receive_eof(self) -> None:
        """Say that the server will send nothing more. ``next_event`` tells whether this was the end of the answer."""
        self._has_ended = True

    def _next_event(self) -> _Event | None:
        return cast("_Event | None", self._next_of_answer())

    def _next_of_answer(self) -> ResponseEvent | None:
        if self._is_done:
            return None
        event = self._next_head() if self._body is None else self._next_of_body(self._body, EndOfResponse())
        if event is None and self._has_ended:
            if not isinstance(self._body, _EndlessBody):
                _refuse("The connection ended within the answer", section="RFC 9112 8")
            event = EndOfResponse()
        if isinstance(event, EndOfResponse):
            self._is_done = True
        return event

    def _next_head(self) -> ResponseHead | None:
        while (raw := self._heads.extract(self._buffer)) is not None:
            head = _parse_response_head(raw)
            if head.status == 101 or head.status >= 200:
                self._begin_body(head)
                return head
            self._interim += 1
            if self._interim > self._MAX_INTERIM:
                _refuse("Too many interim answers", section="RFC 9110 15.2")
        return None

    def _begin_body(self, head: ResponseHead) -> None:
        if self._request_method is None or head.status == 101:
            self._is_done = True
            return
        _check_framing(head)
        self._is_delimited = head.keep_alive
        if self._request_method == "HEAD" or head.status == 304:
            self._body = _SizedBody(0)
        elif head.status == 204:
            self._body = _SizedBody(0)
            # It must not have any; a server that frames one all the same may send it, too.
            self._is_delimited &= not head.is_chunked and not head.content_length
        elif head.is_chunked:
            self._body = _ChunkedBody()
        elif head.content_length is not None:
            self._body = _SizedBody(head.content_length)
        else:
            self._body = _EndlessBody()
            self._is_delimited = False


def _parse_response_head(raw: bytes) -> ResponseHead:
    line, _, lines = raw.partition(b"\r\n")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        _refuse("Malformed status line", section="RFC 9112 4")
    headers = _parse_fields(httptools.HttpResponseParser, b"HTTP/1.1 200 OK\r\n", lines)
    reason = (match[3] or b"").decode("latin-1")
    return ResponseHead(int(match[2]), reason, match[1].decode("ascii"), headers)


def _build_fields(headers: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in headers:
        if not is_token(name) or not is_value(value):
            # The value may be a credential and stays out of the message.
            raise LocalProtocolError(f"header {name!r} cannot be sent", section="RFC 9110 5")
        yield f"{name}: {value}\r\n"


def build_response(status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """Return a whole response as one object: two sends would cost the client a delayed acknowledgement.

    Args:
      status: 100 to 999.
      reason: made into one Latin-1 line.
      headers: sent as given; ``Content-Length`` is the caller's business.
      body: behind the head.

    Raises:
      LocalProtocolError: a status or header that cannot stand on the wire.
    """
    if not 100 <= status <= 999:
        raise LocalProtocolError(f"status {status} cannot be sent", section="RFC 9112 4")
    head = f"HTTP/1.1 {status} {one_line(reason)}\r\n{''.join(_build_fields(headers))}\r\n"
    return head.encode("latin-1") + body


def encode_chunk(data: BytesLike) -> bytes:
    """Return one chunk of a body (RFC 9112 7.1). `LAST_CHUNK` ends the body.

    Raises:
      LocalProtocolError: no data; an empty chunk would end the body.
    """
    if not data:
        raise LocalProtocolError("an empty chunk would end the body", section="RFC 9112 7.1")
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n"))


def build_request(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a request head.

    Args:
      method: a token.
      target: percent-encoded; no blanks, controls or ``#``.
      headers: sent as given, ``Host`` included.

    Raises:
      LocalProtocolError: something that cannot stand on the wire.
    """
    if not is_token(method) or _TARGET.fullmatch(target) is None:
        raise LocalProtocolError("the method or target of a request cannot be sent", section="RFC 9112 3")
    return f"{method} {target} HTTP/1.1\r\n{''.join(_build_fields(headers))}\r\n".encode("latin-1")
