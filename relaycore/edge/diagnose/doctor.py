"""A whole examination of one entry, this machine included, and a report of it that may be shown to others.

What only a running program knows (its own listening, its hosts file, its open connections) is handed in by whoever
asks.

Source: connection manager 8.2 (`doctor`), 8.11.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import trio

from ...errors import ConfigError, RelayError
from ...net.connect import parse_ws_url
from ..access import RelayAccess
from ..config.secret import Secret
from ..config.settings import Forward, HcmConnection, Profile, Target
from ..hcm.endpoint_leg import fixed_targets
from ..hcm.metadata import parse_endpoint_metadata
from ..target.policy import Policy
from .steps import Finding, examine_end_to_end, examine_endpoint, examine_relay

__all__ = [
    "Emit",
    "ExpectedName",
    "bundle",
    "examine_descriptors",
    "examine_forward",
    "examine_hcm_connection",
    "examine_hcm_way",
    "examine_names",
    "examine_secret",
    "firewall_list",
    "redact",
]

Emit: TypeAlias = Callable[[Finding], Awaitable[None]]

_CONFIG: Final = 3
_NOT_REDIRECTED: Final = 8
"""Exit codes of connection manager 8.11."""

_LOOK_UP_S: Final = 5.0

_DESCRIPTORS_PER_CONNECTION: Final = 2
"""One towards the relay, one towards the endpoint."""

_DESCRIPTORS_WANTED: Final = 4096
"""Enough for two thousand connections; many systems begin with 1024, and let programs have more."""

_HIDDEN: Final = "***"


async def examine_hcm_connection(
    connection: HcmConnection,
    emit: Emit,
    *,
    policy: Policy | None = None,
    open_connections: int = 0,
    environ: Mapping[str, str] = os.environ,
    now_unix: Callable[[], float] = time.time,
) -> None:
    """Look at all that a connection manager's entry needs: this machine, the relay, the endpoint.

    Args:
      emit: gets each finding as it is made.
      policy: as the manager has it.
      open_connections: how many it has now.
    """
    await _examine_this_machine(connection, open_connections, environ, emit)
    way = await examine_hcm_way(connection, emit, policy=policy, tells_version=True, now_unix=now_unix)
    if way is not None:
        await emit(firewall_list(*way))


async def examine_hcm_way(
    connection: HcmConnection,
    emit: Emit,
    *,
    policy: Policy | None = None,
    tells_version: bool = False,
    now_unix: Callable[[], float] = time.time,
) -> tuple[RelayAccess, Sequence[Target]] | None:
    """As `examine_hcm_connection`, without this machine: the relay and the endpoint.

    Args:
      tells_version: whether the relay's version is a finding, too.

    Returns: what was found to lead where; None where the settings lead to no relay.
    """
    if (access := await _access(connection, now_unix, emit)) is None:
        return None
    fixed = fixed_targets(connection)
    needs_endpoint = isinstance(fixed, str)
    findings = examine_relay(
        access, role="listen", needs_endpoint=needs_endpoint, tells_version=tells_version, now_unix=now_unix
    )
    is_well = await _pass_on(findings, emit)
    targets: Sequence[Target] = ()
    if not isinstance(fixed, str):
        targets = fixed
    elif is_well:
        with contextlib.suppress(RelayError, OSError):
            entity = await access.management().get_entity(connection.path)
            targets = (parse_endpoint_metadata(entity.user_metadata),)
    await _pass_on(examine_endpoint(targets, connection.dial, policy), emit)
    for port in connection.ports if connection.profile is Profile.AZBRIDGE else ():
        if port.is_udp:
            where = ", ".join(map(str, port.targets))
            await emit(Finding("ok", "endpoint", f"UDP {where} is not asked: nothing has to answer there"))
    return access, targets


async def examine_forward(
    forward: Forward,
    emit: Emit,
    *,
    names: Iterable[ExpectedName] = (),
    port: int = 0,
    environ: Mapping[str, str] = os.environ,
    now_unix: Callable[[], float] = time.time,
) -> None:
    """Look at all that a forward needs: this machine, its names, the relay, and one connection all the way.

    Args:
      emit: gets each finding as it is made.
      names: see `examine_names`.
      port: see `examine_end_to_end`.
    """
    await _examine_this_machine(forward, 0, environ, emit)
    await _pass_on(examine_names(names), emit)
    if (access := await _access(forward, now_unix, emit)) is None:
        return
    if await _pass_on(examine_relay(access, role="send", tells_version=True, now_unix=now_unix), emit):
        await _pass_on(examine_end_to_end(access, forward, port=port, now_unix=now_unix), emit)
    await emit(firewall_list(access, ()))


async def _pass_on(findings: AsyncGenerator[Finding, None], emit: Emit) -> bool:
    """Returns: whether none of them was a failure."""
    is_well = True
    async with aclosing(findings):
        async for finding in findings:
            is_well &= finding.level != "fail"
            await emit(finding)
    return is_well


async def _examine_this_machine(
    entry: HcmConnection | Forward, open_connections: int, environ: Mapping[str, str], emit: Emit
) -> None:
    for secret in (entry.key, entry.token):
        if secret is not None:
            await emit(examine_secret(secret, environ))
    await emit(examine_descriptors(open_connections))


async def _access(entry: HcmConnection | Forward, now_unix: Callable[[], float], emit: Emit) -> RelayAccess | None:
    try:
        return RelayAccess.of(entry, now_unix=now_unix)
    except ConfigError as error:
        await emit(
            Finding("fail", "settings", str(error), "Correct the settings; see: config check", exit_code=_CONFIG)
        )
        return None


# This machine --------------------------------------------------------------------------------------------------------


def examine_secret(secret: Secret, environ: Mapping[str, str] = os.environ) -> Finding:
    """Whether a key or token can be read, and by nobody else. Reads a small file; shows nothing of it."""
    try:
        secret.read(environ)
    except ConfigError as error:
        remedy = "Put it there, readable for the program's own user alone (chmod 600)."
        return Finding("fail", "secret", str(error), remedy, exit_code=_CONFIG)
    if secret.kind == "inline":
        where = secret.source.rpartition(":")[0]
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(Path(where).stat().st_mode)
            if where and mode & 0o077:
                text = f"{where} holds a key, and others may read it (mode {mode:03o})"
                return Finding("fail", "secret", text, f"chmod 600 {where}", exit_code=_CONFIG)
        return Finding("ok", "secret", "the key stands in the settings")
    if secret.is_public:
        text = f"{secret} can be read, and every other user of this machine can read it, too"
        return Finding("warn", "secret", text, "Where others are (in a container nobody is), let its owner chmod it.")
    return Finding("ok", "secret", f"{secret} can be read")


def examine_descriptors(open_connections: int) -> Finding:
    """Whether this process may open as many files and sockets as it will need.

    Args:
      open_connections: of the whole program; twice as many should still fit.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_DESCRIPTORS_WANTED, 2 * open_connections * _DESCRIPTORS_PER_CONNECTION)
    text = f"descriptors: at most {limit if limit != resource.RLIM_INFINITY else 'any number'}"
    if limit != resource.RLIM_INFINITY and limit < wanted:
        may = "any number" if most == resource.RLIM_INFINITY else str(most)
        remedy = (
            f"Raise it to {wanted} or more: LimitNOFILE= in the unit, or ulimit -n (up to {may} without privileges)."
        )
        return Finding("warn", "descriptors", f"{text}, enough for {limit // _DESCRIPTORS_PER_CONNECTION}", remedy)
    return Finding("ok", "descriptors", text)


