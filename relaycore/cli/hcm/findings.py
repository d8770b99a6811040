"""Findings of an examination, as lines for people, and what a manager's answers mean as findings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from ...edge.config.settings import METADATA, HcmConnection, Profile
from ...edge.diagnose.steps import Finding
from ...edge.hcm.status import ConnectionStatus, RelayLeg, TargetCheck
from ..exits import ExitCode
from .words import clean, times

__all__ = ["exit_code_of", "finding_lines", "finding_of_listening", "findings_of_checks", "needs_metadata"]

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
