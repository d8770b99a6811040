"""The variables that lead a program to a proxy.

Facts: there is no standard. curl reads ``http_proxy`` in small letters only, since a web server hands the header
``Proxy`` of its visitors to scripts as ``HTTP_PROXY``; others read capitals only, so both are set. ``ALL_PROXY`` is the
one for protocols without a variable of their own; ``socks5h`` leaves looking the name up to the proxy, which is the
point here. Java reads none, but takes options from ``JAVA_TOOL_OPTIONS``, and says so on standard error. Node heeds the
variables from version 24 on, and only if told to.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["proxy_variables"]


def proxy_variables(host: str, port: int, environ: Mapping[str, str], *, bypass: str = "") -> dict[str, str]:
    """The variables for a proxy port that speaks SOCKS5 and HTTP.

    Args:
      environ: what is set already; Java's options are added to, the others replaced.
      bypass: for ``NO_PROXY``.
    """
    http, socks = f"http://{host}:{port}", f"socks5h://{host}:{port}"
    urls = {"http_proxy": http, "https_proxy": http, "ws_proxy": http, "wss_proxy": http, "all_proxy": socks}
    java = f"-DsocksProxyHost={host} -DsocksProxyPort={port}"
    return {
        **urls,
        **{name.upper(): value for name, value in urls.items()},
        "no_proxy": bypass,
        "NO_PROXY": bypass,
        "NODE_USE_ENV_PROXY": "1",
        "JAVA_TOOL_OPTIONS": f"{environ.get('JAVA_TOOL_OPTIONS', '')} {java}".strip(),
    }
