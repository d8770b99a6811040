"""How `connect test` and `doctor` judge names: only what programs have nothing else for is a failure."""

from __future__ import annotations

import pytest

from relaycore.cli.connect.probe import _names
from relaycore.edge.config.settings import ConnectSettings, Forward, ListenAt, ProxyPortSettings, RelaySettings
from relaycore.edge.connect.status import ForwardState, ForwardStatus
from relaycore.edge.diagnose.doctor import ExpectedName

OWN = "127.77.1.1"


def status(*listen: str, hosts: tuple[str, ...] = ("db.test",), port: int = 1433, address: str = OWN) -> ForwardStatus:
    """A forward of a running forwarder; its names lead to `address`, or nowhere where that is empty."""
    counts = ["open", "dialling", "accepted", "refused", "lost", "left", "retries", "bytes_in", "bytes_out"]
    return ForwardStatus(
        name="orders",
        state=ForwardState.LISTENING if listen else ForwardState.FAILED,
        listen=listen,
        address=OWN,
        hosts=hosts,
        names=dict.fromkeys(hosts if address else (), address),
        port=port,
        relay="relay.test",
        path="orders",
        profile="raw",
        handshake_s=None,
        last_error="",
        last_error_unix=None,
        since_unix=0.0,
        **dict.fromkeys(counts, 0),
    )


def judged(here: ForwardStatus | None, *, hosts: tuple[str, ...] = ("db.test",), proxy: str = "") -> list[ExpectedName]:
    forward = Forward("orders", RelaySettings("main", "sb://relay.test/"), "orders", hosts=hosts)
    listen = ListenAt("tcp", "127.0.0.1", 1080) if proxy else None
    return _names(ConnectSettings((forward,), proxy=ProxyPortSettings(listen=listen)), forward, here)


def test_without_a_forwarder_nothing_is_expected():
    assert judged(None) == []


@pytest.mark.parametrize(
    ("listen", "others"),
    [
        ((f"{OWN}:1433",), ()),
        ((f"{OWN}:11433",), ()),
        ((f"udp:{OWN}:1433", "unix:/run/x.sock"), ()),
        ((f"{OWN}:1433", "127.0.0.1:1433", "10.0.0.1:99"), ("127.0.0.1",)),
        (("0.0.0.0:1433",), ("127.0.0.1",)),
        (("localhost:1433", f"{OWN}:1433"), ("127.0.0.1", "::1")),
    ],
)
def test_a_name_has_to_lead_where_the_forward_listens(listen: tuple[str, ...], others: tuple[str, ...]):
    """manager 8.11: exit code 8 where programs would be led astray."""
    assert judged(status(*listen)) == [ExpectedName("db.test", OWN, others)]


def test_programs_that_are_told_an_address_need_no_name():
    [found] = judged(status("127.0.9.7:1433", address="127.0.9.7"))
    assert found == ExpectedName("db.test", "127.0.9.7", (), "programs reach it at 127.0.9.7:1433", (OWN,))


@pytest.mark.parametrize("listen", ["unix:/run/x.sock", "[::1]:1433"])
def test_a_name_that_can_lead_nowhere_is_not_expected_to(listen: str):
    assert judged(status(listen, address="")) == []


def test_a_shared_address_at_which_the_forward_does_not_listen_is_dead():
    shared = "127.77.2.2"
    [found] = judged(status(f"{OWN}:1433", address=shared))
    assert (found.address, found.dead) == (shared, (shared,))
    [found] = judged(status(f"{OWN}:1433", f"{shared}:1433", address=shared))
    assert (found.others, found.dead) == ((OWN,), ())
    [found] = judged(status(address=shared))
    assert found.dead == ()  # that nothing is open is another finding
    [found] = judged(status(f"{OWN}:1433", address=shared), proxy="127.0.0.1:1080")
    assert found.dead == ()


def test_with_a_proxy_port_no_name_is_needed():
    [found] = judged(status(f"{OWN}:1433"), proxy="127.0.0.1:1080")
    assert found.other_way == "programs reach it by the proxy port 127.0.0.1:1080"


def test_inside_relaycore_run_names_are_its_own(monkeypatch):
    monkeypatch.setenv("RELAYCORE_RUN", "hosts")
    [found] = judged(status(f"{OWN}:1433"))
    assert found.other_way.startswith("`relaycore run`, which has started this,")


@pytest.mark.parametrize(
    ("host", "is_needed"), [("db.test", True), ("localhost", False), ("10.0.0.1", False), ("::1", False)]
)
def test_a_name_of_the_relays_own_text_is_needed_if_it_is_one(host: str, is_needed: bool):
    [found] = judged(status(f"{OWN}:1433", hosts=(host,)), hosts=())
    assert (found.other_way == "") is is_needed
    [found] = judged(status(f"{OWN}:1433", hosts=(host,)), hosts=(host,))
    assert found.other_way == ""  # who wrote it down wants it to lead here
