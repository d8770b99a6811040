"""The way of a TCP client through ``connect``, relay and ``hcm`` to a TCP server, and what others put between the two.

All processes of a chain are under test and share one core, as the halves of a tunnel do. Nothing is encrypted but with
OpenSSH, which always encrypts.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

from ..loadgen import Route
from ..processes import BenchError
from .base import Stage, free_port, topology
from .proxies import HAPROXY, _haproxy_missing, _haproxy_version, haproxy_config
from .relay import ENTITY, _relay_version


def _edge_missing() -> str | None:
    return None if sys.platform == "linux" else "the programs' own addresses need Linux"


@topology(
    "edge",
    "relaycore connect, relaycore serve and relaycore hcm, plain",
    missing=_edge_missing,
    version=_relay_version,
    by_default=False,
)
def edge(stage: Stage) -> Route:
    far, ready = stage.load("server")
    relay, announced = stage.run_python(
        "bench.relays.relay", "--entity", ENTITY, '--set=engine.mover="engine"', "--set=engine.threads=1"
    )
    key, settings, port = stage.directory / "key", stage.directory / "relaycore.toml", free_port()
    key.touch(mode=0o600)
    key.write_text(announced["key"])
    own = f'name = "{ENTITY}"\nkey_name = "{announced["key_name"]}"\nkey = {{ file = "{key}" }}\n'
    settings.write_text(
        f'[relay.bench]\nendpoint = "sb://127.0.0.1:{announced["port"]}/"\nemulator = true\n'
        f'[[hcm.connection]]\n{own}endpoint = "127.0.0.1:{ready["port"]}"\n'
        f'[[connect.forward]]\n{own}hosts = ["bench.invalid"]\nport = {port}\nlisten = ["127.0.0.1:{port}"]\n'
    )
    environment = {
        "RELAYCORE_CONFIG": str(settings),
        "XDG_RUNTIME_DIR": str(stage.directory),
        "XDG_STATE_HOME": str(stage.directory),
    }
    programs = [
        stage.run([sys.executable, "-m", "relaycore", name, "run"], environment=environment)
        for name in ("hcm", "connect")
    ]
    stage.wait_listening(port, programs[1], "relaycore connect")
    _wait_answering(stage, port)
    return Route("127.0.0.1", port, "/bench", (relay.pid, *(each.pid for each in programs)), (far.pid,))


def _wait_answering(stage: Stage, port: int) -> None:
    """Return when what listens there has the far end behind it: a connection that is not reset at once."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port)) as trial:
            trial.sendall(b"GET / HTTP/1.1\r\n\r\n")  # the far end refuses what is no WebSocket
            trial.settimeout(5)
            try:
                trial.recv(1)
            except TimeoutError:
                raise BenchError(f"the far end gives no answer:\n{stage.log_tail()}") from None
            except ConnectionError:
                time.sleep(0.05)
                continue
            return
    raise BenchError(f"the chain does not get to the far end:\n{stage.log_tail()}")


@topology(
    "haproxy-x3",
    "three HAProxys in a row passing TCP, one thread and 256 KiB buffers each: a chain as long as connect, relay, hcm",
    missing=_haproxy_missing,
    version=_haproxy_version,
    by_default=False,
)
def haproxy_x3(stage: Stage) -> Route:
    server, ready = stage.load("server")
    pids, behind = [], int(ready["port"])
    for number in range(3):
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
            config = stage.directory / f"haproxy-{number}.cfg"
            config.write_text(haproxy_config(listening.fileno(), behind, tuning=["tune.bufsize 262144"]))
            behind = listening.getsockname()[1]
            proxy = stage.run([str(HAPROXY), "-db", "-q", "-f", str(config)], pass_fds=[listening.fileno()])
            time.sleep(0.3)  # connections queue on our socket; only a refused configuration must be seen
            if proxy.poll() is not None:
                raise BenchError(f"haproxy did not start:\n{stage.log_tail()}")
            pids.append(proxy.pid)
    return Route("127.0.0.1", behind, "/bench", under_test=tuple(pids), load=(server.pid,))


SSHD = which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _ssh_missing() -> str | None:
    return None if SSHD and which("ssh") else "OpenSSH is not installed (apt-get install openssh-server)"


def _ssh_version() -> str:
    return subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0].split("_")[-1]


@topology(
    "ssh",
    "ssh -L and sshd, which always encrypt; the ciphers are their own choice",
    missing=_ssh_missing,
    version=_ssh_version,
    by_default=False,
)
def ssh(stage: Stage) -> Route:
    server, ready = stage.load("server")
    folder, control, public = stage.directory, free_port(), free_port()
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{control}\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/id.pub\nPermitRootLogin yes\nMaxSessions 5000\nLogLevel ERROR\n"
    )
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    daemon = stage.run([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")])
    stage.wait_listening(control, daemon, "sshd")
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ExitOnForwardFailure=yes"]
    client = stage.run(
        ["ssh", "-F", "none", "-N", "-i", str(folder / "id"), "-p", str(control)]
        + [word for option in options for word in ("-o", option)]
        + ["-L", f"127.0.0.1:{public}:127.0.0.1:{ready['port']}", f"{getpass.getuser()}@127.0.0.1"]
    )
    stage.wait_listening(public, client, "ssh")
    _wait_answering(stage, public)
    pids = (client.pid, *_descendants(daemon.pid))
    return Route("127.0.0.1", public, "/bench", under_test=pids, load=(server.pid,))


def _descendants(pid: int) -> list[int]:
    """A process and all below it: sshd serves each connection in processes of its own."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(below for child in children for below in _descendants(child))]
