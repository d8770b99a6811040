"""What stands beside the forwards in the running program: the proxy port, the name server, the pages, the webhook. Each
is opened by its part of the settings, and anew when a reload has changed that part."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from ...edge.config.settings import (
    ConnectSettings,
    DnsSettings,
    MetricsSettings,
    ProxyPortSettings,
)
from ...edge.connect.forwarder import Forwarder
from ...edge.connect.status import ForwarderStatus, ForwardState
from ...errors import RelayError
from ...net.tasks import alone
from ..hcm.words import times

if TYPE_CHECKING:
    from ...edge.webhook import Webhooks

__all__ = ["Beside", "Counts", "Kept", "summary"]

T = TypeVar("T")


def summary(status: ForwarderStatus) -> str:
    """One line on how the forwards stand."""
    if not status.forwards:
        return "no forwards yet; add one with: relaycore connect add"
    count = sum(one.state is ForwardState.LISTENING for one in status.forwards)
    verb = "is" if len(status.forwards) == 1 else "are"
    return f"{count} of {times(len(status.forwards), 'forward')} {verb} listening"


@dataclass
class Counts:
    """What no forward counts."""

    proxy: Counter[tuple[str, str]] = field(default_factory=Counter)
    dns: Counter[str] = field(default_factory=Counter)
    reloads: Counter[str] = field(default_factory=lambda: Counter(ok=0, failed=0))
    webhook: Counter[str] = field(default_factory=Counter)


@dataclass
class Kept(Generic[T]):
    """One server that follows its settings.

    Args:
      what: its name, for people.
      read: its settings as they are now; None: there is to be none.
      open: a block in which it serves; gives its address.
      say: takes a line for people.
    """

    what: str
    read: Callable[[], T | None]
    open: Callable[[T], AbstractAsyncContextManager[str]]
    say: Callable[[str], None]
    _has_changed: trio.Event = field(default_factory=trio.Event)

    def look_again(self) -> None:
        """The settings may be others now. Not a checkpoint."""
        self._has_changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once it stands, or is not wanted.

        Raises:
          RelayError: it cannot be opened the first time. Later that is only said, and the next change tried.
        """
        is_first = True
        while True:
            self._has_changed = trio.Event()
            current = self.read()
            async with AsyncExitStack() as stack:
                if current is not None:
                    try:
                        shown = await stack.enter_async_context(self.open(current))
                    except (RelayError, OSError) as error:
                        if is_first:
                            raise
                        self.say(f"{self.what}: {error}")
                    else:
                        self.say(f"{self.what}: on {shown}")
                if is_first:
                    task_status.started()
                    is_first = False
                while self.read() == current:
                    await self._has_changed.wait()
                    self._has_changed = trio.Event()


class Beside:
    """All of them.

    Args:
      settings: those in force; asked again and again.
    """

    def __init__(
        self, forwarder: Forwarder, settings: Callable[[], ConnectSettings], counts: Counts, say: Callable[[str], None]
    ) -> None:
        self._forwarder = forwarder
        self._settings = settings
        self._counts = counts
        self._say = say
        self._webhooks: Webhooks | None = None
        self.kept = (
            Kept("proxy port", self._proxy, self._open_proxy_port, say),
            Kept("names", self._dns, self._open_dns, say),
            Kept("metrics and health", self._metrics, self._open_pages, say),
        )

    def look_again(self) -> None:
        """The settings may be others now. Not a checkpoint."""
        for one in self.kept:
            one.look_again()
        if self._webhooks is not None and self._webhooks.change(self._settings().webhook):
            self._say_webhook(self._webhooks)

    async def post_events(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Post events where the settings want them, until the forwarder has ended and the last ones are posted."""
        from ...edge.webhook import Webhooks

        self._webhooks = webhooks = Webhooks("connect", self._forwarder.events, self._counts.webhook)
        async with trio.open_nursery() as nursery:
            await nursery.start(webhooks.run, self._settings().webhook)
            self._say_webhook(webhooks)
            task_status.started()

    def _say_webhook(self, webhooks: Webhooks) -> None:
        if webhooks.shown:
            self._say(f"webhook: on {webhooks.shown}")

    async def wait_posted(self) -> None:
        """Wait until `post_events` has ended, if it ever began. A checkpoint."""
        await trio.lowlevel.checkpoint()
        if self._webhooks is not None:
            await self._webhooks.wait_ended()

    def _proxy(self) -> ProxyPortSettings | None:
        found = self._settings().proxy
        return found if found.listen is not None else None

    def _dns(self) -> tuple[DnsSettings, str] | None:
        found = self._settings().dns
        return (found, self._settings().pool) if found.listen else None

    def _metrics(self) -> MetricsSettings | None:
        found = self._settings().metrics
        return found if found.listen is not None else None

    def _offered(self) -> list[str]:
        return [str(target) for target in self._forwarder.targets()]

    @asynccontextmanager
    async def _open_proxy_port(self, settings: ProxyPortSettings) -> AsyncIterator[str]:
        from ...edge.connect.proxy_port import serve_proxy_port

        with alone():
            async with trio.open_nursery() as nursery:
                serve = partial(
                    serve_proxy_port,
                    settings,
                    self._forwarder.lookup,
                    self._forwarder.join,
                    offered=self._offered,
                    on_event=self._forwarder.note,
                    counts=self._counts.proxy,
                )
                yield (await nursery.start(serve)).shown
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _open_dns(self, settings: tuple[DnsSettings, str]) -> AsyncIterator[str]:
        from ...edge.connect.dns import serve_dns

        dns, pool = settings
        forwarder = self._forwarder
        serve = partial(
            serve_dns,
            dns,
            forwarder.redirections,
            pool=pool,
            excepted=forwarder.dialled_hosts,
            counts=self._counts.dns,
        )
        with alone():
            async with trio.open_nursery() as nursery:
                opened = await nursery.start(serve)
                yield ", ".join(found.shown for found in opened)
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _open_pages(self, settings: MetricsSettings) -> AsyncIterator[str]:
        from ...edge.control.http_status import Page, serve_pages
        from ...edge.control.metrics import CONTENT_TYPE, Tallies, forwarder_families, render

        def metrics() -> Page:
            tallies = Tallies()
            tallies.reloads = dict(self._counts.reloads)
            tallies.dns, tallies.proxy = self._counts.dns, self._counts.proxy
            tallies.webhook = self._counts.webhook
            return Page(render(forwarder_families(self._forwarder.status(), tallies)), content_type=CONTENT_TYPE)

        def ready() -> Page:
            status = self._forwarder.status()
            states = [one.state is ForwardState.LISTENING for one in status.forwards]
            is_ready = all(states) if settings.ready_when == "all" else any(states)
            return Page(f"{summary(status)}\n", 200 if is_ready else 503)

        pages = {"/metrics": metrics, "/healthz": lambda: Page("alive\n"), "/readyz": ready}
        assert settings.listen is not None
        with alone():
            async with trio.open_nursery() as nursery:
                yield ", ".join(await nursery.start(serve_pages, settings.listen, pages))
                nursery.cancel_scope.cancel()
