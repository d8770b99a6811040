"""``relaycore entity`` and ``relaycore keys`` on a relay over the network, as programs."""

from __future__ import annotations

import json

import pytest
from programs import finish, run_program

from relaycore.cli.exits import ExitCode
from relaycore.testing import open_relay

VARIABLE = "RELAYCORE_CONNECTION_STRING"


@pytest.fixture
async def relay():
    async with open_relay() as relay:
        yield relay


@pytest.fixture
def call(relay):
    async def finish_with(*args: str, rights=None, **kwargs):
        environ = {VARIABLE: relay.connection_string(rights=rights)}
        code, out, err = await finish(*args, environ=environ, **kwargs)
        return code, out.decode(), err

    return finish_with


async def test_life_of_a_hybrid_connection(relay, call):
    """mgmt 7: M01, M03 to M06, with the command line as client."""
    assert await call("entity", "create", "Demo", "--user-metadata", "text") == (0, "created Demo\n", "")
    assert (await call("entity", "list"))[1] == "Demo  0 listeners\n"
    shown = json.loads((await call("entity", "show", "demo", "--json"))[1])
    assert (shown["path"], shown["user_metadata"], shown["listener_count"]) == ("Demo", "text", 0)
    assert "websocket" not in shown
    changed = json.loads((await call("entity", "update", "demo", "--user-metadata", "new", "--json"))[1])
    assert changed["user_metadata"] == "new"
    assert "user_metadata" not in json.loads(
        (await call("entity", "update", "demo", "--clear-user-metadata", "--json"))[1]
    )
    assert await call("entity", "delete", "demo") == (0, "deleted demo\n", "")
    assert relay.server.namespace.entities == {}


async def test_keys_of_a_hybrid_connection(relay, call):
    await relay.create_entity("Demo", user_metadata="stays")
    made = json.loads((await call("keys", "create", "l", "--rights", "listen", "--entity", "demo", "--json"))[1])[0]
    assert made["primaryConnectionString"].startswith(f"Endpoint=sb://127.0.0.1:{relay.port}/;SharedAccessKeyName=l;")
    assert ";EntityPath=Demo" in made["primaryConnectionString"]
    again = json.loads((await call("keys", "create", "l", "--rights", "send", "--entity", "demo", "--json"))[1])[0]
    assert (again["rights"], again["primaryKey"]) == (["Send"], made["primaryKey"])
    (new,) = json.loads((await call("keys", "regenerate", "l", "--secondary", "--entity", "demo", "--json"))[1])
    assert new["primaryKey"] == made["primaryKey"]
    assert new["secondaryKey"] != made["secondaryKey"]
    rule = relay.server.namespace.get_entity("demo").find_rule("l")
    assert rule.keys == (new["primaryKey"], new["secondaryKey"])
    assert json.loads((await call("keys", "list", "--entity", "demo", "--json"))[1]) == [new]
    code, _, err = await call("keys", "delete", "l", "--entity", "demo")
    assert (code, "last rule" in err) == (ExitCode.REFUSED, True)
    await call("keys", "create", "m", "--rights", "send", "--entity", "demo")
    assert (await call("keys", "delete", "l", "--entity", "demo"))[0] == 0
    entity = relay.server.namespace.get_entity("demo")
    assert [rule.name for rule in entity.rules] == ["m"]
    assert entity.user_metadata == "stays"


async def test_what_the_network_cannot_do_is_said_clearly(relay, call):
    await relay.create_entity("demo")
    for args in (
        ("keys", "list"),
        ("keys", "create", "r", "--rights", "send"),
        ("keys", "regenerate", "RootManageSharedAccessKey"),
        ("entity", "create", "x", "--no-http"),
        ("entity", "update", "demo", "--no-websocket"),
    ):
        code, out, err = await call(*args)
        assert (code, out) == (ExitCode.USAGE, "")
        assert "--local" in err


async def test_each_no_has_its_exit_code(relay, call):
    await relay.create_entity("demo")
    listen_only = ["Listen"]
    assert (await call("entity", "show", "nope"))[0] == ExitCode.NOT_FOUND
    assert (await call("entity", "delete", "nope"))[0] == ExitCode.NOT_FOUND
    assert (await call("entity", "create", "DEMO"))[0] == ExitCode.EXISTS
    assert (await call("entity", "create", "a b"))[0] == ExitCode.REFUSED
    assert (await call("keys", "regenerate", "r", "--entity", "demo"))[0] == ExitCode.NOT_FOUND
    assert (await call("keys", "delete", "r", "--entity", "demo"))[0] == ExitCode.NOT_FOUND
    code, _, err = await call("entity", "list", rights=listen_only)
    assert code == ExitCode.AUTHORIZATION
    assert "tracking id" in err
    nobody = {
        VARIABLE: "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=b;UseDevelopmentEmulator=true"
    }
    assert (await finish("entity", "list", environ=nobody))[0] == ExitCode.CONNECTION


async def test_the_connection_string_may_come_from_a_file_or_standard_input(relay, tmp_path):
    await relay.create_entity("demo")
    (tmp_path / "cs").write_text(relay.connection_string())
    assert (await finish("entity", "list", "--connection-string-file", "cs"))[:2] == (0, b"demo  0 listeners\n")
    done = await finish("entity", "list", "--connection-string", "-", data=relay.connection_string().encode())
    assert done[:2] == (0, b"demo  0 listeners\n")


async def test_a_running_relay_notices_what_another_process_wrote(tmp_path):
    """failures: definitions made beside a running relay count within a second."""
    async with run_program("serve", "--port", "0", "--json", "--store", "relay.db") as server:
        ready = json.loads(await server.wait_out("\n"))
        assert (await finish("entity", "create", "demo", "--store", "relay.db"))[0] == 0
        environ = {VARIABLE: ready["connection_string"]}
        async with run_program("listen", "demo", "--keep-trying", environ=environ) as listener:
            await listener.wait_err("online")
            assert (await finish("entity", "delete", "demo", "--store", "relay.db"))[0] == 0
            await listener.wait_err("offline")
