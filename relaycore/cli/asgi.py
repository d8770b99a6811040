"""``relaycore asgi``: an ASGI application, named as other servers have it named, serves a hybrid connection.

Tasks: one prints what the listener tells about itself, one waits for signals, the rest is `serve_asgi`. SIGINT and
SIGTERM end the command in order: what is under way is finished, the listener deregisters, the application shuts down.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import trio

from ..client.asgi import DEFAULT_GRACE_S, DEFAULT_MAX_MESSAGE_BYTES, serve_asgi
from ..client.listener import DEFAULT_MAX_CONCURRENT, Listener
from ..errors import ConfigError
from ..trace import LogWriter, redact
from .exits import ExitCode
from .online import STATUS_LINES, public_url, report
from .options import Seconds, listener_options, need_connection_string, run, trust
from .send import find_token

if TYPE_CHECKING:
    from ..client.asgi_events import AsgiApp

__all__ = ["command", "load_app"]

_SAME_SIGNAL_S: Final = 0.5
"""A terminal and a shell may both pass on one Ctrl-C; a second wish comes later than that."""


@click.command("asgi")
@click.argument("app", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--path", metavar="PATH", help="The hybrid connection, where the connection string names none, or instead."
)
@click.option(
    "--root-path", metavar="PATH", help="The application's root_path.  [default: / and the hybrid connection]"
)
@click.option(
    "--app-dir",
    metavar="DIR",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where to look for MODULE first.",
)
@click.option("--factory", is_flag=True, help="ATTRIBUTE is a function that makes the application.")
@click.option(
    "--lifespan",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether the application is told of start and end; 'on': it has to take part.",
)
@click.option(
    "--limit-concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_CONCURRENT,
    show_default=True,
    help="Requests, and likewise WebSockets, at one time; further ones get 503.",
)
@click.option(
    "--timeout-graceful-shutdown",
    "grace_s",
    metavar="SECONDS",
    type=Seconds(min=0),
    default=DEFAULT_GRACE_S,
    show_default=True,
    help="How long what is under way may take at the end.",
)
@click.option(
    "--ws-max-size",
    metavar="BYTES",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_MESSAGE_BYTES,
    show_default=True,
    help="Bound on one message of a WebSocket.",
)
@listener_options
def command(
    app: str,
    path: str | None,
    root_path: str | None,
    app_dir: Path,
    factory: bool,
    lifespan: Literal["auto", "on", "off"],
    limit_concurrency: int,
    grace_s: float,
    ws_max_size: int,
    keep_trying: bool,
    quiet: bool,
    token_file: str | None,
    connection_string_file: str | None,
    connection_string_dash: str | None,
    cafile: Path | None,
) -> None:
    """Serve an ASGI application, HTTP and WebSockets, through the relay.

    MODULE:ATTRIBUTE is as for other ASGI servers: main:app is the object app in main.py. It runs under Trio; frameworks
    on anyio, such as Starlette and FastAPI, do so as they are. With --verbose each request is a line.
    """
    connection_string = need_connection_string(connection_string_file, connection_string_dash)
    token = find_token(token_file, connection_string)
    ssl_context = trust(cafile)
    serve = partial(
        serve_asgi,
        load_app(app, app_dir, is_factory=factory),
        connection_string,
        path=path,
        token=token,
        ssl_context=ssl_context,
        root_path=root_path,
        max_concurrent=limit_concurrency,
        lifespan=lifespan,
        grace_s=grace_s,
        max_message_bytes=ws_max_size,
        wait_online=False,
    )
    writer = LogWriter(lambda line: click.echo(line, nl=False, err=True), queue_lines=STATUS_LINES)

    def say(text: str) -> None:
        if not quiet:
            writer.put_nowait(redact(f"relaycore: {' '.join(text.split())}"))

    def leave_at_once() -> None:
        writer.close()
        os._exit(ExitCode.INTERRUPTED)  # the end in order is out of reach of anything less

    url = public_url(connection_string, path or connection_string.entity_path or "")

    async def act() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as outer:
                work = trio.CancelScope()
                outer.start_soon(_heed, signals, work, say, leave_at_once)
                with work:
                    async with trio.open_nursery() as nursery:
                        listener: Listener = await nursery.start(serve)
                        await report(listener, url, say, keeps_trying=keep_trying)
                outer.cancel_scope.cancel()

    try:
        run(act)
    finally:
        writer.close()


async def _heed(
    signals: AsyncIterator[int], work: trio.CancelScope, say: Callable[[str], None], leave: Callable[[], None]
) -> None:
    stopping_since: float | None = None
    async for _ in signals:
        if stopping_since is None:
            stopping_since = trio.current_time()
            say("stopping: what is under way is finished; once more to leave at once")
            work.cancel()
        elif trio.current_time() - stopping_since >= _SAME_SIGNAL_S:
            leave()


# Finding the application ---------------------------------------------------------------------------------------------


def load_app(text: str, app_dir: Path, *, is_factory: bool = False) -> AsgiApp:
    """Import an application.

    Args:
      text: ``module:attribute``, either of which may have dots.
      app_dir: goes to the front of the import path, and stays there: the application may import later.
      is_factory: call what is found, and take what it returns.

    Raises:
      ConfigError: there is none, with a hint at what was meant; or what is there fails, or is something else.
    """
    module_name, _, attribute = text.partition(":")
    if not all(module_name.split(".")) or not attribute:
        raise ConfigError(f"{text!r} is not MODULE:ATTRIBUTE{_hint(_as_module(text))}")
    if "/" in module_name or module_name.endswith(".py"):
        raise ConfigError(f"{module_name!r} is a file, not a module{_hint(_as_module(text))}")
    sys.path.insert(0, str(app_dir.resolve()))
    found = _find(_import(module_name, app_dir), attribute)
    if is_factory:
        if not callable(found):
            raise ConfigError(f"{text} is no function that makes an application: leave --factory out")
        try:
            found = found()
        except Exception as error:
            raise _failed(f"{text}()", error) from error
    _check(found, f"{text}()" if is_factory else text)
    app: AsgiApp = found
    return app


def _hint(*names: str) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _as_module(text: str) -> str:
    """What `text` might have been meant to be."""
    module, _, attribute = text.partition(":")
    return f"{module.removesuffix('.py').strip('./').replace('/', '.') or 'main'}:{attribute or 'app'}"


def _import(name: str, app_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(missing + "."):
            raise _failed(f"importing {name}", error) from error
        raise ConfigError(f"there is no module {missing!r} in {app_dir.resolve()}{_where(name, app_dir)}") from error
    except Exception as error:
        raise _failed(f"importing {name}", error) from error


def _where(name: str, app_dir: Path) -> str:
    """A hint at a module that was not found: another directory, or another spelling."""
    first = name.partition(".")[0]
    for below in sorted(path for path in app_dir.iterdir() if path.is_dir()):
        if (below / f"{first}.py").is_file() or (below / first / "__init__.py").is_file():
            return f"; there is one in {below.name}: --app-dir {below}, or {below.name}.{name}"
    near = difflib.get_close_matches(first, [module.name for module in pkgutil.iter_modules([str(app_dir)])], n=1)
    return _hint(*near)


def _find(module: ModuleType, attribute: str) -> Any:  # noqa: ANN401 - any object may be an application
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            near = difflib.get_close_matches(name, dir(found), n=1) or list(_apps_in(found))[:3]
            where = f"module {module.__name__}" if found is module else f"{module.__name__}:{attribute}"
            raise ConfigError(f"there is no {name!r} in {where}{_hint(*near)}") from error
    return found


def _apps_in(module: object) -> Iterable[str]:
    """Names of what might be an application: callable, asynchronous, and neither imported nor a class."""
    for name, value in vars(module).items() if hasattr(module, "__dict__") else ():
        call = value if inspect.isroutine(value) else getattr(value, "__call__", None)  # noqa: B004 - asked about below
        if not name.startswith("_") and not inspect.isclass(value) and inspect.iscoroutinefunction(call):
            yield name


def _check(app: Any, name: str) -> None:  # noqa: ANN401
    """Refuse what is certainly no ASGI application: it would fail at every request."""
    if not callable(app):
        raise ConfigError(f"{name} is no application, but of type {type(app).__name__}")
    if inspect.isclass(app) and not hasattr(app, "__await__"):
        raise ConfigError(f"{name} is a class; name an instance of it")
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return  # nothing is known about it
    if _takes(signature, 3):
        return
    if _takes(signature, 2):
        raise ConfigError(
            f"{name} takes two arguments, as WSGI applications do: an adapter such as a2wsgi makes ASGI of it"
        )
    hint = "; is it a function that makes one? Then give --factory" if _takes(signature, 0) else ""
    raise ConfigError(f"{name} is no ASGI application, which takes scope, receive and send{hint}")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _failed(what: str, error: Exception) -> ConfigError:
    """Say where it failed: the last line of the traceback that is not of the import system."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({error.filename}:{error.lineno})"
    return ConfigError(f"{what} failed: {type(error).__name__}: {error}{where}")
