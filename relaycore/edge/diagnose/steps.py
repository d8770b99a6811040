"""The way from a program to its endpoint, one step after the other.

::

    name ─ proxy ─ tcp ─ tls ─ relay ─ clock ─ token ─ metadata ─ listeners          examine_relay
                                         │
                                         └─ listener ─ endpoint ─ bytes              examine_end_to_end
    name ─ policy ─ tcp                                                              examine_endpoint

A step that fails ends its examination: what comes behind it cannot be judged. A token is judged by a real handshake,
as the relay does it; for a moment that makes a listener, or a connection through to the endpoint. Should a sender be
given to such a listener, it is refused with 503, and the relay offers it to another.

The relay's clock is read from what it refuses: a handshake without a token, whose answer carries the time.

Source: connection manager 8.2, 8.6, 8.11; wire contract 5, 12.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, TypeAlias

import trio

from ...client.connection import Connection
from ...client.credentials import AUTHORIZATION_HEADER, Credential, TokenSource
from ...client.invitation import Invitation, Reject
from ...errors import (
    AuthorizationFailed,
    ConfigError,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Refused,
    RelayError,
    RemoteProtocolError,
)
from ...net.connect import WebSocketUrl, client_ssl_context, open_websocket, parse_ws_url
from ...net.linger import cut
from ...net.proxy_dial import ProxyFailed, open_tcp
from ...net.tasks import bounded
from ...net.websocket import WebSocketLeg
from ...vocab import RefusalReason
from ...wire.address import build_listen_url
from ...wire.frames import Close, Text
from ...wire.handshake import new_key
from ...wire.http1 import ResponseHead, ResponseReader, build_request
from ...wire.limits import MAX_LISTENERS_PER_ENTITY, TOKEN_ALLOWANCE, TOKEN_LIFETIME
from ...wire.messages import Accept, parse_from_relay
from ...wire.sas import parse_token
from ..access import RelayAccess
from ..azbridge.local import PortRefused, request_port
from ..config.settings import DialSettings, Forward, Profile, Target
from ..hcm.metadata import parse_endpoint_metadata
from ..relay_way import WayFailed, certificate_refused, dial_failed, proxy_failed, way_failed
from ..target.dial import Address, DialFailed, dial, resolve
from ..target.policy import Policy

__all__ = ["Finding", "Role", "examine_end_to_end", "examine_endpoint", "examine_relay"]

Role: TypeAlias = Literal["listen", "send"]

_CONFIG: Final = 3
_AUTHORIZATION: Final = 4
_CONNECTION: Final = 5
_NOT_FOUND: Final = 6
_ENDPOINT_DOWN: Final = 7
"""Exit codes of connection manager 8.11."""

_CERTIFICATE_DAYS: Final = 14
"""A certificate with fewer days left than this is worth a warning."""

_CLOCK_S: Final = 60.0
"""A difference of clocks that is worth one: far below what makes tokens fail, far above what a network explains."""

_FIRST_BYTES_S: Final = 0.5
"""Seconds that an endpoint has to speak first."""

_LEAVE_S: Final = 1.0
"""Seconds for a goodbye; an endpoint that goes on after the end of its data is cut."""

_THROUGH_S: Final = 35.0
"""Seconds for a connection through to a listener: more than an accept's 30, so that the relay's own words are heard."""

_MOST_OF_VERSION: Final = 100
"""Characters of what a server calls itself that are repeated."""

_AGAIN: Final = "Try again; if it stays so, the relay's log says more."
_SET_CLOCK: Final = "Set this machine's clock: timedatectl set-ntp true."

_TIMESTAMP = re.compile(r"Timestamp:(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step came to.

    Attributes:
      level: ``warn`` is worth knowing, ``fail`` is why it does not work.
      step: one word, for programs.
      text: what was tried, and what came back.
      remedy: what to do; ``""`` when all is well.
      seconds: it took; None where that says nothing.
      exit_code: 0, or the one of connection manager 8.11 that a failure stands for.
    """

    level: Literal["ok", "warn", "fail"]
    step: str
    text: str
    remedy: str = ""
    seconds: float | None = None
    exit_code: int = 0


