"""Requests that two parsers could read differently: none of them is forwarded (failures: request smuggling).

One corpus, read three times. Our reader and two independent ones, h11 and llhttp, take the same bytes apart: what we
accept, both of them read as the same requests, ending at the same byte. Then a relay gets each case on a connection of
its own: what reaches the listener is what was accepted, and a refusal ends the connection.

llhttp knows a fixed list of methods. Other tokens are shown to it as ``GET``; the method itself is then h11's to judge.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import h11
import httptools
import pytest
import trio
from peers import LAST_CHUNK, HttpAnswer, WirePeer

from relaycore.config import LimitsConfig
from relaycore.errors import RemoteProtocolError
from relaycore.wire import limits
from relaycore.wire.http1 import Body, EndOfRequest, RequestHead, RequestReader

HOST = b"Host: relay.test\r\n"
HIDDEN = b"GET /open/hidden HTTP/1.1\r\n" + HOST + b"\r\n"
"""Stands behind every refused case, where a smuggled request would stand."""


@dataclass(frozen=True)
class Case:
    """Bytes from a sender.

    Attributes:
      taken: how many requests are accepted.
      status: of the refusal that ends the connection; None when nothing is refused.
    """

    name: str
    data: bytes
    taken: int
    status: int | None


CASES: list[Case] = []


def take(name: str, *requests: bytes) -> None:
    """These are good requests, one after the other."""
    CASES.append(Case(name, b"".join(requests), len(requests), None))


def refuse(name: str, data: bytes, status: int = 400, *, behind: int = 0) -> None:
    """This is refused, behind so many good requests."""
    CASES.append(Case(name, data, behind, status))


def get(*lines: bytes, line: bytes = b"GET /open/x HTTP/1.1", host: bytes = HOST) -> bytes:
    """A request without a body, with further header lines."""
    return line + b"\r\n" + host + b"".join(each + b"\r\n" for each in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """A request with header lines that tell of a body, and one."""
    return get(*lines, line=b"POST /open/x HTTP/1.1") + body


def chunked(framed: bytes, coding: bytes = b"Transfer-Encoding: chunked") -> bytes:
    return post(coding, body=framed)


# Content-Length -----------------------------------------------------------------------------------------------------

for value in (b"5", b" 5", b"  5 ", b"\t5\t", b"005", b"000000000000000005"):
    take(f"Content-Length:{value!r}", post(b"Content-Length:" + value, body=b"hello"))
for value in (
    b"", b" ", b"5x", b"x5", b"+5", b"-5", b"--5", b"0x5", b"05h", b"5 5", b"5,5", b"5, 5", b"5;5", b"5.0", b"5.",
    b".5", b"5e0", b"1_0", b"'5'", b'"5"', b"5\x0b", b"\x0b5", b"\x0c5", b"5\x00", b"\x005", b"\xb2", b"\xa05",
    b"5\xa0", b"\xd9\xa5", b"\xef\xbc\x95", b"0000000000000000005", b"18446744073709551621", b"9223372036854775808",
    b"99999999999999999999999999", b"infinity", b"5\r", b"5\n",
):  # fmt: skip
    refuse(f"Content-Length: {value!r}", post(b"Content-Length: " + value, body=b"hello"))
for first, second in ((b"5", b"5"), (b"5", b"6"), (b"6", b"5"), (b"0", b"5"), (b"5", b""), (b"5", b"x")):
    refuse(
        f"Content-Length {first!r} and {second!r}",
        post(b"Content-Length: " + first, b"content-length: " + second, body=b"hello"),
    )
for line in (
    b"Content-Length : 5", b"Content-Length\t: 5", b" Content-Length: 5", b"\tContent-Length: 5",
    b"Content-Length\x00: 5", b"\x00Content-Length: 5", b"Content-Length\x0b: 5", b"Content-Length\xa0: 5",
    b"Content Length: 5", b"Content-Length:\r\n 5", b"X: y\rContent-Length: 5", b"X: y\nContent-Length: 5",
    b"X: y\r\rContent-Length: 5", b"X: y\r\n Content-Length: 5", b"Content-Length=5", b"Content-Length",
    b"\xefContent-Length: 5", b"Content-Length: 5\r\nX: y\n", b'"Content-Length": 5', b"Content-Length\r\n: 5",
    b"(Content-Length): 5",
):  # fmt: skip
    refuse(f"line {line!r}", post(line, body=b"hello"))
for line in (
    b"Content_Length: 5",
    b"X-Content-Length: 5",
    b"Content-Lengths: 5",
    b"Content-Length-: 5",
    b"'Content-Length': 5",
):
    take(f"no length: {line!r}", post(line), get())
    refuse(f"no length, so the body is a request: {line!r}", post(line, body=b"hello\r\n"), behind=1)

# Both lengths -------------------------------------------------------------------------------------------------------

for coding in (b"chunked", b"identity", b"x", b"", b"chunked, identity"):
    for length in (b"0", b"5", b"10"):
        for lines in (
            (b"Content-Length: " + length, b"Transfer-Encoding: " + coding),
            (b"transfer-encoding: " + coding, b"content-length: " + length),
        ):
            refuse(f"both: {lines!r}", post(*lines, body=b"0\r\n\r\n" + HIDDEN))
refuse("both, over a line", post(b"Content-Length: 5", b"X: y", b"TRANSFER-ENCODING: chunked", body=LAST_CHUNK))
refuse("two lengths and a coding", post(b"Content-Length: 5", b"Content-Length: 5", b"Transfer-Encoding: chunked"))

# Transfer-Encoding --------------------------------------------------------------------------------------------------

HELLO = b"5\r\nhello\r\n" + LAST_CHUNK
for line in (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding: Chunked",
    b"transfer-encoding: CHUNKED", b"Transfer-Encoding:   chunked  ", b"Transfer-Encoding:\tchunked",
):  # fmt: skip
    take(f"coding {line!r}", chunked(HELLO, line))
for value in (
    b"xchunked", b"chunkedx", b"chunked;q=1", b"chunked;", b"chunked, identity", b"identity, chunked", b"identity",
    b"chunked,", b",chunked", b", chunked", b"chunked, chunked", b"gzip", b"gzip, chunked", b"chunked, gzip",
    b"'chunked'", b'"chunked"', b"ch unked", b"chunked chunked", b"\xa0chunked", b"chunked\xa0", b"\xffchunked",
    b"c\xe4hunked", b"", b"null", b"true", b"1", b"compress", b"deflate", b"chunked=1", b"(chunked)",
    b"trailers, chunked",
):  # fmt: skip
    refuse(f"coding {value!r}", chunked(HELLO, b"Transfer-Encoding: " + value), 501)
for value in (
    b"\x0bchunked",
    b"chunked\x0b",
    b"chunked\x0c",
    b"\x00chunked",
    b"chunked\x00",
    b"chunked\r",
    b"chunked\n",
    b"\x1fchunked",
    b"chunked\t",
):
    refuse(f"coding {value!r}", chunked(HELLO, b"Transfer-Encoding: " + value))
for line in (
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b" Transfer-Encoding: chunked",
    b"Transfer-Encoding\x00: chunked", b"\x00Transfer-Encoding: chunked", b"Transfer-Encoding\x0b: chunked",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding:\n chunked", b"Transfer-Encoding\r\n : chunked",
    b"X: y\rTransfer-Encoding: chunked", b"X: y\nTransfer-Encoding: chunked", b"Transfer-Encoding",
    b"Transfer Encoding: chunked", b"Transfer-Encoding: chunked\r\n\tx", b"X: \r\n Transfer-Encoding: chunked",
    b"Transfer-Encoding\xa0: chunked", b"Transfer-Encoding:: chunked\r", b"Transfer-Encoding;: chunked",
):  # fmt: skip
    refuse(f"line {line!r}", chunked(HELLO, line))
refuse("a colon in the coding", chunked(HELLO, b"Transfer-Encoding:: chunked"), 501)
for first, second in (
    (b"chunked", b"chunked"),
    (b"chunked", b"identity"),
    (b"identity", b"chunked"),
    (b"gzip", b"chunked"),
    (b"", b"chunked"),
    (b"chunked", b""),
):
    refuse(
        f"codings {first!r} and {second!r}",
        post(b"Transfer-Encoding: " + first, b"transfer-encoding: " + second, body=HELLO),
        501,
    )
for line in (
    b"Transfer_Encoding: chunked",
    b"X-Transfer-Encoding: chunked",
    b"Transfer-Encodings: chunked",
    b"TE: chunked",
):
    take(f"no coding: {line!r}", post(line), get())
    refuse(f"no coding, so the body is a request: {line!r}", chunked(HELLO, line), behind=1)
refuse("a coding in HTTP/1.0", get(b"Transfer-Encoding: chunked", line=b"POST /open/x HTTP/1.0") + HELLO)
refuse(
    "a coding and keep-alive in HTTP/1.0",
    get(b"Connection: keep-alive", b"Transfer-Encoding: chunked", line=b"POST /open/x HTTP/1.0") + HELLO,
)

# Chunks -------------------------------------------------------------------------------------------------------------

for framed in (
    b"05\r\nhello\r\n00\r\n\r\n", b"000000000000005\r\nhello\r\n" + LAST_CHUNK, b"A\r\n0123456789\r\n" + LAST_CHUNK,
    b"a\r\n0123456789\r\n" + LAST_CHUNK, b"5;x\r\nhello\r\n" + LAST_CHUNK, b"5;x=1\r\nhello\r\n" + LAST_CHUNK,
    b'5;x="y z"\r\nhello\r\n0;x\r\n\r\n', b"5;x;y=1\r\nhello\r\n" + LAST_CHUNK, b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"2\r\n\r\n\r\n" + LAST_CHUNK, b"5\r\n0\r\n\r\n\r\n" + LAST_CHUNK,
    b"0\r\nX-Smuggled: yes\r\nServiceBusAuthorization: x\r\n\r\n", b"0\r\nX:\r\n\r\n",
):  # fmt: skip
    take(f"chunks {framed!r}", chunked(framed))
for framed in (
    b"0x5\r\nhello", b"+5\r\nhello", b"-5\r\nhello", b" 5\r\nhello", b"5 \r\nhello", b"5\t\r\nhello", b"\t5\r\nhello",
    b"5_0\r\nhello", b"5.\r\nhello", b"5,5\r\nhello", b"g\r\nhello", b"\r\nhello", b"5h\r\nhello", b"\xb2\r\nhello",
    b"'5'\r\nhello", b"5\x00\r\nhello", b"\x005\r\nhello", b"5\x0b\r\nhello", b"10000000000000005\r\nhello",
    b"fffffffffffffffff\r\nhello", b"8000000000000000\r\nhello", b"ffffffffffffffff\r\nhello",
    b"FFFFFFFFFFFFFFFB\r\nhello", b"0000000000000000000000005\r\nhello", b"5\nhello\n0\n\n", b"5\r\nhello\n",
    b"5\rhello\r0\r\r", b"5\r\rhello", b"5\n\rhello", b"5\r\nhelloX", b"5\r\nhelloXX\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"5\r\nhello\r\n 0\r\n\r\n", b"4\r\nhello\r\n0\r\n\r\n", b"6\r\nhello\r\n0\r\n\r\n", b"5;\r\nhello",
    b"5 ;x\r\nhello", b"5; x\r\nhello", b"5;x =1\r\nhello", b"5;x=\r\nhello", b"5;x\nhello", b"5;x\r0\r\n\r\n",
    b'5;x="\r\n"\r\nhello', b"5;x=y\x00\r\nhello", b"5;\nhello\r\n0\r\n\r\n",
    b"5;" + b"x" * limits.MAX_CHUNK_LINE_BYTES + b"\r\n", b"5\r\nhello\r\n-0\r\n\r\n", b"5\r\nhello\r\n0x0\r\n\r\n",
    b"5\r\nhello\r\n0 \r\n\r\n", b"5\r\nhello\r\n0\n\r\n", b"0\r\n\n", b"0\r\n\rX", b"0\n\n", b"0\r\nX y\r\n\r\n",
    b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nX: y\n\r\n",
    b"0\r\nX: y\nZ: 1\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\nX\xa0: y\r\n\r\n", b"0\r\n: y\r\n\r\n",
    b"0\r\nHost: evil.test\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nX: y\r\ncontent-length: 0\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\nX: y\rZ: 1\r\n\r\n",
    b"0\r\n" + b"X: y\r\n" * (limits.MAX_TRAILER_BYTES // 6 + 1) + b"\r\n",
):  # fmt: skip
    refuse(f"chunks {framed[:40]!r}", chunked(framed))

# Line ends and characters -------------------------------------------------------------------------------------------

refuse("LF everywhere", get().replace(b"\r\n", b"\n"))
refuse("CR everywhere", get().replace(b"\r\n", b"\r"))
refuse("LF CR everywhere", get().replace(b"\r\n", b"\n\r"))
refuse("LF behind the request line", get().replace(b"\r\n", b"\n", 1))
refuse("CR behind the request line", get().replace(b"\r\n", b"\r", 1))
refuse("CR CR LF behind the request line", get().replace(b"\r\n", b"\r\r\n", 1))
refuse("LF LF at the end", get()[:-2] + b"\n")
refuse("an end of LF alone", get()[:-4] + b"\n\n")
refuse("an end of LF CR LF", get()[:-4] + b"\n\r\n")
refuse("an end of CR LF CR", get()[:-1] + b"X")
refuse("a folded line", get(b"X: y", b" z"))
refuse("a line folded with a tab", get(b"X: y", b"\tz"))
refuse("a folded first line", get(host=b" X: y\r\n" + HOST))
refuse("an empty folded line", get(b"X: y", b" "))
refuse("a folded request line", get().replace(b" HTTP", b"\r\n HTTP"))
for code in (0, 1, 8, 0x0B, 0x0C, 0x0E, 0x1B, 0x1F, 0x7F):
    byte = bytes([code])
    refuse(f"{byte!r} in a value", get(b"X: a" + byte + b"b"))
    refuse(f"{byte!r} in a name", get(b"X" + byte + b": a"))
    refuse(f"{byte!r} in the target", get(line=b"GET /open/x" + byte + b" HTTP/1.1"))
    refuse(f"{byte!r} in the method", get(line=b"GET" + byte + b" /open/x HTTP/1.1"))
    refuse(f"{byte!r} before the request", byte + get())
take("high bytes and a tab in a value", get(b"X: \x80\xa0\xff\ta"))
take("every character of a name", get(b"!#$%&'*+-.^_`|~09azAZ: x"))
for line in (
    b"X",
    b": x",
    b":",
    b"X y: z",
    b"X\xe4: y",
    b"X(: y",
    b"X{}: y",
    b'"X": y',
    b"X/Y: z",
    b"X@: y",
    b"X\\: y",
    b"X=y",
    b"X;y: z",
    b"[X]: y",
    b"X,Y: z",
):
    refuse(f"line {line!r}", get(line))
take("empty and odd values", get(b"X:", b"Y: ", b"Z:\t", b"A::", b"B: :"))

# Request lines ------------------------------------------------------------------------------------------------------

for start in (b"\r\n", b"\n", b" ", b"\t", b"\r\n\r\n", b"\r"):
    refuse(f"{start!r} before the request", start + get())
for line in (
    b"GET", b"GET /open/x", b"GET /open/x ", b"GET /open/x  HTTP/1.1", b"GET  /open/x HTTP/1.1",
    b"GET /open/x HTTP/1.1 ", b"GET\t/open/x HTTP/1.1", b"GET /open/x\tHTTP/1.1", b"GET /open/x\x0bHTTP/1.1",
    b"GET /open/x y HTTP/1.1", b"GET /open/x HTTP/1.1 HTTP/1.1", b"GET /open/x http/1.1", b"GET /open/x Http/1.1",
    b"GET /open/x HTTP/1.1x", b"GET /open/x HTTP/11", b"GET /open/x HTTP/1", b"GET /open/x HTTP/1.",
    b"GET /open/x HTTP/.1", b"GET /open/x HTTP/1.10", b"GET /open/x HTTP/01.1", b"GET /open/x HTTP/1.01",
    b"GET /open/x HTTP/1,1", b"GET /open/x HTTP/ 1.1", b"GET /open/x HTTP /1.1", b"GET /open/x HTTPS/1.1",
    b"GET /open/x ICE/1.0", b"GET /open/x RTSP/1.0", b"GET /open/x HTTP/+1.1", b"GET /open/x HTTP/1.\xb2",
    b"GET /open/x HTTP1.1", b"GET HTTP/1.1", b"/open/x HTTP/1.1", b" /open/x HTTP/1.1", b"G@T /open/x HTTP/1.1",
    b"G(T /open/x HTTP/1.1", b"GET: /open/x HTTP/1.1", b"G\xcbT /open/x HTTP/1.1", b"GET/open/x HTTP/1.1",
    b"GET,POST /open/x HTTP/1.1", b'"GET" /open/x HTTP/1.1', b"GET /open/x#y HTTP/1.1", b"GET /open/x?y#z HTTP/1.1",
    b"GET # HTTP/1.1", b"GET /open/\xc3\xa4 HTTP/1.1", b"GET /open/\xff HTTP/1.1", b"GET open/x HTTP/1.1",
    b"GET ?x HTTP/1.1", b"GET * HTTP/1.1", b"GET relay.test HTTP/1.1", b"GET relay.test:80 HTTP/1.1",
    b"GET \\open\\x HTTP/1.1", b"GET http:/open/x HTTP/1.1", b"GET http:///open/x HTTP/1.1",
    b"GET ftp://relay.test/open/x HTTP/1.1", b"GET http://u@relay.test/open/x HTTP/1.1",
    b"GET http://relay.test@evil.test/open/x HTTP/1.1", b"GET http://evil.test/open/x HTTP/1.1",
    b"GET http://relay.test:80/open/x HTTP/1.1", b"GET http://relay.test:/open/x HTTP/1.1",
    b"GET http://relay.test\\open/x HTTP/1.1", b"GET http://relay.test,evil.test/open/x HTTP/1.1",
    b"GET javascript:alert(1) HTTP/1.1",
):  # fmt: skip
    refuse(f"request line {line!r}", get(line=line))
for line in (
    b"GET /open/x HTTP/0.9",
    b"GET /open/x HTTP/1.2",
    b"GET /open/x HTTP/2.0",
    b"GET /open/x HTTP/3.0",
    b"GET /open/x HTTP/9.9",
    b"GET /open/x HTTP/0.0",
):
    refuse(f"request line {line!r}", get(line=line), 505)
refuse("the HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)
refuse("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
refuse("CONNECT", get(line=b"CONNECT relay.test:443 HTTP/1.1"), 501)
refuse("CONNECT of a path", get(line=b"CONNECT /open/x HTTP/1.1"), 501)
for line in (
    b"get /open/x HTTP/1.1",
    b"Get /open/x HTTP/1.1",
    b"FROB /open/x HTTP/1.1",
    b"!#$%&'*+-.^_`|~ /open/x HTTP/1.1",
    b"M-SEARCH /open/x HTTP/1.1",
):
    take(f"request line {line!r}", get(line=line))
for target in (
    b"http://relay.test/open/x", b"HTTP://RELAY.TEST/open/x", b"https://relay.test/open/x?y", b"/open/x?",
    b"/open/x??&=&", b"/open/%00", b"/open/%0d%0aX:%20y", b'/open/"<>[]{}|^`\\', b"/open/../open/x", b"/open//x",
    b"/open/x?http://evil.test/", b"/open/%2e%2e/%2f",
):  # fmt: skip
    take(f"target {target!r}", get(line=b"GET " + target + b" HTTP/1.1"))

# Host ---------------------------------------------------------------------------------------------------------------

refuse("no Host", get(host=b""))
for host in (
    b"", b" ", b"relay.test, evil.test", b"relay.test evil.test", b"relay.test:80:80", b"relay.test:", b"relay.test:x",
    b"relay.test:-1", b"relay.test@evil.test", b"u:p@relay.test", b"evil.test/relay.test", b"http://relay.test",
    b"relay.test#", b"relay.test?x", b"relay.test\\", b"relay.test\x00", b"relay.test\x0b", b"r\xe4lay.test", b"[::1",
    b"::1", b"relay.test:123456", b"<relay.test>", b"relay.test;x", b"'relay.test'",
):  # fmt: skip
    refuse(f"Host: {host!r}", get(host=b"Host: " + host + b"\r\n"))
for second in (b"Host: relay.test", b"host: relay.test", b"HOST: evil.test", b"Host:"):
    refuse(f"Host and {second!r}", get(second))
    refuse(f"Host and {second!r} in HTTP/1.0", get(second, line=b"GET /open/x HTTP/1.0"))
for line in (
    b"Host : relay.test",
    b"Host\t: relay.test",
    b" Host: relay.test",
    b"Host\x00: relay.test",
    b"Host:\r\n relay.test",
    b"X: y\rHost: relay.test",
):
    refuse(f"line {line!r} for a Host", get(host=line + b"\r\n"))
for host in (b"relay.test", b"RELAY.test", b"relay.test:80", b"\trelay.test ", b"relay.test:65535"):
    take(f"Host:{host!r}", get(host=b"Host:" + host + b"\r\n"))
take("HTTP/1.0 without a Host", get(line=b"GET /open/x HTTP/1.0", host=b""))
take("X-Forwarded-Host is no Host", get(b"X-Forwarded-Host: evil.test", b"X-Host: evil.test"))

# One behind the other -----------------------------------------------------------------------------------------------

take("two requests", get(), get(line=b"GET /open/y HTTP/1.1"))
take("many requests", *[get(b"X: %d" % number) for number in range(10)])
take(
    "sized, chunked, none", post(b"Content-Length: 5", body=b"hello"), chunked(HELLO), get(), post(b"Content-Length: 0")
)
take("a request in a sized body", post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN))
take("a request in a chunk", chunked(b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + LAST_CHUNK))
take("a request in the body of a GET", get(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN)
take(
    "a request in the body of a HEAD", get(b"Content-Length: %d" % len(HIDDEN), line=b"HEAD /open/x HTTP/1.1") + HIDDEN
)
take(
    "a request in the body of a TRACE",
    get(b"Content-Length: %d" % len(HIDDEN), line=b"TRACE /open/x HTTP/1.1") + HIDDEN,
)
take("chunks of a GET", get(b"Transfer-Encoding: chunked") + HELLO, get())
take(
    "Connection names the length", post(b"Connection: Content-Length", b"Content-Length: %d" % len(HIDDEN), body=HIDDEN)
)
take(
    "Connection names the coding",
    post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", body=HELLO),
    get(),
)
take("Connection names Host and Via", get(b"Connection: Host, Via, keep-alive"))
take("an old proxy's keep-alive", post(b"Proxy-Connection: close", b"Keep-Alive: x", b"Content-Length: 0"), get())
take(
    "an offer of h2c", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), get()
)
refuse("a body longer than its length", post(b"Content-Length: 4", body=b"hello\r\n"), behind=1)
refuse("a line end behind a sized body", post(b"Content-Length: 5", body=b"hello\r\n"), behind=1)
refuse("a line end behind a chunked body", chunked(HELLO + b"\r\n"), behind=1)
refuse("a bad request behind good ones", get() + get() + get(b"X : y"), behind=2)
refuse("a chunk behind the last", chunked(HELLO + HELLO), behind=1)

# Limits -------------------------------------------------------------------------------------------------------------

refuse("a long request line", get(line=b"GET /open/" + b"x" * limits.MAX_START_LINE_BYTES + b" HTTP/1.1"), 414)
refuse("an endless request line", b"GET /open/" + b"x" * limits.MAX_START_LINE_BYTES, 414)
refuse("many lines", get(*[b"X: y"] * limits.MAX_HEADERS), 431)
refuse("long lines", get(*[b"X: " + b"y" * 1000] * 40), 431)
refuse("an endless head", get(b"X: " + b"y" * limits.MAX_HEAD_BYTES), 431)


# The three readers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """A request as one parser read it.

    Attributes:
      fields: names and transfer codings in lower case, as h11 gives them.
      end: where the next request begins.
    """

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    end: int


def _field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    name = name.lower()
    return name, value.lower() if name == b"transfer-encoding" else value


def read_by_us(data: bytes, *, cut_to_bytes: bool = False) -> tuple[list[Read], int | None]:
    """All requests that we accept, and the status of the refusal behind them."""
    reader = RequestReader()
    found: list[Read] = []
    head: RequestHead | None = None
    body, given = b"", 0
    step = 1 if cut_to_bytes else len(data)
    while given < len(data):
        reader.receive_data(data[given : given + step])
        given += step
        try:
            while event := reader.next_event():
                match event:
                    case RequestHead():
                        head, body = event, b""
                    case Body():
                        body += event.data
                    case EndOfRequest():
                        assert head is not None
                        fields = tuple(_field(name.encode(), value.encode("latin-1")) for name, value in head.headers)
                        end = given - len(reader.trailing)
                        found.append(Read(head.method.encode(), head.target.encode(), fields, body, end))
        except RemoteProtocolError as error:
            return found, error.http_status
    return found, None


def read_by_h11(data: bytes, start: int) -> Read | str:
    """The request that begins at ``start``, or why there is none."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data[start:])
    body = b""
    head: h11.Request | None = None
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return f"refused: {error}"
        match event:
            case h11.Request():
                head = event
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                assert head is not None
                fields = tuple((bytes(name), bytes(value)) for name, value in head.headers)
                end = len(data) - len(connection.trailing_data[0])
                return Read(bytes(head.method), bytes(head.target), fields, body, end)
            case _:
                return f"no request: {event}"


