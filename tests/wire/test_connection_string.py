"""Connection strings: what the SDKs' strings mean here, and errors that never repeat a secret."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore.errors import ConfigError
from relaycore.wire import sas
from relaycore.wire.connection_string import ConnectionString, format_connection_string, parse_connection_string

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
PLAIN = f"Endpoint=sb://relay.example/;SharedAccessKeyName=rule;SharedAccessKey={KEY};EntityPath=hyco"


def test_all_fields():
    """spec 5.8: pairs split on ';', each on the first '=', so a key keeps its padding."""
    parsed = parse_connection_string(PLAIN)
    assert parsed == ConnectionString("relay.example", None, "rule", KEY, None, "hyco", 60.0, False)
    assert parsed.base_url == "wss://relay.example"
    assert parsed.audience == "http://relay.example/hyco/"


@pytest.mark.parametrize("text", [PLAIN + ";", ";;" + PLAIN + " ; ", PLAIN.replace(";", " ; ")])
def test_empty_pairs_and_blanks_are_ignored(text):
    """spec 5.8: empty pairs are ignored."""
    assert parse_connection_string(text) == parse_connection_string(PLAIN)


def test_names_without_regard_to_case():
    """spec 5.8: names in any case; values keep theirs."""
    text = f"ENDPOINT=SB://Relay.Example/;sharedaccesskeyname=Rule;SHAREDACCESSKEY={KEY};entitypath=HyCo"
    parsed = parse_connection_string(text)
    assert (parsed.host, parsed.key_name, parsed.key, parsed.entity_path) == ("Relay.Example", "Rule", KEY, "HyCo")
    assert parsed.audience == "http://relay.example/HyCo/"


@pytest.mark.parametrize(
    ("endpoint", "base_url"),
    [
        ("sb://relay.example/", "wss://relay.example"),
        ("sb://relay.example", "wss://relay.example"),
        ("sb://relay.example:9443/", "wss://relay.example:9443"),
        ("sb://[::1]:9443/", "wss://[::1]:9443"),
    ],
)
def test_port_is_kept_for_dialling(endpoint, base_url):
    """spec 5.8: the port is kept; sb has no default port, so WebSocket's 443 applies."""
    assert parse_connection_string(f"Endpoint={endpoint}").base_url == base_url


def test_audience_has_neither_port_nor_raw_blanks():
    """spec 5.3: .NET signs http://HOST/ENTITY/ without the port."""
    assert parse_connection_string("Endpoint=sb://h:1/;EntityPath=/a b/c/").audience == "http://h/a%20b/c/"
    assert parse_connection_string("Endpoint=sb://h:1/").audience == "http://h/"


def test_ready_signature():
    """spec 5.8: SharedAccessSignature stands instead of name and key."""
    token = sas.make_token("http://relay.example/", "rule", KEY, 1)
    parsed = parse_connection_string(f"Endpoint=sb://relay.example/;SharedAccessSignature={token}")
    assert (parsed.signature, parsed.key, parsed.key_name) == (token, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01:30", 90.0), ("1.00:00:01", 86_401.0), ("00:00:00.5", 0.5), ("20", 20.0), ("0:1:0", 60.0)],
)
def test_operation_timeout(text, seconds):
    """spec 5.8: OperationTimeout is a time span for .NET and whole seconds for Java."""
    assert parse_connection_string(f"Endpoint=sb://h/;OperationTimeout={text}").operation_timeout == seconds


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"])
def test_emulator_goes_without_tls_on_loopback(host):
    """spec 5.8: UseDevelopmentEmulator, a name of our own, means plain ws."""
    parsed = parse_connection_string(f"Endpoint=sb://{host}/;UseDevelopmentEmulator=True")
    assert parsed.is_emulator
    assert parsed.base_url == f"ws://{host}"
    assert not parse_connection_string(f"Endpoint=sb://{host}/;UseDevelopmentEmulator=false").is_emulator


