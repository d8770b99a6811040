"""Proxies that are installed as packages of the system: HAProxy and nginx, passing TCP, WebSocket or requests."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ..loadgen import HTTP, Route
from ..processes import BenchError
from ..toolchain import find_command
from .base import Stage, free_port, topology

# ---- HAProxy -------------------------------------------------------------------------------------------------------

HAPROXY = find_command("haproxy")


def _haproxy_missing() -> str | None:
    return None if HAPROXY else "haproxy is not installed (apt-get install haproxy)"


def _haproxy_version() -> str:
    answer = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True)
    return answer.stdout.split(" - ")[0].removeprefix("HAProxy version ").split()[0]


def haproxy_config(
    listening: int, far_port: int, *, mode: str = "tcp", tuning: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """One frontend, one server; everything that is not said here is as HAProxy has it by default.

    Args:
      listening: descriptor of the socket that it accepts from.
      tuning: lines for all of HAProxy.
      options: lines for what it carries.
    """
    lines = [
        "global",
        "  nbthread 1",
        "  maxconn 9000",
        *(f"  {line}" for line in tuning),
        "defaults",
        f"  mode {mode}",
        "  timeout connect 5s",
        "  timeout client 1h",
        "  timeout server 1h",
        "  timeout tunnel 1h",
        *(f"  {line}" for line in options),
        "listen bench",
        f"  bind fd@{listening}",
        f"  server far 127.0.0.1:{far_port}",
    ]
    return "\n".join(lines) + "\n"


def _open_haproxy(
    stage: Stage, *, far: str = "server", mode: str = "tcp", tuning: Sequence[str] = (), options: Sequence[str] = ()
) -> Route:
    server, ready = stage.load(far)
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        config = stage.directory / "haproxy.cfg"
        config.write_text(haproxy_config(listening.fileno(), ready["port"], mode=mode, tuning=tuning, options=options))
        port = listening.getsockname()[1]
        proxy = stage.run([str(HAPROXY), "-db", "-q", "-f", str(config)], pass_fds=[listening.fileno()])
        # Connections queue on our socket until it serves them; only a refused configuration must be seen.
        time.sleep(0.3)
        if proxy.poll() is not None:
            raise BenchError(f"haproxy did not start:\n{stage.log_tail()}")
    return Route("127.0.0.1", port, "/bench", under_test=(proxy.pid,), load=(server.pid,), http=(port, "/bench"))


@topology("haproxy", "HAProxy passing TCP, one thread", missing=_haproxy_missing, version=_haproxy_version)
def haproxy(stage: Stage) -> Route:
    return _open_haproxy(stage)


# What was tried, in rounds side by side with HAProxy 2.6: buffers of 64, 128 and 256 KiB; splicing when HAProxy
# thinks it fit, and always; pipes of 64 KiB, 256 KiB and 1 MiB, one of them with larger buffers too; and with buffers
# of 64 KiB a higher recv_enough, no room for rewriting, fewer events at once. Against the defaults, buffers of 256
# KiB double bulk and echo at about a third of the CPU time, and a small message costs at most a tenth more; smaller
# buffers do less, and the last three change nothing. Splicing always moves bulk as fast for 10 to 25 % less CPU time
# and keeps the ping beside it several times shorter, but a small message costs 25 % more and echo is no faster.
# Splicing when fit is no better than the defaults. The machine was not quiet: trust the CPU times more than the
# rates.


@topology(
    "haproxy-tuned",
    "HAProxy passing TCP, one thread, 256 KiB buffers: the best of what was tried",
    missing=_haproxy_missing,
    version=_haproxy_version,
)
def haproxy_tuned(stage: Stage) -> Route:
    return _open_haproxy(stage, tuning=["tune.bufsize 262144"])


@topology(
    "haproxy-splice",
    "HAProxy passing TCP inside the kernel, one thread, 256 KiB pipes",
    missing=_haproxy_missing,
    version=_haproxy_version,
    by_default=False,
)
def haproxy_splice(stage: Stage) -> Route:
    # Fewer pipes than by default, or it asks for more open files than many systems allow.
    return _open_haproxy(
        stage,
        tuning=["tune.pipesize 262144", "maxpipes 400"],
        options=["option splice-request", "option splice-response"],
    )


@topology(
    "haproxy-http",
    "HAProxy in HTTP mode, one thread, connections kept alive on both sides",
    missing=_haproxy_missing,
    version=_haproxy_version,
    carries=(HTTP,),
)
def haproxy_http(stage: Stage) -> Route:
    return _open_haproxy(stage, far="origin", mode="http")


@topology(
    "haproxy-websocket",
    "HAProxy in HTTP mode, one thread, passing on what an Upgrade began",
    missing=_haproxy_missing,
    version=_haproxy_version,
    by_default=False,
)
def haproxy_websocket(stage: Stage) -> Route:
    return _open_haproxy(stage, mode="http")


# ---- nginx ---------------------------------------------------------------------------------------------------------

NGINX = find_command("nginx")


def _nginx_build() -> str:
    return subprocess.run([str(NGINX), "-V"], capture_output=True, text=True, check=True).stderr


def _nginx_version() -> str:
    return _nginx_build().splitlines()[0].rpartition("/")[2].split()[0]


def stream_module(build: str) -> Path | None:
    """The file to load before nginx knows ``stream``, by what ``nginx -V`` says; nothing where it is built in.

    Raises:
      LookupError: this nginx has no such module.
    """
    if "--with-stream=dynamic" in build.split():
        directory = re.search(r"--modules-path=(\S+)", build) or re.search(r"--prefix=(\S+)", build)
        if directory is None:
            raise LookupError("nginx does not say where its modules are")
        return Path(directory[1]) / "ngx_stream_module.so"
    if "--with-stream" not in build.split():
        raise LookupError("this nginx is built without its stream module")
    return None


def _nginx_missing() -> str | None:
    return None if NGINX else "nginx is not installed (apt-get install nginx)"


def _nginx_stream_missing() -> str | None:
    if NGINX is None:
        return "nginx is not installed (apt-get install nginx libnginx-mod-stream)"
    try:
        module = stream_module(_nginx_build())
    except LookupError as error:
        return str(error)
    if module is not None and not module.exists():
        return "nginx lacks its stream module (apt-get install libnginx-mod-stream)"
    return None


def _open_nginx(stage: Stage, head: Sequence[str], block: Sequence[str], port: int, load: int) -> Route:
    """One worker, which is the process itself: a master would only wait beside it."""
    config = stage.directory / "nginx.conf"
    lines = [
        *head,
        "daemon off;",
        "master_process off;",
        "worker_rlimit_nofile 20000;",
        f"pid {stage.directory}/nginx.pid;",
        "error_log stderr error;",
        "events { worker_connections 9000; }",
        *block,
    ]
    config.write_text("\n".join(lines) + "\n")
    log = stage.directory / "nginx-early.log"
    proxy = stage.run([str(NGINX), "-e", str(log), "-p", str(stage.directory), "-c", str(config)])
    stage.wait_listening(port, proxy, "nginx")
    return Route("127.0.0.1", port, "/bench", under_test=(proxy.pid,), load=(load,))


@topology("nginx", "nginx passing TCP, one worker", missing=_nginx_stream_missing, version=_nginx_version)
def nginx(stage: Stage) -> Route:
    server, ready = stage.load("server")
    port, module = free_port(), stream_module(_nginx_build())
    head = [f"load_module {module};"] if module else []
    target = f"proxy_pass 127.0.0.1:{ready['port']}; proxy_timeout 1h;"
    block = [f"stream {{ server {{ listen 127.0.0.1:{port} backlog=4096; {target} }} }}"]
    return _open_nginx(stage, head, block, port, server.pid)


@topology(
    "nginx-websocket",
    "nginx passing on what an Upgrade began, one worker",
    missing=_nginx_missing,
    version=_nginx_version,
    by_default=False,
)
def nginx_websocket(stage: Stage) -> Route:
    server, ready = stage.load("server")
    port = free_port()
    scratch = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    block = [
        "http {",
        "access_log off;",
        *(f"{name}_temp_path {stage.directory}/{name};" for name in scratch),
        f"server {{ listen 127.0.0.1:{port} backlog=4096;",
        f"location / {{ proxy_pass http://127.0.0.1:{ready['port']}; proxy_http_version 1.1;",
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;",
        "proxy_read_timeout 1h; proxy_send_timeout 1h; } } }",
    ]
    return _open_nginx(stage, [], block, port, server.pid)
