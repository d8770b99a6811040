"""What a command's exit code says, and which error leads to which.

Codes from 10 to 15 are the ways in which ``serve`` may fail to start, so that a service manager or a script can tell a
busy port from a bad certificate without reading the message.
"""

from __future__ import annotations

import enum
import errno
import ssl
from collections.abc import Iterator
from typing import Final

from ..errors import (
    AuthorizationFailed,
    ConfigError,
    ConnectionLost,
    EndpointAlreadyExists,
    EndpointNotFound,
    NoListener,
    Refused,
    RelayError,
)

__all__ = ["ExitCode", "StartupError", "exit_code_for", "leaves"]


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1  # anything that has no code of its own
    USAGE = 2  # the command line is wrong; the code that shells and click use
    CONFIG = 3  # a setting, a connection string or a file is wrong
    AUTHORIZATION = 4  # 401, 403: no token, a bad one, or a right is missing
    CONNECTION = 5  # the relay could not be reached, or the connection broke
    NOT_FOUND = 6  # no such hybrid connection or rule, or nobody listens there
    ENDPOINT_DOWN = 7  # the endpoint behind a connection manager does not answer
    NOT_REDIRECTED = 8  # a configured name does not lead to the relay on this machine
    PORT = 9  # a local address cannot be bound: taken, or it needs a privilege
    PORT_IN_USE = 10
    PORT_PRIVILEGED = 11
    CERTIFICATE_UNREADABLE = 12
    CERTIFICATE_MISMATCH = 13
    STORE_LOCKED = 14
    STORE_UNUSABLE = 15
    EXISTS = 16  # the name is taken
    REFUSED = 17  # any other no: quota, server busy, timeout, rejected by the listener
    INTERRUPTED = 130  # 128 + SIGINT, as shells report it
    BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read our output has gone


class StartupError(ConfigError):
    """A way to fail that has an exit code of its own."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups, or the one that is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def exit_code_for(error: BaseException) -> ExitCode:
    """The code for one error that is no group."""
    match error:
        case StartupError():
            return error.exit_code
        case RelayError() if (code := getattr(error, "exit_code", None)) in _CODES:
            return ExitCode(code)  # the edge programs' own errors: they say with what to leave
        case ConfigError():
            return _config_code(error)
        case AuthorizationFailed():
            return ExitCode.AUTHORIZATION
        case EndpointNotFound() | NoListener():
            return ExitCode.NOT_FOUND
        case EndpointAlreadyExists():
            return ExitCode.EXISTS
        case Refused():
            return _REFUSED_BY_STATUS.get(error.http_status, ExitCode.REFUSED)
        case ConnectionLost() | ConnectionError() | TimeoutError():
            return ExitCode.CONNECTION
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.FAILED


_CODES: Final = frozenset(ExitCode) - {ExitCode.OK}

_REFUSED_BY_STATUS = {401: ExitCode.AUTHORIZATION, 403: ExitCode.AUTHORIZATION, 404: ExitCode.NOT_FOUND}


def _config_code(error: ConfigError) -> ExitCode:
    """What a start stumbled over, by the setting that is named and the error behind it."""
    cause = error.__cause__
    if error.key == "server.port" and isinstance(cause, OSError):
        if isinstance(cause, PermissionError):
            return ExitCode.PORT_PRIVILEGED
        if any(isinstance(leaf, OSError) and leaf.errno == errno.EADDRINUSE for leaf in leaves(cause)):
            return ExitCode.PORT_IN_USE
    if error.key in ("tls.cert", "tls.key") and cause is not None:
        if isinstance(cause, ssl.SSLError) and "KEY_VALUES_MISMATCH" in str(cause):
            return ExitCode.CERTIFICATE_MISMATCH
        return ExitCode.CERTIFICATE_UNREADABLE
    return ExitCode.CONFIG
