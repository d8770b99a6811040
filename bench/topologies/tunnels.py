"""Tunnels: a server that senders dial, and a client beside the far end that dialled the server.

Both halves are under test and share the core, since a relay's listener does the work of the client half itself. Each
runs as it comes, but that nobody logs connections, and nothing is encrypted where that can be chosen. A runtime of
threads gets one, as everybody here gets one core; on that core more of them are no faster.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence

from ..loadgen import Route
from ..toolchain import PROGRAM
from .base import Stage, free_port, topology

ONE_GO_THREAD = {"GOMAXPROCS": "1"}
ONE_RUST_THREAD = {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "error"}

Arguments = Callable[[int], Sequence[str]]


def _open_tunnel(
    stage: Stage,
    name: str,
    *,
    control: int,
    server: Sequence[str],
    client: Arguments,
    public: int,
    environment: Mapping[str, str],
) -> Route:
    """Both halves of one tunnel, the second when the first listens.

    Args:
      control: the port where the halves meet.
      client: arguments of the second half, for the port of the far end.
      public: the port that senders dial; open when the halves have met.
    """
    far, ready = stage.load("server")
    first = stage.run(server, environment=environment)
    stage.wait_listening(control, first, f"{name}'s server")
    second = stage.run(client(ready["port"]), environment=environment)
    stage.wait_listening(public, second, f"{name}'s client")
    return Route("127.0.0.1", public, "/bench", under_test=(first.pid, second.pid), load=(far.pid,))


def _tunnel(name: str, about: str) -> Callable[[Callable[[Stage], Route]], Callable[[Stage], Route]]:
    program = PROGRAM[name]
    return topology(name, about, missing=program.missing, version=lambda: program.version, by_default=False)


@_tunnel("chisel", "chisel, a TCP tunnel in SSH in a WebSocket; it always encrypts")
def chisel(stage: Stage) -> Route:
    program, control, public = str(PROGRAM["chisel"].path("chisel")), free_port(), free_port()
    return _open_tunnel(
        stage,
        "chisel",
        control=control,
        server=[program, "server", "--host", "127.0.0.1", "--port", str(control), "--reverse"],
        client=lambda far: [
            program,
            "client",
            f"http://127.0.0.1:{control}",
            f"R:127.0.0.1:{public}:127.0.0.1:{far}",
        ],
        public=public,
        environment=ONE_GO_THREAD,
    )


@_tunnel("bore", "bore, a TCP tunnel with one more connection for each stream")
def bore(stage: Stage) -> Route:
    program, public = str(PROGRAM["bore"].path("bore")), free_port()
    ports = ["--min-port", str(public), "--max-port", str(public)]
    return _open_tunnel(
        stage,
        "bore",
        control=7835,  # it knows no other
        server=[program, "server", "--bind-addr", "127.0.0.1", *ports],
        client=lambda far: [
            *(program, "local", str(far), "--local-host", "127.0.0.1"),
            *("--to", "127.0.0.1", "--port", str(public)),
        ],
        public=public,
        environment=ONE_RUST_THREAD,
    )


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Tables of strings, numbers and booleans, which JSON writes alike."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]" if name else "", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


@_tunnel("rathole", "rathole, a TCP tunnel with one more connection for each stream, kept ready")
def rathole(stage: Stage) -> Route:
    program, control, public = str(PROGRAM["rathole"].path("rathole")), free_port(), free_port()
    token = secrets.token_hex(16)
    config = stage.directory / "rathole-server.toml"
    config.write_text(
        _toml(
            {
                "server": {"bind_addr": f"127.0.0.1:{control}", "default_token": token},
                "server.services.bench": {"bind_addr": f"127.0.0.1:{public}"},
            }
        )
    )

    def client(far: int) -> Sequence[str]:
        config = stage.directory / "rathole-client.toml"
        config.write_text(
            _toml(
                {
                    "client": {"remote_addr": f"127.0.0.1:{control}", "default_token": token},
                    "client.services.bench": {"local_addr": f"127.0.0.1:{far}"},
                }
            )
        )
        return [program, "--client", str(config)]

    return _open_tunnel(
        stage,
        "rathole",
        control=control,
        server=[program, "--server", str(config)],
        client=client,
        public=public,
        environment=ONE_RUST_THREAD,
    )


@_tunnel("frp", "frp, a TCP tunnel that multiplexes all streams over one connection; its TLS is off")
def frp(stage: Stage) -> Route:
    control, public, token = free_port(), free_port(), secrets.token_hex(16)
    quiet: dict[str, object] = {"auth.token": token, "log.level": "error", "log.to": "console"}
    config = stage.directory / "frps.toml"
    loopback = {"bindAddr": "127.0.0.1", "bindPort": control, "proxyBindAddr": "127.0.0.1"}
    config.write_text(_toml({"": {**loopback, **quiet}}))

    def client(far: int) -> Sequence[str]:
        config = stage.directory / "frpc.toml"
        server = {"serverAddr": "127.0.0.1", "serverPort": control, "transport.tls.enable": False}
        proxy = {"name": "bench", "type": "tcp", "localIP": "127.0.0.1", "localPort": far, "remotePort": public}
        config.write_text(_toml({"": {**server, **quiet}, "[proxies]": proxy}))
        return [str(PROGRAM["frp"].path("frpc")), "-c", str(config)]

    return _open_tunnel(
        stage,
        "frp",
        control=control,
        server=[str(PROGRAM["frp"].path("frps")), "-c", str(config)],
        client=client,
        public=public,
        environment=ONE_GO_THREAD,
    )