async def examine_relay(
    access: RelayAccess,
    *,
    role: Role,
    needs_endpoint: bool = False,
    tells_version: bool = False,
    timeout_s: float = 10.0,
    now_unix: Callable[[], float] = time.time,
) -> AsyncGenerator[Finding, None]:
    """Look at the way to a hybrid connection, and at what the relay says there.

    Args:
      role: which right is needed. ``send`` connects through to whoever listens, and hangs up.
      needs_endpoint: whether connections lead where the hybrid connection's text says, so that it has to say so.
      tells_version: whether the relay's version is a finding, too.
      timeout_s: for each step.
    """
    relay = _Relay(access, role, timeout_s, now_unix)
    try:
        for step in (relay.look_up, relay.connect, relay.secure, relay.greet):
            found = await step()
            for finding in found:
                yield finding
            if any(finding.level == "fail" for finding in found):
                return
    finally:
        relay.hang_up()
    for finding in await relay.present_token():
        yield finding
    if relay.is_let_in:
        for finding in await relay.read_text(needs_endpoint=needs_endpoint, tells_version=tells_version):
            yield finding


async def examine_endpoint(
    targets: Sequence[Target], settings: DialSettings | None = None, policy: Policy | None = None
) -> AsyncGenerator[Finding, None]:
    """Look up and dial each target once, as a connection would be."""
    settings = settings or DialSettings()
    for target in targets:
        began = trio.current_time()
        if not target.path:
            found = await _look_up(target, settings, policy)
            yield found
            if found.level == "fail":
                continue
        try:
            dialled = await dial([target], settings, policy=policy)
        except DialFailed as error:
            yield _endpoint_failed(error)
            continue
        dialled.stream.socket.close()
        took = trio.current_time() - began
        yield Finding("ok", "endpoint", f"endpoint {target}: connected to {dialled.address}", seconds=took)


async def examine_end_to_end(
    access: RelayAccess,
    forward: Forward,
    *,
    port: int = 0,
    send_bytes: int = 0,
    now_unix: Callable[[], float] = time.time,
) -> AsyncGenerator[Finding, None]:
    """Open one connection all the way, and tell what each leg took.

    Args:
      port: the endpoint's, which azbridge sends where the settings name no port.
      send_bytes: zeros to send, for an endpoint that echoes or swallows them; else nothing is sent.
    """
    relay = _Relay(access, "send", forward.retry.timeout_s, now_unix)
    laps: list[str] = []
    if (failure := await relay.fetch_token()) is not None:
        yield failure
        return
    try:
        for name, step in (("", relay.look_up), ("TCP", relay.connect), ("TLS", relay.secure)):
            found = await step()
            if failed := [finding for finding in found if finding.level == "fail"]:
                for finding in failed:
                    yield finding
                return
            laps += [f"{name} {finding.seconds * 1000:.0f}" for finding in found if name and finding.seconds]
    finally:
        relay.hang_up()
    began = trio.current_time()
    try:
        connection = await access.dial(connect_timeout=forward.retry.timeout_s)
        took = trio.current_time() - began
        beyond = await _look_beyond(connection, forward, port, send_bytes)
    except (RelayError, OSError) as error:
        for finding in relay.judge(error, seconds=trio.current_time() - began):
            yield finding
        return
    of_it = f" ({', '.join(laps)} ms of it; token ok)" if laps else " (token ok)"
    yield Finding("ok", "relay", f"handshake{of_it}, a listener took it", seconds=took)
    for finding in beyond:
        yield finding


# The relay -----------------------------------------------------------------------------------------------------------


