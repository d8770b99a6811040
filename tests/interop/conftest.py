"""Fixtures of the interoperability tests: a relay with and without TLS, and one of each kind of peer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from interop.ours import our_listener, our_sender
from interop.peers import (
    INSTALLED,
    ListenerKind,
    SenderKind,
    Target,
    hyco_ws_listener,
    hyco_ws_sender,
    libcurl_sender,
)
from interop.relay import RunningRelay, run_relay
from interop.senders import trio_websocket_sender, websockets_sender

LISTENERS = (
    ListenerKind("ours", our_listener, chooses_close=False),
    ListenerKind("hyco-ws", hyco_ws_listener),
)
SENDERS = (
    SenderKind("ours", our_sender, chooses_close=False),
    SenderKind("hyco-ws", hyco_ws_sender),
    SenderKind("websockets", websockets_sender),
    SenderKind("trio-websocket", trio_websocket_sender),
    SenderKind("libcurl", libcurl_sender),
)


def need(*names: str) -> None:
    """Skip what a missing peer makes impossible; CI has no excuse."""
    missing = [name for name in names if not (INSTALLED / name / ".stamp").exists()]
    if missing:
        message = f"not installed by tests/interop/install.sh, which says why: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(autouse=True, scope="session")
def _peers_are_installed() -> None:
    need("node", "curl")


@pytest.fixture(scope="session")
def autobahn() -> Path:
    """The folder of the Autobahn suite, which needs a Python that not every machine has."""
    need("autobahn")
    return INSTALLED / "autobahn"


@pytest.fixture(scope="session")
def published_suite() -> Path:
    """The folder of hyco-https with its tests, and of the runner beside it."""
    need("suite")
    return INSTALLED / "suite"


@pytest.fixture(params=LISTENERS, ids=lambda kind: f"to {kind.name}")
def listen(request: pytest.FixtureRequest) -> ListenerKind:
    return request.param


@pytest.fixture(params=SENDERS, ids=lambda kind: kind.name)
def send(request: pytest.FixtureRequest) -> SenderKind:
    return request.param


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ca.pem``, and with ``cert.pem`` and ``key.pem`` for loopback."""
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    return folder


@pytest.fixture
async def running() -> AsyncIterator[RunningRelay]:
    async with run_relay() as relay:
        yield relay


@pytest.fixture
def plain_target(running: RunningRelay) -> Target:
    return running.target


@pytest.fixture(params=["ws", "wss"])
async def target(request: pytest.FixtureRequest, certificate: Path) -> AsyncIterator[Target]:
    async with run_relay(certificate if request.param == "wss" else None) as relay:
        yield relay.target
