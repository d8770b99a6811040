"""Texts that lead a system's resolver to the stub. Pure functions.

Every text is for the configured names alone: what the system does with other names stays as it is. Names come from
settings and relays, hence from others; only those that are names, letter by letter, get into a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["SYSTEMS", "domains_of", "setup_text"]

SYSTEMS: Final = ("systemd-resolved", "networkmanager", "dnsmasq", "unbound", "coredns", "macos", "windows")


def domains_of(hosts: Iterable[str]) -> list[str]:
    """The domains to route: names, and what stands behind ``*.``; without those that another one covers."""
    from ...edge.connect.hosts import plain_name

    found = {name for host in hosts if (name := plain_name(host.removeprefix("*."))) is not None}
    return sorted(name for name in found if not any(name.endswith(f".{other}") for other in found))


def setup_text(system: str, host: str, port: int, domains: Iterable[str]) -> str:
    """The text for one of `SYSTEMS`, with where it goes and what to do then in its comments.

    Args:
      host, port: where the stub answers.
      domains: see `domains_of`.
    """
    domains = list(domains)
    match system:
        case "systemd-resolved":
            return _resolved(host, port, domains)
        case "networkmanager":
            return (
                "# /etc/NetworkManager/conf.d/relaycore.conf\n[main]\ndns=dnsmasq\n\n"
                "# /etc/NetworkManager/dnsmasq.d/relaycore.conf\n"
                + _dnsmasq(host, port, domains)
                + "# then: sudo systemctl reload NetworkManager\n"
            )
        case "dnsmasq":
            return (
                "# /etc/dnsmasq.d/relaycore.conf\n"
                + _dnsmasq(host, port, domains)
                + "# then: sudo systemctl restart dnsmasq\n"
            )
        case "unbound":
            return _unbound(host, port, domains)
        case "coredns":
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            blocks = [f"{domain}:53 {{\n    forward . {where}\n    cache 5\n}}\n" for domain in domains]
            return "# Corefile: before the block of '.'\n" + "".join(blocks)
        case "macos":
            files = [f"# /etc/resolver/{domain}\nnameserver {host}\nport {port}\ntimeout 2\n\n" for domain in domains]
            alias = f"# this system wants each loopback address by name: sudo ifconfig lo0 alias {host} up\n"
            return ("" if host in ("127.0.0.1", "::1") else alias) + "".join(files).rstrip("\n") + "\n"
        case "windows":
            return _windows(host, port, domains)
        case _:
            raise ValueError(f"no text for {system}")


def _resolved(host: str, port: int, domains: list[str]) -> str:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [
        "# /etc/systemd/resolved.conf.d/relaycore.conf",
        "[Resolve]",
        f"DNS={where}",
        f"Domains={' '.join(f'~{domain}' for domain in domains)}",
    ]
    if any("." not in domain for domain in domains):
        lines.append("ResolveUnicastSingleLabel=yes")
    lines += [
        "# then: sudo systemctl restart systemd-resolved; relaycore connect hosts check",
        "# systemd-resolved may ask the stub for other names as well. It refuses those, and the other servers answer.",
    ]
    return "\n".join(lines) + "\n"


def _dnsmasq(host: str, port: int, domains: list[str]) -> str:
    lines = [f"server=/{domain}/{host}#{port}" for domain in domains]
    # Answers in 127.0.0.0/8 look like rebinding; these directives make an exception and do no harm without the check.
    lines += [f"rebind-domain-ok=/{domain}/" for domain in domains]
    return "\n".join(lines) + "\n"


def _unbound(host: str, port: int, domains: list[str]) -> str:
    lines = ["# /etc/unbound/unbound.conf.d/relaycore.conf", "server:", "    do-not-query-localhost: no"]
    for domain in domains:
        # Answers in 127.0.0.0/8, without signatures, and maybe below a name such as home.arpa that unbound keeps local.
        lines += [
            f'    private-domain: "{domain}."',
            f'    domain-insecure: "{domain}."',
            f'    local-zone: "{domain}." transparent',
        ]
    for domain in domains:
        lines += ["forward-zone:", f'    name: "{domain}."', f"    forward-addr: {host}@{port}"]
    lines.append("# then: sudo unbound-checkconf && sudo systemctl reload unbound")
    return "\n".join(lines) + "\n"


def _windows(host: str, port: int, domains: list[str]) -> str:
    lines = ["# in a PowerShell of an administrator"]
    if port != 53:
        lines.append(f"# these rules know no ports: let the stub answer on {host}:53, not on port {port}")
    for domain in domains:
        for namespace in (domain, f".{domain}"):
            lines.append(f'Add-DnsClientNrptRule -Namespace "{namespace}" -NameServers "{host}" -Comment "relaycore"')
    lines.append("Clear-DnsClientCache")
    lines.append(
        "# to undo: Get-DnsClientNrptRule | Where-Object Comment -eq relaycore | Remove-DnsClientNrptRule -Force"
    )
    return "\n".join(lines) + "\n"
