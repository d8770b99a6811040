"""Findings of an examination, as lines for people, and what a manager's answers mean as findings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from ...edge.config.settings import METADATA, HcmConnection, LimitSettings, Profile
from ...edge.diagnose.steps import Finding
from ...edge.hcm.status import ConnectionStatus, RelayLeg, TargetCheck
from ..exits import ExitCode
from .words import clean, size, times

__all__ = [
    "exit_code_of",
    "finding_lines",
    "finding_of_limits",
    "finding_of_listening",
    "findings_of_checks",
    "needs_metadata",
]

_WORTH_TELLING_S: Final = 0.05
"""Seconds of waiting for a rate, of all connections together, below which nobody has noticed it."""

_EXIT_CODES = {RelayLeg.UNAUTHORIZED: ExitCode.AUTHORIZATION, RelayLeg.NOT_FOUND: ExitCode.NOT_FOUND}


def finding_lines(finding: Finding, width: int = 64) -> list[str]:
    """Return one line, and one for the remedy where there is one."""
    text = clean(finding.text)
    if finding.seconds is not None:
        text = f"{text:<{width}} {finding.seconds * 1000:6.0f} ms"
    lines = [f" {finding.level:<4} {text}".rstrip()]
    if finding.remedy:
        lines.append(f"      {clean(finding.remedy)}")
    return lines


def exit_code_of(findings: Iterable[Finding]) -> int:
    """Return the code of the first failure; a warning is none.

    A name that does not lead here counts least: programs may be led otherwise, as by ``relaycore run``, and a way that
    is broken is broken for all of them.
    """
    codes = [finding.exit_code or 1 for finding in findings if finding.level == "fail"]
    return next((code for code in codes if code != ExitCode.NOT_REDIRECTED), codes[0] if codes else 0)


def finding_of_listening(status: ConnectionStatus) -> Finding:
    """Return whether this manager listens now."""
    if status.relay_leg == RelayLeg.CONNECTED:
        total = max(status.listeners_total or 0, status.listeners_here)
        return Finding(
            "ok", "listening", f"listening ({times(total, 'listener')} now, {status.listeners_here} of them here)"
        )
    if status.relay_leg == RelayLeg.PAUSED:
        return Finding("ok", "listening", "paused: it does not listen until it is resumed")
    text = f"not listening: {status.status} {status.detail}".rstrip()
    if status.relay_error:
        text += f": {status.relay_error}"
    return Finding(
        "fail",
        "listening",
        text,
        remedy="It goes on trying; see: relaycore hcm status",
        exit_code=_EXIT_CODES.get(RelayLeg(status.relay_leg), ExitCode.CONNECTION),
    )


def finding_of_limits(limits: LimitSettings, status: ConnectionStatus | None) -> Finding:
    """Return which limits count for a connection, and whether senders have met them; None while nothing runs."""
    counts = []
    if limits.max_open:
        more = f" ({limits.queue} more wait up to {limits.queue_timeout_s:g} s)" if limits.queue else ""
        counts.append(f"{times(limits.max_open, 'connection')}{more}")
    if limits.per_sender_open:
        counts.append(f"{limits.per_sender_open} of one sender")
    rates = ((limits.rate_in, "in"), (limits.rate_out, "out"))
    counts += [f"{_rate(rate)} {way}" for rate, way in rates if rate]
    text = f"limits: at most {', '.join(counts)}" if counts else "limits: none are set"
    if status is None:
        return Finding("ok", "limits", f"{text}; only a running daemon knows whether senders meet them")
    met = [f"{times(count, 'sender')} refused because of {name}" for name, count in status.limited.items() if count]
    waited = ((status.throttled_in_s, "rate_in"), (status.throttled_out_s, "rate_out"))
    slowed = [
        f"connections waited {seconds:.1f} s for {name}" for seconds, name in waited if seconds >= _WORTH_TELLING_S
    ]
    if counts or met or slowed:
        text += f"; since the start {', '.join([*met, *slowed]) or 'nobody has met one'}"
    if not met:
        return Finding("ok", "limits", text)
    remedy = "Raise them (hcm.connection.limits) if the endpoint bears more; who is there says: relaycore hcm show NAME"
    return Finding("warn", "limits", text, remedy.replace("NAME", status.name))


def _rate(bytes_a_second: int) -> str:
    shown = size(bytes_a_second)
    return f"{shown}B/s" if shown[-1].isalpha() else f"{shown} B/s"


def needs_metadata(connection: HcmConnection) -> bool:
    """Return whether it leads where the hybrid connection's own text says."""
    return connection.profile is Profile.RAW and connection.targets == METADATA


def findings_of_checks(
    checks: Sequence[TargetCheck], name: str, *, level: Literal["warn", "fail"] = "warn"
) -> list[Finding]:
    """Return what dialling each target came to, `level` for those that do not answer. One that does is enough for
    connections to get through, and makes it a warning."""
    any_up = any(check.is_up for check in checks)
    if any_up:
        remedy = f"Senders go to the other endpoints meanwhile. Then: relaycore hcm test {name}"
    elif any(check.kind == "no-endpoint" for check in checks):
        remedy = (
            "Senders are refused until it is. Write it at the relay (relaycore entity update --user-metadata), or name"
            f" it in the settings (endpoint), then: relaycore hcm test {name}"
        )
    else:
        remedy = (
            "Senders are refused until the endpoint answers. Start the service or check its firewall, then:"
            f" relaycore hcm test {name}"
        )
    return [
        Finding("ok", "endpoint", f"endpoint {check.target}: {check.text}")
        if check.is_up
        else Finding("warn" if any_up else level, "endpoint", check.text, remedy, exit_code=ExitCode.ENDPOINT_DOWN)
        for check in checks
    ]
