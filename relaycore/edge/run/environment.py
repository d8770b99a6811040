"""The variables that lead a program to a proxy.

Java reads none of the usual ones, but takes options from ``JAVA_TOOL_OPTIONS``, and says so on standard error. Node
heeds the usual ones from version 24 on, and only if told to.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..connect.proxy_port import proxy_environment

__all__ = ["proxy_variables"]


def proxy_variables(host: str, port: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for a proxy port that speaks SOCKS5 and HTTP.

    Args:
      environ: what is set already; Java's options are added to, the others replaced. So is the list of hosts that no
        proxy is asked for, which might hide our names.
    """
    java = f"-DsocksProxyHost={host} -DsocksProxyPort={port}"
    return {
        **proxy_environment(f"{host}:{port}"),
        "no_proxy": "",
        "NO_PROXY": "",
        "NODE_USE_ENV_PROXY": "1",
        "JAVA_TOOL_OPTIONS": f"{environ.get('JAVA_TOOL_OPTIONS', '')} {java}".strip(),
    }
