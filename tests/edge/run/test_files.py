from __future__ import annotations

from relaycore.edge.run.files import hosts_text, resolver_text

SYSTEM = """\
127.0.0.1 localhost
# a comment stays
10.2.0.8\tsqldb.corp.example SQLDB other  # the real one
10.2.0.9 sqldb.corp.example.

::1 localhost ip6-localhost
"""


def test_our_names_come_first_and_once():
    text = hosts_text(SYSTEM, {"sqldb.corp.example": "127.77.41.9", "sqldb": "127.77.41.9"})
    assert text.splitlines() == [
        "# relaycore run: names that lead to the relay",
        "127.77.41.9\tsqldb.corp.example",
        "127.77.41.9\tsqldb",
        "",
        "127.0.0.1 localhost",
        "# a comment stays",
        "10.2.0.8\tother #  # the real one".replace("#  #", "#"),
        "",
        "::1 localhost ip6-localhost",
    ]


def test_without_names_the_system_file_is_as_it_was():
    assert hosts_text(SYSTEM, {}).endswith(SYSTEM)


def test_a_resolver_file_names_the_stub():
    assert "\nnameserver 127.0.0.53\n" in resolver_text("127.0.0.53")