@dataclass(frozen=True, slots=True)
class ExpectedName:
    """A name that leads to a forward, and where programs of this machine are to find it.

    Attributes:
      name: a pattern such as ``*.corp.example`` is nothing that can be looked up.
      address: where the name should lead.
      others: more addresses at which it listens.
      other_way: how programs reach the forward that do not look the name up; ``""`` where none can.
      dead: addresses to which its names lead or have led, and where the forward does not listen.
    """

    name: str
    address: str
    others: tuple[str, ...] = ()
    other_way: str = ""
    dead: tuple[str, ...] = ()


async def examine_names(names: Iterable[ExpectedName]) -> AsyncGenerator[Finding, None]:
    """Whether programs of this machine that look names up get addresses that lead to the relay.

    A name that leads elsewhere is a failure where programs have nothing else to go by, else a warning. One that leads
    to an address where the forward does not listen is a failure in any case: it is us who led it there.
    """
    for expected in names:
        if expected.name.startswith("*"):
            continue
        found: list[str] = []
        said = "no entry"
        try:
            with trio.fail_after(_LOOK_UP_S):
                answers = await trio.socket.getaddrinfo(expected.name, None, type=trio.socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except trio.TooSlowError:
            said = "the name server does not answer"
        except (OSError, UnicodeError):
            pass
        yield _judge_name(expected, found, said)


def _judge_name(expected: ExpectedName, found: Sequence[str], said: str) -> Finding:
    name, ours = expected.name, {expected.address, *expected.others}
    if dead := [address for address in found if address in expected.dead]:
        remedy = (
            "Run: relaycore connect hosts apply"
            if expected.address not in dead
            else "The reason is in: relaycore connect status"
        )
        text = f"{name} -> {', '.join(dead)}, where this forward does not listen"
        return Finding("fail", "redirect", text, remedy, exit_code=_NOT_REDIRECTED)
    if found and ours.issuperset(found):
        return Finding("ok", "redirect", f"{name} -> {', '.join(found)}")
    if expected.address in found:
        others = ", ".join(other for other in found if other not in ours)
        text = f"{name} -> {expected.address}, and {others} as well: programs may take either"
    else:
        text = f"{name} -> NOT redirected ({'it leads to ' + ', '.join(found) if found else said})"
    if expected.other_way:
        remedy = "For programs that look the name up: relaycore connect hosts apply"
        return Finding("warn", "redirect", f"{text}; {expected.other_way}", remedy)
    remedy = "Run: relaycore connect hosts apply; or start the program with: relaycore run -- PROGRAM"
    return Finding("fail", "redirect", text, remedy, exit_code=_NOT_REDIRECTED)


def firewall_list(access: RelayAccess, targets: Iterable[Target]) -> Finding:
    """Where this entry connects to, all of it: what a firewall has to let out."""
    url = parse_ws_url(access.connection_string.base_url)
    relay, proxy = str(Target(url.host, url.port)), access.proxy
    way = f"TCP {relay}" if proxy is None else f"TCP {proxy.host}:{proxy.port} (the proxy to {relay})"
    ways = [way, *(f"TCP {target}" for target in targets if not target.path)]
    return Finding("ok", "firewall", "a firewall has to let out: " + ", ".join(dict.fromkeys(ways)))


# Reports -------------------------------------------------------------------------------------------------------------

_SECRETS: Final = (
    # What stands before a secret stays, so that a reader sees that there was one.
    re.compile(r"(SharedAccessKey\s*=\s*)(?!Name)[^;\s\"']+", re.IGNORECASE),
    re.compile(r"(SharedAccessSignature\s*=\s*)[^;\n\"']+", re.IGNORECASE),
    re.compile(r"(\bsig=)[^&\s;\"']+", re.IGNORECASE),
    re.compile(r"(sb-hc-(?:token|rid)=)[^&\s\"']+", re.IGNORECASE),
    re.compile(r"(://[^:@/\s\"']*:)[^@/\s\"']+(?=@)"),
    re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE),
    re.compile(
        r"(^\s*[\"']?(?:\w*key|token|password|secret|signature)[\"']?\s*[=:]\s*)[\"'][^\"'\n]+[\"']", re.I | re.M
    ),
    re.compile(r"(\binline\s*=\s*)[\"'][^\"'\n]+[\"']", re.IGNORECASE),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)[\s\S]*?(?=-----END|\Z)"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Take secrets out of a text: those that are given, and whatever looks like one."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if secret:
            text = text.replace(secret, _HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{_HIDDEN}", text)
    return text


def bundle(findings: Iterable[Finding], sections: Mapping[str, str], secrets: Iterable[str] = ()) -> str:
    """Return a report to be shown to others.

    Args:
      sections: more of it, by heading: settings, status, events, versions.
      secrets: known ones, to be taken out wherever they stand.
    """
    lines = ["findings", "--------"]
    for finding in findings:
        took = f"  [{finding.seconds * 1000:.0f} ms]" if finding.seconds is not None else ""
        lines.append(f"{finding.level:<4} {finding.step}: {finding.text}{took}")
        if finding.remedy:
            lines.append(f"     {finding.remedy}")
    for heading, text in sections.items():
        lines += ["", heading, "-" * len(heading), text.rstrip()]
    return redact("\n".join(lines) + "\n", secrets)
