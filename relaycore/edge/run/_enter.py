"""Becomes the program of ``relaycore run``: makes namespaces, opens sockets in them, then executes the program.

Started as a script, ``python -I -S _enter.py FD PROGRAM [ARGUMENT ...]``, with nothing but the standard library: it
runs once before each program and must be quick. FD is a stream socket. Requests are JSON objects, one to a line and
as long as they need to be, answered by ``{"ok": true}`` or ``{"ok": false, "step": TEXT, "errno": NUMBER}``:

    {"do": "enter", "network": BOOL, "over": [[SOURCE, TARGET], ...], "silence": [SOCKET, ...]}
                                                                                  "alone" in the answer: see below
    {"do": "listen", "kind": "tcp" | "udp", "host": ADDRESS, "port": NUMBER}      the answer carries the descriptor
    {"do": "execute", "environ": {NAME: TEXT}}                                    answered only if it fails

Facts about user namespaces, and what they mean for us:

- Whoever makes one has every capability in it until the next ``execve``; a user that is not 0 loses them there. So one
  process makes it, mounts, listens on low ports, and then *becomes* the program: no helper could do it from outside,
  and the program has no capability left.
- The namespace knows the users that are mapped. The program keeps its own number, so the files that it makes are its
  own; an unprivileged process may map no other one. So nothing that the program starts can be another user: this one
  is alone.
- ``setgroups`` has to be given up before an unprivileged process may map its group (user_namespaces(7)). The groups
  stay in force and are shown as nobody's.
- Root needs none, and would lose the right to files of other users in one. It makes the other namespaces directly, and
  a user namespace only where a container has taken that right away.
- Mounts made in a namespace of ours go nowhere else. Those of the system still come in (slave propagation), as a memory
  stick put in later should be seen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from typing import Any, Final, NoReturn

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1

_CANNOT_EXECUTE: Final = 126
_NOT_FOUND: Final = 127
"""Exit codes as shells use them."""


class _Failed(Exception):
    def __init__(self, step: str, number: int) -> None:
        super().__init__(step)
        self.step = step
        self.number = number


class _Libc:
    """The two system calls that Python 3.11 has no name for."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mount.argtypes = (
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_ulong,
            ctypes.c_char_p,
        )

    def unshare(self, flags: int) -> int:
        """Returns: 0, or an errno."""
        return 0 if self._libc.unshare(ctypes.c_int(flags)) == 0 else ctypes.get_errno()

    def mount(self, source: str, target: str, flags: int) -> None:
        if self._libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None) != 0:
            number = ctypes.get_errno()
            raise _Failed(f"mount over {target}" if flags & _MS_BIND else "mount", number)


def _enter(request: dict[str, Any]) -> bool:
    """Returns: whether no other user than this one exists from here on."""
    libc = _Libc()
    is_alone = False
    user, group = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNS | (_CLONE_NEWNET if request["network"] else 0)
    number = libc.unshare(flags) if user == 0 else errno.EPERM
    if number == errno.EPERM:
        number = libc.unshare(flags | _CLONE_NEWUSER)
        if number == 0:
            is_alone = True
            _write("setgroups", "deny")
            _write("uid_map", f"{user} {user} 1")
            _write("gid_map", f"{group} {group} 1")
    if number != 0:
        raise _Failed("unshare", number)
    libc.mount("none", "/", _MS_REC | _MS_SLAVE)
    for source, target in request["over"]:
        libc.mount(source, target, _MS_BIND)
    for target in request["silence"]:
        # Whoever connects to a device is refused, as if nobody served the socket. It need not be there.
        if os.path.exists(target):
            libc.mount(os.devnull, target, _MS_BIND)
    if request["network"]:
        _raise_loopback()
    return is_alone


def _write(name: str, text: str) -> None:
    try:
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise _Failed(f"write to /proc/self/{name}", error.errno or 0) from error


def _raise_loopback() -> None:
    """A new network has a loopback interface that is down; its addresses come when it goes up."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
            flags = struct.unpack("16sh14x", answer)[1]
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    except OSError as error:
        raise _Failed("raise the loopback interface", error.errno or 0) from error


def _listen(request: dict[str, Any]) -> socket.socket:
    host, port = request["host"], request["port"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if request["kind"] == "udp" else socket.SOCK_STREAM
    try:
        made = socket.socket(family, kind)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        if kind == socket.SOCK_STREAM:
            made.listen(socket.SOMAXCONN)
    except OSError as error:
        raise _Failed(f"listen on {host} port {port}", error.errno or 0) from error
    return made


def _execute(request: dict[str, Any], argv: list[str]) -> NoReturn:
    # The interpreter ignores these two, and a program would inherit that.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    environ = {**os.environ, **request["environ"]}
    try:
        os.execvpe(argv[0], argv, environ)
    except OSError as error:
        raise _Failed("execute", error.errno or 0) from error


def main(control: socket.socket, argv: list[str]) -> int:
    """Serve requests until one of them turns this process into the program.

    Returns: an exit code, when whoever asked has gone or the program cannot be executed.
    """
    for line in control.makefile("rb"):
        if not line.endswith(b"\n"):  # whoever asked has gone
            break
        request = json.loads(line)
        fds: list[int] = []
        made = None
        answer: dict[str, Any] = {"ok": True}
        try:
            match request["do"]:
                case "enter":
                    answer["alone"] = _enter(request)
                case "listen":
                    made = _listen(request)
                    fds.append(made.fileno())
                case "execute":
                    _execute(request, argv)
        except _Failed as failed:
            answer = {"ok": False, "step": failed.step, "errno": failed.number}
        try:
            socket.send_fds(control, [json.dumps(answer).encode() + b"\n"], fds)
        except BrokenPipeError:
            break
        if made is not None:
            made.close()
        if request["do"] == "execute":
            return _NOT_FOUND if answer["errno"] in (errno.ENOENT, errno.ENOTDIR) else _CANNOT_EXECUTE
    return 1


def _start() -> NoReturn:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # to end without a word, as the program would
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    with control:
        sys.exit(main(control, sys.argv[2:]))


if __name__ == "__main__":
    _start()