@pytest.mark.parametrize("host", ["relay.example", "10.0.0.1", "[fe80::1]", "localhost.example", "999.1.1.1"])
def test_emulator_elsewhere_is_refused(host):
    """failures: no flag turns safety off silently; without TLS only loopback is allowed."""
    with pytest.raises(ConfigError, match="UseDevelopmentEmulator: goes without TLS"):
        parse_connection_string(f"Endpoint=sb://{host}/;UseDevelopmentEmulator=true")


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("", "Endpoint", "missing"),
        ("Endpoint", "", "part 1 has no '='"),
        ("Endpoint=sb://h/;Foo=1", "", "part 2 has an unknown name"),
        ("Endpoint=sb://h/;Endpoint=sb://h/", "Endpoint", "twice"),
        ("Endpoint=", "Endpoint", "no value"),
        ("Endpoint=https://h/", "Endpoint", "expected sb://"),
        ("Endpoint=h", "Endpoint", "expected sb://"),
        ("Endpoint=sb://h/hyco", "Endpoint", "without a path"),
        ("Endpoint=sb://u:p@h/", "Endpoint", "expected sb://"),
        ("Endpoint=sb://h:0/", "Endpoint", "port"),
        ("Endpoint=sb://h:65536/", "Endpoint", "port"),
        ("Endpoint=sb://h/;SharedAccessKeyName=n", "SharedAccessKey", "go together"),
        ("Endpoint=sb://h/;SharedAccessKey=k", "SharedAccessKeyName", "go together"),
        ("Endpoint=sb://h/;SharedAccessSignature=s;SharedAccessKeyName=n", "SharedAccessSignature", "excludes"),
        ("Endpoint=sb://h/;SharedAccessSignature=s;SharedAccessKey=k", "SharedAccessSignature", "excludes"),
        ("Endpoint=sb://h/;Authentication=Managed Identity", "Authentication", "not available"),
        ("Endpoint=sb://h/;Authentication=ManagedIdentity", "Authentication", "not available"),
        (f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={'k' * 257}", "SharedAccessKey", "256"),
        (f"Endpoint=sb://h/;SharedAccessKeyName={'n' * 257};SharedAccessKey=k", "SharedAccessKeyName", "256"),
        ("Endpoint=sb://h/;OperationTimeout=soon", "OperationTimeout", "hh:mm:ss"),
        ("Endpoint=sb://h/;OperationTimeout=00:61:00", "OperationTimeout", "hh:mm:ss"),
        ("Endpoint=sb://h/;OperationTimeout=0", "OperationTimeout", "longer than nothing"),
        ("Endpoint=sb://h/;UseDevelopmentEmulator=1", "UseDevelopmentEmulator", "true or false"),
    ],
)
def test_errors_name_the_field(text, key, message):
    """spec 5.8: unknown names, missing halves and wrong schemes are errors."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_connection_string(text)
    assert caught.value.key == key


SECRET = "Zm9yYmlkZGVuIGZvcmJpZGRlbiBmb3JiaWRkZW4="


@pytest.mark.parametrize(
    "text",
    [
        f"Endpoint=sb://h/;SharedAccessKey={SECRET}",
        f"Endpoint=sb://h/;SharedAccessKey={SECRET};SharedAccessKey={SECRET}",
        f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={SECRET};{SECRET.rstrip('=')}",
        f"Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=a;{SECRET}",
        f"Endpoint=sb://h/;SharedAccessSignature={SECRET};SharedAccessKey={SECRET}",
        f"Endpoint=sb://u:{SECRET}@h/",
        SECRET,
    ],
)
def test_errors_never_repeat_a_secret(text):
    """spec 5.8: neither a key nor a piece that may belong to one stands in a message."""
    with pytest.raises(ConfigError) as caught:
        parse_connection_string(text)
    assert SECRET.rstrip("=") not in str(caught.value)


def test_nothing_secret_in_the_repr():
    """spec 5.8: key and signature stay out of logs."""
    assert KEY not in repr(parse_connection_string(PLAIN))
    assert "hidden" not in repr(parse_connection_string("Endpoint=sb://h/;SharedAccessSignature=hidden"))


def test_format():
    """mgmt 3.5: fixed order, slash after the host, EntityPath last, 443 left out."""
    assert format_connection_string("relay.example", "rule", KEY, entity_path="hyco") == PLAIN
    assert format_connection_string("h", "n", "k") == "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=k"
    assert format_connection_string("h", "n", "k", port=443).startswith("Endpoint=sb://h/;")
    assert format_connection_string("h", "n", "k", port=9443).startswith("Endpoint=sb://h:9443/;")
    emulator = format_connection_string("localhost", "n", "k", port=443, entity_path="e", is_emulator=True)
    assert emulator.startswith("Endpoint=sb://localhost:443/;")
    assert emulator.endswith(";EntityPath=e;UseDevelopmentEmulator=true")


@given(host=strategies.host_names, name=strategies.rule_names, key=strategies.keys,
       port=st.none() | strategies.ports, path=st.none() | strategies.entity_paths)  # fmt: skip
def test_format_then_parse(host, name, key, port, path):
    """spec 5.8: what we write we read back."""
    parsed = parse_connection_string(format_connection_string(host, name, key, port=port, entity_path=path))
    assert parsed == ConnectionString(host, None if port == 443 else port, name, key, None, path)


@given(strategies.hostile_text)
def test_no_input_raises_anything_undocumented(text):
    """spec 5.8: any text is a connection string or a ConfigError."""
    for candidate in (text, "Endpoint=" + text, "Endpoint=sb://h/;OperationTimeout=" + text):
        try:
            parsed = parse_connection_string(candidate)
        except ConfigError:
            continue
        assert parsed.base_url
        assert parsed.audience
