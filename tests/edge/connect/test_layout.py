"""Which addresses names have, and who listens there."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.config.settings import Forward, ListenAt, RelaySettings
from relaycore.edge.connect.layout import Laid, Place, lay_out, matches

RELAY = RelaySettings("main", "sb://relay.test/")
AUTO = ListenAt("tcp", "auto")


def place(name: str, hosts: str, port: int, *listen: ListenAt) -> Place:
    """Its own address ends with the letter's number: a has 127.77.0.97."""
    forward = Forward(name, RELAY, name, listen=listen)
    return Place(forward, hosts.split(), port, f"127.77.0.{ord(name)}")


A, B, C = (f"127.77.0.{ord(name)}" for name in "abc")


def test_one_forward_has_its_own_address():
    assert lay_out([place("a", "box *.web", 22)]) == {"a": Laid({"box": A, "*.web": A})}


def test_ports_of_one_name_share_its_address():
    """App Service tells hybrid connections apart by host and port together."""
    found = lay_out([place("a", "box", 22), place("b", "box", 80), place("c", "else", 22)])
    assert found == {"a": Laid({"box": A}), "b": Laid({"box": A}, [(AUTO, A)]), "c": Laid({"else": C})}


def test_a_name_has_the_address_that_was_given_first():
    """Where its forward does not have to share a port with another one's."""
    late, early = replace(place("a", "box", 22), rank=1), place("b", "box", 80)
    assert lay_out([late, early]) == {"a": Laid({"box": B}, [(AUTO, B)]), "b": Laid({"box": B})}
    found = lay_out([late, place("b", "box", 22), place("c", "box", 80)])
    assert found == {"a": Laid({"box": C}, [(AUTO, C)]), "b": Laid({"box": B}), "c": Laid({"box": C})}


def test_the_same_name_and_port_twice_is_the_firsts():
    found = lay_out([place("a", "box", 22), place("b", "box", 22)])
    assert found == {"a": Laid({"box": A}), "b": Laid({"box": B})}


def test_a_forward_listens_with_each_of_its_names():
    """a and b have the same port, so that no address could be that of all."""
    found = lay_out([place("a", "x", 22), place("b", "y", 22), place("c", "x y z", 80)])
    assert found["c"] == Laid({"x": A, "y": B, "z": C}, [(AUTO, A), (AUTO, B)])
    assert not found["a"].shared
    assert not found["b"].shared


def test_names_of_one_forward_that_others_tell_apart_have_addresses_of_their_own():
    found = lay_out([place("a", "x y", 22), place("b", "x", 80), place("c", "x y", 80)])
    assert found["a"] == Laid({"x": A, "y": C}, [(AUTO, C)])
    assert found["b"] == Laid({"x": A}, [(AUTO, A)])
    assert found["c"] == Laid({"x": C, "y": C})


def test_a_pattern_listens_with_the_names_below():
    found = lay_out([place("a", "*.corp", 80), place("b", "box.corp", 22), place("c", "box.corp *.sub.corp", 80)])
    assert found["a"] == Laid({"*.corp": A})
    assert found["b"] == Laid({"box.corp": B})
    assert found["c"] == Laid({"box.corp": B, "*.sub.corp": C}, [(AUTO, B)])  # who says it exactly goes first
    found = lay_out([place("a", "*.corp", 80), place("b", "box.corp", 22)])
    assert found["a"].shared == [(AUTO, B)]


def test_a_port_that_is_not_known_yet_is_not_shared():
    found = lay_out([place("a", "box", 22), place("b", "box", 0)])
    assert found["b"] == Laid({"box": A})


def test_addresses_that_settings_name_are_where_names_lead():
    fixed = ListenAt("tcp", "127.0.9.7", 5432)
    other = ListenAt("tcp", "127.0.9.8", 15432)
    unix = ListenAt("unix", path="/x")
    for listen, address in [
        ((fixed,), "127.0.9.7"),
        ((other, fixed), "127.0.9.7"),  # the endpoint's own port
        ((other,), "127.0.9.8"),
        ((AUTO, fixed), A),
        ((ListenAt("tcp", "auto", 15432), fixed), "127.0.9.7"),
        ((ListenAt("tcp", "10.0.0.1", 5432), fixed), "127.0.9.7"),
        ((ListenAt("tcp", "10.0.0.1", 5432),), "10.0.0.1"),
        ((ListenAt("tcp", "localhost", 5432),), "127.0.0.1"),
        ((ListenAt("tcp", "0.0.0.0", 5432),), A),
        ((ListenAt("udp", "127.0.9.9", 5432), fixed), "127.0.9.7"),
        ((ListenAt("udp", "127.0.9.9", 5432),), "127.0.9.9"),
    ]:
        assert lay_out([place("a", "db", 5432, *listen, unix)]) == {"a": Laid({"db": address})}, listen
    for listen in [(unix,), (ListenAt("tcp", "::1", 5432),), (ListenAt("tcp", "db.local", 5432),)]:
        assert lay_out([place("a", "db", 5432, *listen)]) == {"a": Laid()}, listen


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(["x", "y", "z", "*.w", "a.w", "b.w"]), min_size=1), st.integers(1, 3)),
        max_size=3,
    )
)
def test_each_name_and_port_reaches_a_forward_that_means_it(given_places):
    """And nobody is asked to listen where another does. With three forwards there is always such a layout."""
    places = [place(chr(97 + index), " ".join(sorted(hosts)), port) for index, (hosts, port) in enumerate(given_places)]
    laid = lay_out(places)
    listening: dict[tuple[str, int], Place] = {}
    seen: dict[str, str] = {}
    for one in places:
        for address in [one.address, *(address for _, address in laid[one.forward.name].shared)]:
            assert (address, one.port) not in listening
            listening[address, one.port] = one
        for host, address in laid[one.forward.name].names.items():
            seen.setdefault(host, address)
    for one in places:
        for host in one.hosts:
            found = listening[seen[host], one.port]
            assert host in found.hosts or any(matches(pattern, host) for pattern in found.hosts)
