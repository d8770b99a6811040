"""``relaycore ca``: certificates that TLS libraries take, and keys that nobody else reads."""

from __future__ import annotations

import builtins
import contextlib
import datetime
import ipaddress
import ssl
import sys

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from relaycore.cli.exits import ExitCode


@pytest.fixture
def authority(invoke, tmp_path):
    assert invoke("ca", "create").exit_code == 0
    return tmp_path / "ca"


def load(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_files_and_their_modes(invoke, authority):
    assert invoke("ca", "issue", "localhost").exit_code == 0
    assert {path.name for path in authority.iterdir()} == {"ca.pem", "ca.key", "localhost.pem", "localhost.key"}
    assert (authority / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (authority / "localhost.key").stat().st_mode & 0o777 == 0o600


def test_the_authority(authority):
    ca = load(authority / "ca.pem")
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    assert ca.public_key().curve.name == "secp256r1"


def test_the_certificate(invoke, authority):
    invoke("ca", "issue", "relay.example", "*.relay.example", "127.0.0.1", "::1", "bücher.example")
    ca, leaf = load(authority / "ca.pem"), load(authority / "relay.example.pem")
    leaf.verify_directly_issued_by(ca)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["relay.example", "*.relay.example", "xn--bcher-kva.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    assert leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value == x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.SERVER_AUTH]
    )
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life == datetime.timedelta(days=397)
    assert leaf.not_valid_before_utc < datetime.datetime.now(datetime.UTC)


def test_a_handshake_succeeds_for_its_names_and_no_others(invoke, authority):
    invoke("ca", "issue", "localhost", "127.0.0.1")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority / "localhost.pem", authority / "localhost.key")
    client = ssl.create_default_context(cafile=authority / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    def handshake(name: str) -> None:
        pipes = [ssl.MemoryBIO() for _ in range(2)]
        left = client.wrap_bio(pipes[0], pipes[1], server_hostname=name)
        right = server.wrap_bio(pipes[1], pipes[0], server_side=True)
        for _ in range(4):
            for side in (left, right):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        left.do_handshake()

    handshake("localhost")
    handshake("127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake("relay.example")


def test_what_is_printed_says_how_to_go_on(invoke, authority):
    printed = invoke("ca", "issue", "localhost").stdout
    for word in (
        "serve --tls-cert ca/localhost.pem",
        "NODE_EXTRA_CA_CERTS=",
        "SSL_CERT_FILE=",
        "keytool",
        "trustStore=",
        "--cafile",
    ):
        assert word in printed
    assert "PRIVATE" not in printed


def test_nothing_is_overwritten(invoke, authority):
    before = (authority / "ca.key").read_bytes()
    assert invoke("ca", "create").exit_code == ExitCode.EXISTS
    assert (authority / "ca.key").read_bytes() == before
    invoke("ca", "issue", "localhost")
    assert invoke("ca", "issue", "localhost").exit_code == ExitCode.EXISTS


def test_names_of_the_files(invoke, authority, tmp_path):
    invoke("ca", "issue", "*.relay.example")
    assert (authority / "_.relay.example.pem").exists()
    invoke("ca", "issue", "::1")
    assert (authority / "__1.key").exists()
    invoke("ca", "issue", "localhost", "--out", "tls/my.relay")
    assert (tmp_path / "tls" / "my.relay.pem").exists()


@pytest.mark.parametrize(
    "host", ["relay.example:443", "https://relay.example", "a b", "-a", "a..b", "*", "a*.b", "x" * 64 + ".example"]
)
def test_a_host_that_is_none(invoke, authority, host):
    result = invoke("ca", "issue", "--", host)
    assert result.exit_code == ExitCode.USAGE
    assert "neither a DNS name nor an IP address" in result.stderr


@pytest.mark.parametrize("days", ["0", "826"])
def test_no_certificate_lives_too_long(invoke, authority, days):
    assert invoke("ca", "issue", "localhost", "--days", days).exit_code == ExitCode.USAGE


def test_an_authority_that_is_missing_or_broken(invoke, tmp_path):
    missing = invoke("ca", "issue", "localhost", "--dir", "my ca")
    assert missing.exit_code == ExitCode.CONFIG
    assert "ca create --dir 'my ca'" in missing.stderr
    invoke("ca", "create", "--dir", "one")
    invoke("ca", "create", "--dir", "two")
    (tmp_path / "two" / "ca.key").replace(tmp_path / "one" / "ca.key")
    assert "is not the key of" in invoke("ca", "issue", "localhost", "--dir", "one").stderr
    (tmp_path / "one" / "ca.key").write_text("junk")
    assert "not a certificate and its unencrypted key" in invoke("ca", "issue", "localhost", "--dir", "one").stderr


def test_without_the_extra_it_says_which_to_install(invoke, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    result = invoke("ca", "create")
    assert result.exit_code == ExitCode.CONFIG
    assert "relaycore[tls]" in result.stderr