class _Relay:
    """One relay under examination: the connection that the first steps share, and what they learnt."""

    def __init__(self, access: RelayAccess, role: Role, timeout_s: float, now_unix: Callable[[], float]) -> None:
        connection = access.connection_string
        self.is_let_in = False
        self._access = access
        self._role = role
        self._timeout_s = timeout_s
        self._now_unix = now_unix
        self._path = connection.entity_path or ""
        self._url = parse_ws_url(build_listen_url(connection.base_url, self._path))
        self._target = Target(self._url.host, self._url.port)
        self._tcp: trio.SocketStream | None = None
        self._stream: trio.abc.Stream | None = None
        self._behind_s: float | None = None  # how far this machine's clock is behind the relay's
        self._credential: Credential | None = None

    def hang_up(self) -> None:
        """Close the connection of the first steps, without a goodbye."""
        if self._tcp is not None:
            self._tcp.socket.close()

    async def look_up(self) -> list[Finding]:
        if self._access.proxy is not None:
            return []  # the name is the proxy's business, and may be unknown here
        found = await _look_up(self._target, DialSettings(timeout_s=self._timeout_s), None, is_relay=True)
        return [found]

    async def connect(self) -> list[Finding]:
        began = trio.current_time()
        proxy = self._access.proxy
        where = str(self._target)
        if proxy is None:
            try:
                dialled = await dial([self._target], DialSettings(timeout_s=self._timeout_s))
            except DialFailed as error:
                return [_relay_failed("tcp", dial_failed(error))]
            self._tcp = self._stream = dialled.stream
            shown = Target(dialled.address, self._target.port)
            return [Finding("ok", "tcp", f"TCP {shown}", seconds=trio.current_time() - began)]
        try:
            with trio.fail_after(self._timeout_s):
                self._tcp = self._stream = await open_tcp(self._url.host, self._url.port, proxy)
        except trio.TooSlowError:
            late = ProxyFailed(proxy, f"the proxy {proxy} did not connect to {where} within {self._timeout_s:g} s")
            return [_relay_failed("proxy", proxy_failed(late, where))]
        except ProxyFailed as error:
            return [_relay_failed("proxy", proxy_failed(error, where))]
        return [Finding("ok", "proxy", f"{proxy} connects to {where}", seconds=trio.current_time() - began)]

    async def secure(self) -> list[Finding]:
        if not self._url.is_tls:
            return [Finding("ok", "tls", "no TLS: the settings say that this relay is an emulator")]
        assert self._tcp is not None
        began = trio.current_time()
        context = self._access.ssl_context or client_ssl_context()
        tls = trio.SSLStream(self._tcp, context, server_hostname=self._url.host, https_compatible=True)
        try:
            with trio.fail_after(self._timeout_s):
                await tls.do_handshake()
        except trio.TooSlowError:
            return [self._no_tls(f"no answer within {self._timeout_s:g} s")]
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                return [_relay_failed("tls", certificate_refused(cause, self._url.host_header))]
            return [self._no_tls(_ssl_words(cause))]
        self._stream = tls
        return [self._certificate(tls, trio.current_time() - began)]

    def _no_tls(self, said: str) -> Finding:
        remedy = "Is it the relay's port? Something on the way, such as a firewall that inspects, may break TLS off."
        return Finding("fail", "tls", f"TLS with {self._url.host_header} failed: {said}", remedy, exit_code=_CONNECTION)

    def _certificate(self, tls: trio.SSLStream[trio.SocketStream], took: float) -> Finding:
        found: Mapping[str, Any] = tls.getpeercert() or {}
        names = [value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        days = int((ssl.cert_time_to_seconds(str(found["notAfter"])) - self._now_unix()) // 86_400)
        text = f"{str(tls.version()).replace('v', ' ')}, certificate {', '.join(names[:2])}, {_count(days, 'day')} left"
        if days < _CERTIFICATE_DAYS:
            return Finding("warn", "tls", text, "Renew the relay's certificate.", seconds=took)
        return Finding("ok", "tls", text, seconds=took)

    async def greet(self) -> list[Finding]:
        """Ask without a token, for the relay's time, and to see whether it is one."""
        assert self._stream is not None
        where = self._url.host_header
        began = self._now_unix()
        try:
            with trio.fail_after(self._timeout_s):
                head = await _ask(self._stream, self._url)
        except trio.TooSlowError:
            return [_no_relay(where, f"it gives no HTTP answer within {self._timeout_s:g} s")]
        except (trio.BrokenResourceError, EOFError):
            return [_no_relay(where, "it closes the connection")]
        except RemoteProtocolError as error:
            return [_no_relay(where, f"it does not speak HTTP: {error}")]
        theirs = _time_of(head)
        is_relay = head.status in (101, 401, 403, 404, 429, 503) and "TrackingId" in head.reason
        found = []
        if not is_relay:
            text = f"what answers at {where} may be no relay: {head.status} {head.reason}".rstrip()
            found.append(Finding("warn", "relay", text, "Check endpoint and port of the relay."))
        if theirs is not None:
            # The relay tells whole seconds, and it told them somewhere between our two readings.
            self._behind_s = theirs + 0.5 - (began + self._now_unix()) / 2
            found.append(_clock(self._behind_s))
        return found

    async def present_token(self) -> list[Finding]:
        """Shake hands as the role does."""
        if (failed := await self.fetch_token()) is not None:
            return [failed]
        began = trio.current_time()
        took: float | None = None
        try:
            if self._role == "listen":
                with trio.fail_after(self._timeout_s):
                    took = await self._listen()
            else:
                took = await self._connect_through()
        except trio.TooSlowError:
            text = f"the relay does not answer within {self._timeout_s:g} s"
            return [Finding("fail", "token", text, _AGAIN, exit_code=_CONNECTION)]
        except (RelayError, OSError) as error:
            return self.judge(error, seconds=trio.current_time() - began)
        self.is_let_in = True
        found = [self._accepted(took)]
        if self._role == "send":
            found.append(Finding("ok", "listener", "a listener took a connection"))
        return found

    async def fetch_token(self) -> Finding | None:
        """Get the token whose fate is to be told. Returns: what is wrong, if it cannot be had."""
        if self._access.token is None:
            return None
        source = TokenSource(self._access.token, self._access.connection_string.audience, is_renewable=True)
        try:
            self._credential = await source.fetch()
        except RelayError as error:
            remedy = "Correct the key's or the token's place in the settings."
            return Finding("fail", "token", str(error), remedy, exit_code=_CONFIG)
        return None

    async def _listen(self) -> float:
        began = trio.current_time()
        url = parse_ws_url(build_listen_url(self._access.connection_string.base_url, self._path, id=str(uuid.uuid4())))
        headers = [] if self._credential is None else [(AUTHORIZATION_HEADER, self._credential.text)]
        context, proxy = self._access.ssl_context, self._access.proxy
        opened = await open_websocket(url, ssl_context=context, proxy=proxy, headers=headers)
        took = trio.current_time() - began
        try:
            with trio.move_on_after(_LEAVE_S), contextlib.suppress(trio.BrokenResourceError):
                await self._leave(opened.leg)
        finally:
            await cut(opened.leg.stream)  # noqa: ASYNC102 - shields itself
        return took

    async def _leave(self, leg: WebSocketLeg) -> None:
        await leg.send_close(1000)
        while not isinstance(event := await leg.receive(), Close):
            message = parse_from_relay(event.data) if isinstance(event, Text) else None
            if isinstance(message, Accept):
                invitation = Invitation(
                    message,
                    path=self._path,
                    is_tls=self._url.is_tls,
                    ssl_context=self._access.ssl_context,
                    max_message_bytes=1,
                    proxy=self._access.proxy,
                )
                with contextlib.suppress(RelayError):
                    await invitation.reject(Reject(503, "This listener only tests its token"))

    async def _connect_through(self) -> float:
        began = trio.current_time()
        connection = await self._access.dial(connect_timeout=_THROUGH_S)
        took = trio.current_time() - began
        await _say_goodbye(connection)
        return took

    async def read_text(self, *, needs_endpoint: bool, tells_version: bool) -> list[Finding]:
        """Read the hybrid connection's own text: endpoint and number of listeners; and what runs there."""
        began = trio.current_time()
        try:
            with trio.fail_after(self._timeout_s):
                entity = await self._access.management().get_entity(self._path)
        except (RelayError, OSError, trio.TooSlowError) as error:
            said = "no answer in time" if isinstance(error, trio.TooSlowError) else str(error)
            return [
                Finding(
                    "warn" if not needs_endpoint else "fail",
                    "metadata",
                    f"the relay does not show the text of {self._path}: {said}",
                    "Name the endpoint in the settings instead." if needs_endpoint else "",
                    exit_code=_CONNECTION if needs_endpoint else 0,
                )
            ]
        took = trio.current_time() - began
        found = [_version(entity.server)] if tells_version else []
        try:
            target = parse_endpoint_metadata(entity.user_metadata)
        except ConfigError as error:
            if needs_endpoint:
                remedy = "Correct it at the relay, or name the endpoint in the settings."
                found.append(Finding("fail", "metadata", str(error), remedy, exit_code=_CONFIG))
            else:
                found.append(Finding("ok", "metadata", "the hybrid connection's text names no endpoint", seconds=took))
        else:
            text = f"endpoint from metadata: {target}"
            if self._role == "listen" and not needs_endpoint:
                text = f"metadata names {target}, but the settings count"
            found.append(Finding("ok", "metadata", text, seconds=took))
        count = entity.listener_count
        left = f"{_count(count, 'listener')} now; at most {MAX_LISTENERS_PER_ENTITY} fit"
        if self._role == "listen" and count >= MAX_LISTENERS_PER_ENTITY:
            found.append(Finding("warn", "listeners", left, "Stop listeners that nobody needs."))
        else:
            found.append(Finding("ok", "listeners", left))
        return found

    # Judging ---------------------------------------------------------------------------------------------------------

    def _accepted(self, seconds: float | None) -> Finding:
        if self._credential is None:
            return Finding("ok", "token", "no token is needed to send here", seconds=seconds)
        return Finding("ok", "token", f"token accepted ({self._rule}: {self._role.capitalize()})", seconds=seconds)

    @property
    def _rule(self) -> str:
        if self._credential is not None:
            with contextlib.suppress(AuthorizationFailed):
                return f"rule {parse_token(self._credential.text).rule_name}"
        return "the token"

    def judge(self, error: BaseException, seconds: float | None = None) -> list[Finding]:
        """What a handshake that came to nothing says: about the token, the hybrid connection, its listeners, and the
        endpoint behind them."""
        if isinstance(error, AuthorizationFailed):
            return [self._token_refused(error)]
        if isinstance(error, EndpointNotFound):
            text = f"the relay knows no hybrid connection {self._path}: {error.message}"
            remedy = f"Check the path, or create it: relaycore entity create {self._path}"
            return [Finding("fail", "entity", text, remedy, exit_code=_NOT_FOUND)]
        if isinstance(error, PortRefused):
            remedy = "port_name here and the listener's port names have to be the same."
            return [
                Finding("fail", "listener", f"the listener refused the port: {error}", remedy, exit_code=_NOT_FOUND)
            ]
        if not isinstance(error, Refused):
            return [self._lost(error)]
        accepted = self._accepted(seconds)
        said = f"{error.http_status} {error.message}".strip()
        if isinstance(error, NoListener):
            remedy = "Start a listener: relaycore hcm run; or see there: relaycore hcm status."
            text = f"nobody listens on {self._path}: {said}"
            return [accepted, Finding("fail", "listener", text, remedy, exit_code=_NOT_FOUND)]
        if error.tracking_id:  # the relay's own words; a listener's come without
            if isinstance(error, GatewayTimeout):
                text = f"the listener of {self._path} did not take the connection in time: {said}"
                remedy = "See on its side: relaycore hcm status."
                return [accepted, Finding("fail", "listener", text, remedy, exit_code=_NOT_FOUND)]
            return [Finding("fail", "relay", f"the relay refused: {said}", _AGAIN, exit_code=_CONNECTION)]
        remedy = "Start the service there, or see on the listener's side: relaycore hcm doctor."
        if error.http_status == 403:
            remedy = "The operator of the listener's side decides what may be reached: hcm.policy."
        text = f"the listener refused: {said}"
        is_port = error.http_status == 404
        step, code = ("listener", _NOT_FOUND) if is_port else ("endpoint", _ENDPOINT_DOWN)
        return [accepted, Finding("fail", step, text, remedy, exit_code=code)]

    def _token_refused(self, error: AuthorizationFailed) -> Finding:
        rule = self._rule
        said = f"{error.http_status} {error.message}".strip()
        step = "token"
        if "quota" in error.message.lower() or "ListenersPer" in error.message:
            text, remedy = f"the relay takes no more listeners: {said}", "Stop listeners that nobody needs."
            return Finding("fail", "listeners", text, remedy, exit_code=_CONNECTION)
        match error.reason:
            case RefusalReason.EXPIRED_TOKEN:
                return self._expired(said)
            case RefusalReason.INVALID_SIGNATURE:
                text = f"wrong key: the relay does not take the signature of {rule}: {said}"
                remedy = "Give this rule's primary or secondary key; or the rule's name is wrong, or the rule is gone."
            case RefusalReason.INVALID_AUDIENCE:
                text = f"the token is for another relay or hybrid connection: {said}"
                remedy = "Reach the relay by the name that it knows as its own, or get a token for this path."
            case RefusalReason.RIGHT_MISSING:
                right = self._role.capitalize()
                text = f"wrong right: {rule} has no right to {self._role} on {self._path}: {said}"
                remedy = f"Use a rule with {right}, or give this one that right."
            case _ if self._credential is None:
                text, remedy = f"the relay wants a token: {said}", "Give key_name and key."
            case _:
                text, remedy = f"the relay does not take the token of {rule}: {said}", "Check key_name, key or token."
        return Finding("fail", step, text, remedy, exit_code=_AUTHORIZATION)

    def _expired(self, said: str) -> Finding:
        behind = self._behind_s
        if behind is not None and behind > TOKEN_LIFETIME / 2:
            text = (
                f"clock: this machine's clock is {_span(behind)} behind the relay's, so its tokens have expired: {said}"
            )
            return Finding("fail", "clock", text, _SET_CLOCK, exit_code=_AUTHORIZATION)
        when = ""
        if self._credential is not None and self._credential.expires_unix is not None:
            when = f" on {datetime.fromtimestamp(self._credential.expires_unix, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return Finding(
            "fail",
            "token",
            f"the token has expired{when}: {said}",
            "Get a new one, or give key_name and key, which make tokens.",
            exit_code=_AUTHORIZATION,
        )

    def _lost(self, error: BaseException) -> Finding:
        step = "proxy" if isinstance(error, ProxyFailed) else "relay"
        words = " ".join(str(error).split()) or type(error).__name__
        remedy = _AGAIN
        if error.__cause__ is not None and (way := way_failed(error, self._url.host_header)) is not None:
            words, remedy = way.text, _sentence(way.advice)
        return Finding("fail", step, f"the handshake did not come about: {words}", remedy, exit_code=_CONNECTION)


async def _ask(stream: trio.abc.Stream, url: WebSocketUrl) -> ResponseHead:
    """Ask for an upgrade without a token. Raises EOFError when the connection ends before an answer."""
    headers = [
        ("Host", url.host_header),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", new_key(uuid.uuid4().bytes)),
        ("Sec-WebSocket-Version", "13"),
    ]
    await stream.send_all(build_request("GET", url.resource, headers))
    reader: ResponseReader[ResponseHead] = ResponseReader()
    while (head := reader.next_event()) is None:
        data = await stream.receive_some(65_536)
        if not data:
            raise EOFError
        reader.receive_data(data)
    return head


def _time_of(head: ResponseHead) -> float | None:
    """The server's clock, seconds since 1970, from ``Date`` or from what a relay's refusals end with (12)."""
    if (date := head.headers.get("Date")) is not None:
        with contextlib.suppress(ValueError):
            return parsedate_to_datetime(date).timestamp()
    if (match := _TIMESTAMP.search(head.reason)) is not None:
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    return None


def _clock(behind_s: float) -> Finding:
    if abs(behind_s) < _CLOCK_S:
        return Finding("ok", "clock", f"clock differs by {abs(behind_s):.1f} s")
    word = "behind" if behind_s > 0 else "ahead of"
    text = f"this machine's clock is {_span(abs(behind_s))} {word} the relay's"
    if behind_s > TOKEN_LIFETIME + TOKEN_ALLOWANCE:
        text += ": tokens made here have expired when they arrive"
    return Finding("warn", "clock", text, _SET_CLOCK)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _no_relay(where: str, why: str) -> Finding:
    remedy = "Check endpoint and port of the relay."
    return Finding("fail", "relay", f"what answers at {where} is no relay: {why}", remedy, exit_code=_CONNECTION)


def _version(server: str) -> Finding:
    name, _, version = server.partition("/")
    shown = f"{name} {version}".strip()[:_MOST_OF_VERSION] or "not told (the hosted service does not)"
    return Finding("ok", "version", f"the relay's version: {shown}")


def _relay_failed(step: str, way: WayFailed) -> Finding:
    """The way to the relay ended; it is not the endpoint that is meant."""
    return Finding("fail", step, way.text, _sentence(way.advice), exit_code=_CONNECTION)


def _sentence(advice: str) -> str:
    return f"{advice[:1].upper()}{advice[1:]}{'' if advice.endswith('?') else '.'}"


def _ssl_words(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return "the connection was closed"


# Endpoints -----------------------------------------------------------------------------------------------------------


async def _look_up(target: Target, settings: DialSettings, policy: Policy | None, *, is_relay: bool = False) -> Finding:
    began = trio.current_time()
    try:
        with trio.fail_after(settings.timeout_s):
            found: list[Address] = await resolve(target, settings, policy)
    except trio.TooSlowError:
        text = f"the name server does not answer for {target.host} within {settings.timeout_s:g} s"
        remedy = "See /etc/resolv.conf and the way to the name server."
        return Finding("fail", "name", text, remedy, exit_code=_CONNECTION if is_relay else _ENDPOINT_DOWN)
    except DialFailed as error:
        if is_relay:
            return _relay_failed("name", dial_failed(error))
        return _endpoint_failed(error, step="policy" if error.kind == "policy" else "name")
    hosts = [address.host for address in found]
    took = trio.current_time() - began
    if hosts == [target.host]:
        return Finding("ok", "name", f"{target.host} is an address", seconds=took)
    return Finding("ok", "name", f"{target.host} resolves to {', '.join(hosts)}", seconds=took)


def _endpoint_failed(error: DialFailed, step: str = "endpoint") -> Finding:
    """A failed dial of one target, whose text ends with what to do."""
    text, _, remedy = error.text.rpartition("; ")
    remedy = _sentence(remedy) if text else ""
    if error.kind == "policy":
        remedy = "If it should be reached from here, allow it in hcm.policy."
    return Finding("fail", step, text or error.text, remedy, exit_code=_ENDPOINT_DOWN)


# End to end ----------------------------------------------------------------------------------------------------------


async def _say_goodbye(connection: Connection) -> None:
    with trio.move_on_after(_LEAVE_S), contextlib.suppress(trio.BrokenResourceError):
        await connection.aclose()  # forceful, once it is cancelled


async def _look_beyond(connection: Connection, forward: Forward, port: int, send_bytes: int) -> list[Finding]:
    try:
        if forward.profile is Profile.AZBRIDGE:
            with bounded(forward.retry.timeout_s):
                await request_port(connection, forward.port_name or str(port), udp=False)
        found = await _listen_for_bytes(connection, send_bytes)
    except BaseException:
        await cut(connection)  # noqa: ASYNC102 - shields itself
        raise
    await _say_goodbye(connection)
    return [Finding("ok", "remote", "what it dialled is not reported: only refusals travel back"), *found]


async def _listen_for_bytes(connection: Connection, send_bytes: int) -> list[Finding]:
    began = trio.current_time()
    try:
        if send_bytes:
            return [await _exchange(connection, send_bytes)]
        with trio.fail_after(_FIRST_BYTES_S):
            data = await connection.receive_some()
    except trio.TooSlowError:
        text = f"no data from the endpoint within {_FIRST_BYTES_S * 1000:.0f} ms (normal when the client speaks first)"
        return [Finding("ok", "bytes", text), Finding("ok", "result", "the path works end to end")]
    except trio.BrokenResourceError as error:
        text = f"the connection broke off at once: {error}"
        remedy = "The endpoint or its listener ended it; see there: relaycore hcm doctor."
        return [Finding("fail", "bytes", text, remedy, exit_code=_ENDPOINT_DOWN)]
    took = trio.current_time() - began
    if not data:
        text = "the endpoint closed the connection at once"
        return [Finding("warn", "bytes", text, "Does the service take connections from the listener's address?")]
    text = f"the endpoint speaks first: {_count(len(data), 'byte')}"
    return [Finding("ok", "bytes", text, seconds=took), Finding("ok", "result", "the path works end to end")]


async def _exchange(connection: Connection, send_bytes: int) -> Finding:
    """Send zeros, and count what comes back until nothing has come for a moment."""
    began = trio.current_time()
    last = began
    got = 0

    async def send() -> None:
        left = send_bytes
        while left:
            piece = bytes(min(left, 65_536))
            await connection.send_all(piece)
            left -= len(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while got < send_bytes:
            with trio.move_on_after(_FIRST_BYTES_S) as quiet:
                data = await connection.receive_some()
            if quiet.cancelled_caught:
                if not nursery.child_tasks:
                    break
                continue
            if not data:
                nursery.cancel_scope.cancel()
                break
            got += len(data)
            last = trio.current_time()
    return Finding("ok", "bytes", f"{_count(send_bytes, 'byte')} sent, {got} came back", seconds=last - began)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