class _Collector:
    """What llhttp calls back into."""

    def __init__(self) -> None:
        self.target, self.body = b"", b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.has_head = self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:
            self.fields.append(_field(name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True


def read_by_llhttp(data: bytes, start: int) -> Read | str:
    """The request that begins at ``start``, or why there is none."""
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    method, blank, rest = data[start:].partition(b" ")
    shown = data[start:]
    if blank and method not in _METHODS_OF_LLHTTP and h11_takes_method(method):
        shown = b"GET " + rest
    # It does not tell where a request ended, so it gets the bytes one by one.
    for place in range(len(shown)):
        try:
            parser.feed_data(shown[place : place + 1])
        except httptools.HttpParserUpgrade:
            return "an upgrade"
        except httptools.HttpParserError as error:
            return f"refused: {error}"
        if collector.is_complete:
            end = len(data) - (len(shown) - place - 1)
            found = method if shown != data[start:] else parser.get_method()
            return Read(found, collector.target, tuple(collector.fields), collector.body, end)
    return "not complete"


_METHODS_OF_LLHTTP = {
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"M-SEARCH",
    b"CONNECT",
}


def h11_takes_method(method: bytes) -> bool:
    try:
        h11.Request(method=method, target=b"/", headers=[(b"Host", b"h")])
    except h11.LocalProtocolError:
        return False
    return True


def assert_all_agree(data: bytes) -> tuple[list[Read], int | None]:
    """What we accept, both others read alike. Returns: what we read."""
    ours, status = read_by_us(data)
    start = 0
    for request in ours:
        assert read_by_h11(data, start) == request
        theirs = read_by_llhttp(data, start)
        # llhttp skips the body of whatever offers an upgrade; see wire/http1.py.
        if theirs != "an upgrade" or b"upgrade" not in dict(request.fields):
            assert theirs == request
        start = request.end
    return ours, status


# Sans-I/O -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_rich() -> None:
    """failures: request smuggling; no case stands twice."""
    assert len(CASES) == len({case.name for case in CASES}) == len({case.data for case in CASES})
    assert len([case for case in CASES if case.status is not None]) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_accepted_is_read_alike_by_others(case: Case) -> None:
    """RFC 9112 11.2: accepted requests end where h11 and llhttp say they end, and say the same; the rest is refused."""
    data = case.data + (HIDDEN if case.status else b"")
    requests, status = assert_all_agree(data)
    assert read_by_us(data, cut_to_bytes=True) == (requests, status)
    assert len(requests) == case.taken
    assert status in ((400, 501) if case.status == 501 else (case.status,))


SEEDS = {
    "sized": post(b"X: y", b"Content-Length: 5", body=b"hello") + get(),
    "chunked": chunked(b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n") + get(),
    "absolute": get(b"Connection: keep-alive", line=b"GET http://relay.test/open/x?y=z HTTP/1.1") + get(),
}
INTRUDERS = (
    b"\0",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\x80",
    b"0",
    b"#",
    b'"',
    b"+",
)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_wrong_byte_anywhere(seed: str) -> None:
    """failures: request smuggling; one byte more, less or other, at every place, never makes the readers disagree."""
    data = SEEDS[seed]
    for place in range(len(data)):
        before, at, after = data[:place], data[place : place + 1], data[place + 1 :]
        changed = [before + after, before + at + at + after, before + at.swapcase() + after]
        changed += [before + intruder + rest for intruder in INTRUDERS for rest in (after, at + after)]
        for each in changed:
            assert_all_agree(each)


# Through the front door ---------------------------------------------------------------------------------------------


@dataclass
class Listener:
    """Answers every request with 200 and keeps what reached it, by the sender's port."""

    peer: WirePeer
    reached: dict[int, list[tuple[str, str, dict[str, str], bytes]]]

    async def serve(self) -> None:
        while True:
            asked = await self.peer.read_request()
            message = asked.message
            assert not asked.is_address_only, "nothing here is that long"
            sender = self.reached.setdefault(message["remoteEndpoint"]["port"], [])
            sender.append((message["method"], message["requestTarget"], asked.headers, asked.body or b""))
            await self.peer.respond(asked, 200, b"" if message["method"] == "HEAD" else b"ok")


async def answers_of(peer: WirePeer, case: Case) -> tuple[list[HttpAnswer], bool]:
    """The answers to a case, and whether the connection ended behind them."""
    methods = [request.method.decode() for request in read_by_us(case.data)[0]]
    answers = [await peer.read_http(method) for method in methods]
    if case.status is None:
        return answers, False
    answers.append(await peer.read_http())
    return answers, await peer.is_cut()


def relayed_target(target: str) -> str:
    """Origin form, blanks in the path, no empty query (wire contract 2.4, 9.3, 9.4)."""
    path, mark, query = re.sub(r"(?i)^https?://relay\.test", "", target).partition("?")
    return path.replace("%20", " ") + (mark + query if query else "")


async def test_the_front_door_forwards_only_what_all_read_alike(start_relay) -> None:
    """RFC 9112 11.2: a refusal is 400, 414, 431, 501 or 505 and the end; the listener gets accepted requests alone."""
    relay = await start_relay(limits=LimitsConfig(refusals_burst=10 * len(CASES)))
    listener = Listener(await relay.listen("open"), {})
    outcomes: dict[str, tuple[int, list[HttpAnswer], bool]] = {}
    turns = trio.CapacityLimiter(10)
    peers = []  # kept open to the end, so that no port is given out twice: it says whose request reached the listener

    async def send(case: Case) -> None:
        async with turns:
            peer = await relay.connect()
            peers.append(peer)
            port = peer.stream.socket.getsockname()[1]
            await peer.send(case.data + (HIDDEN if case.status else b""))
            outcomes[case.name] = (port, *await answers_of(peer, case))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve)
            async with trio.open_nursery() as senders:
                for case in CASES:
                    senders.start_soon(partial(send, case))
            # One more behind them all: what had been smuggled would have come before it.
            await send(Case("the last", get(line=b"GET /open/last HTTP/1.1"), 1, None))
            nursery.cancel_scope.cancel("all is answered")
    for peer in peers:
        await peer.aclose()
    for case in CASES:
        port, answers, has_ended = outcomes[case.name]
        accepted = read_by_us(case.data)[0]
        statuses = [answer.status for answer in answers]
        assert statuses[: case.taken] == [200] * case.taken, case.name
        if case.status is not None:
            allowed = (400, 501) if case.status == 501 else (case.status,)
            assert len(statuses) == case.taken + 1, case.name
            assert statuses[-1] in allowed, case.name
            assert has_ended, case.name
        reached = listener.reached.get(port, [])
        assert [(method, body) for method, _, _, body in reached] == [
            (request.method.decode(), request.body) for request in accepted
        ], case.name
        for request, (_, target, headers, _) in zip(accepted, reached, strict=True):
            assert "hidden" not in target, case.name
            assert target == relayed_target(request.target.decode()), case.name
            sent = {name for name, _ in request.fields}
            assert {name.lower().encode() for name in headers} <= sent | {b"via"}, case.name


@pytest.mark.parametrize("bad", [b"x\r\n", b"5\r\nhelloX", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nX : y\r\n\r\n"])
async def test_a_body_that_goes_wrong_on_its_way_is_never_complete(relay, bad: bytes) -> None:
    """RFC 9112 7.1: a long body is on its way to the listener when its framing breaks; there it is cut, not ended."""
    control = await relay.listen("open")
    sender = await relay.connect()
    with trio.fail_after(30):
        await sender.send(chunked(b"11170\r\n" + bytes(70_000) + b"\r\n"))
        asked = await control.read_request()
        assert asked.is_address_only
        rendezvous = await relay.come_to(asked.address)
        assert (await rendezvous.read_json())["request"]["body"] is True
        received = 0
        while received < 70_000:
            got = await rendezvous.read_data_frame()
            assert not got.fin
            received += len(got.payload)
        await sender.send(bad + HIDDEN)
        assert (await sender.read_http()).status == 400
        assert await sender.is_cut()
        with suppress(EOFError, trio.BrokenResourceError):  # an abort says the same as a Close of that kind
            while (got := await rendezvous.read_frame()).opcode != 8:
                assert not got.fin
            assert got.close_code not in (None, 1000)
