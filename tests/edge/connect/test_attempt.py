"""Attempts: which failures are worth another one, how long they may take, and what they are called."""

from __future__ import annotations

import itertools
import random
import ssl

import pytest
import trio

from relaycore.client.connection import Connection
from relaycore.edge.access import RelayAccess
from relaycore.edge.azbridge.preamble import PortRefused, RefusedWhy
from relaycore.edge.config.settings import Forward, RelaySettings, RetrySettings
from relaycore.edge.connect.attempt import explain, is_passing, open_connection
from relaycore.errors import (
    AuthorizationFailed,
    ConfigError,
    ConnectionLost,
    EndpointNotFound,
    GatewayTimeout,
    NoListener,
    Rejected,
    RelayError,
    ServerBusy,
)
from relaycore.vocab import RefusalReason

FORWARD = Forward(
    "orders",
    RelaySettings("main", "sb://relay.test:9443/", proxy="http://ann:hush@proxy.test:3128"),
    "sql",
    key_name="defaultSender",
    retry=RetrySettings(timeout_s=15.0, attempts=4),
)


def untrusted() -> ConnectionLost:
    error = ConnectionLost("TLS with relay.test failed")
    error.__cause__ = ssl.SSLCertVerificationError()
    return error


CASES = [
    (NoListener("no listener"), True, "nobody listens there"),
    (ServerBusy("not now", http_status=503), True, "503 not now; the listener's endpoint is down or full"),
    (GatewayTimeout("too slow", http_status=504), True, "504 too slow"),
    (Rejected("refused", http_status=502), True, "could not reach its endpoint"),
    (Rejected("go away", http_status=410), False, "the listener's own answer"),
    (ConnectionLost("no way"), True, "doctor orders"),
    (untrusted(), False, "ca_file"),
    (EndpointNotFound("Endpoint does not exist"), False, "relay knows no sql"),
    (AuthorizationFailed("bad", http_status=401), False, "does not take rule defaultSender"),
    (AuthorizationFailed("old", http_status=401, reason=RefusalReason.EXPIRED_TOKEN), False, "clock"),
    (AuthorizationFailed("no", http_status=403), False, "no right to send"),
    (PortRefused(RefusedWhy.CLOSED, "port 'tds': closed"), True, "port_name"),
    (PortRefused(RefusedWhy.CLOSED, "port 'tds': closed", is_final=True), False, "port_name"),
    (ConfigError("no key"), False, "no key"),
]


@pytest.mark.parametrize(("error", "passes", "words"), CASES, ids=lambda value: type(value).__name__)
def test_every_failure_has_words_and_only_some_are_tried_again(error, passes, words):
    """manager 8.11: what was tried, what came back, what it means, what to do; no secret."""
    assert is_passing(error) is passes
    text = explain(error, RelayAccess.of(FORWARD), FORWARD)
    assert text.startswith("connecting to sql at relay.test:9443 through http://proxy.test:3128: ")
    assert words in text
    assert "hush" not in text


class FakeAccess:
    """Fails with each of some errors, after some seconds of the test's clock; then there is a connection."""

    def __init__(self, *errors: RelayError, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.limits: list[float] = []
        self.tracking_ids: list[str] = []
        self.times: list[float] = []

    async def dial(self, *, connect_timeout: float, tracking_id: str) -> Connection:
        self.tracking_ids.append(tracking_id)
        self.limits.append(round(connect_timeout, 3))
        self.times.append(trio.current_time())
        with trio.move_on_after(connect_timeout) as scope:
            await trio.sleep(self.seconds)
        if scope.cancelled_caught:
            raise ConnectionLost(f"no answer within {connect_timeout:g} s")
        if self.errors:
            raise self.errors.pop(0)
        return object.__new__(Connection)


async def test_the_second_attempt_comes_at_once_and_then_there_are_pauses(autojump_clock):
    access = FakeAccess(*[NoListener("none")] * 3)
    told: list[float] = []
    ids: list[str] = []
    opened = await open_connection(
        access,
        FORWARD,
        on_attempt=ids.append,
        on_retry=lambda _, pause: told.append(pause),
        rng=random.Random(1),
    )
    assert opened.attempts == 4
    assert ids == access.tracking_ids
    assert len(set(ids)) == 4
    assert told[0] == 0.0
    assert 0.1 <= told[1] <= 0.2
    assert 0.25 <= told[2] <= 0.5
    waits = [later - before for before, later in itertools.pairwise(access.times)]
    assert waits == pytest.approx(told)


async def test_attempts_end_with_their_number(autojump_clock):
    access = FakeAccess(*[NoListener(str(number)) for number in range(9)])
    with pytest.raises(NoListener, match="3"):
        await open_connection(access, FORWARD)
    assert len(access.limits) == 4


async def test_what_is_final_is_not_tried_again(autojump_clock):
    access = FakeAccess(AuthorizationFailed("no"))
    with pytest.raises(AuthorizationFailed):
        await open_connection(access, FORWARD)
    assert len(access.limits) == 1


async def test_a_listener_that_never_answers_leaves_time_for_another(autojump_clock):
    """failures: the relay hands the connection to a listener whose machine has gone."""
    access = FakeAccess(seconds=100)
    with pytest.raises(ConnectionLost, match="no answer"):
        await open_connection(access, FORWARD)
    assert access.limits[0] == 10.0
    assert 2.8 <= access.limits[1] <= 3.4
    assert trio.current_time() - access.times[0] <= 15.01
