"""``relaycore ca``: a certificate authority for one's own machines, and certificates for relays.

The .NET and Java libraries speak only TLS, and a relay on a private name gets no public certificate. Keys are EC P-256:
every client library of the protocol takes them, and they sign fast.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..errors import ConfigError
from .app import called_as
from .exits import ExitCode, StartupError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["command"]

CA_DAYS: Final = 3_650
"""Ten years: clients have to be told about a new one by hand."""

LEAF_DAYS: Final = 397
"""What public authorities may issue at most (CA/Browser Forum 6.3.2, since 2020); some clients refuse more."""

MAX_LEAF_DAYS: Final = 825
"""Apple's platforms refuse a server certificate of any authority that lives longer."""

_BACKDATED: Final = datetime.timedelta(minutes=5)
"""Clients with a slow clock take a certificate that has just been made."""

_DNS_NAME: Final = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?", re.IGNORECASE
)

_dir_option = click.option(
    "--dir",
    "folder",
    metavar="DIR",
    default="ca",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the authority's files are.",
)


@click.group("ca")
def command() -> None:
    """Make a local certificate authority and certificates.

    \b
    relaycore ca create
    relaycore ca issue localhost 127.0.0.1
    relaycore serve --tls-cert ca/localhost.pem --tls-key ca/localhost.key
    """


@command.command("create")
@_dir_option
@click.option("--name", default="relaycore local CA", show_default=True, help="Common name of the authority.")
@click.option("--days", type=click.IntRange(1, 2 * CA_DAYS), default=CA_DAYS, show_default=True, help="Lifetime.")
def create(folder: Path, name: str, days: int) -> None:
    """Make an authority: ca.pem, which clients must trust, and ca.key, which nobody else may read."""
    _need_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        # Path length 0: a stolen leaf or a confused client can make no authority below this one.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "ca.pem", folder / "ca.key"
    _write_pair(cert_file, certificate, key_file, key)
    click.echo(f"made {cert_file} (public) and {key_file} (keep it to yourself)")
    click.echo(f"next: {called_as()} ca issue localhost 127.0.0.1{_dir_argument(folder)}")


@command.command("issue")
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@_dir_option
@click.option(
    "--out",
    metavar="PREFIX",
    type=click.Path(path_type=Path),
    help="Write PREFIX.pem and PREFIX.key instead of DIR/HOST.pem and DIR/HOST.key.",
)
@click.option("--days", type=click.IntRange(1, MAX_LEAF_DAYS), default=LEAF_DAYS, show_default=True, help="Lifetime.")
def issue(hosts: tuple[str, ...], folder: Path, out: Path | None, days: int) -> None:
    """Make a certificate for a relay that is reached by each HOST: a DNS name, *.NAME, or an IP address."""
    _need_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names = [_general_name(host) for host in hosts]
    ca_certificate, ca_key = _load_ca(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    # 64 characters is all that a common name may hold; clients go by the alternative names alone.
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0][:64])])
    certificate = (
        _builder(subject, ca_certificate.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    prefix = out or folder / hosts[0].replace("*", "_").replace(":", "_")
    cert_file, key_file = prefix.with_name(prefix.name + ".pem"), prefix.with_name(prefix.name + ".key")
    _write_pair(cert_file, certificate, key_file, key)
    _say_how(folder / "ca.pem", cert_file, key_file, days)


def _say_how(ca_file: Path, cert_file: Path, key_file: Path, days: int) -> None:
    ca, store = shlex.quote(str(ca_file.absolute())), shlex.quote(str(ca_file.with_name("truststore.p12").absolute()))
    cert, key = shlex.quote(str(cert_file)), shlex.quote(str(key_file))
    click.echo(f"made {cert_file} and {key_file}, good for {days} days\n")
    click.echo(f"relay        {called_as()} serve --tls-cert {cert} --tls-key {key}")
    click.echo(f"relaycore    {called_as()} listen --cafile {ca} ...   (and send, entity, keys, hcm add, connect add)")
    click.echo(f"Node         export NODE_EXTRA_CA_CERTS={ca}")
    click.echo(f".NET, curl   export SSL_CERT_FILE={ca}   (replaces the system's authorities)")
    click.echo(
        f"Java         keytool -importcert -noprompt -alias relaycore -file {ca} -keystore {store} -storepass changeit"
    )
    click.echo(f"             java -Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword=changeit ...")


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError("certificates need the extra 'tls': pip install 'relaycore[tls]'") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + datetime.timedelta(days=days))
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        ascii_name = (
            host.removesuffix(".").encode("idna").decode("ascii") if not host.isascii() else host.removesuffix(".")
        )
    except UnicodeError:
        ascii_name = ""
    if len(ascii_name) > 253 or not _DNS_NAME.fullmatch(ascii_name):
        raise click.BadParameter(f"{host!r} is neither a DNS name nor an IP address.", param_hint="HOST")
    return x509.DNSName(ascii_name)


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        hint = f"{called_as()} ca create{_dir_argument(folder)}"
        raise ConfigError(f"there is no authority yet; make one: {hint}", source=str(error.filename)) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(error.filename)) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "ca.pem and ca.key are not a certificate and its unencrypted key", source=str(folder)
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError("ca.key is not the key of ca.pem", source=str(folder))
    return certificate, key


def _dir_argument(folder: Path) -> str:
    return "" if str(folder) == "ca" else f" --dir {shlex.quote(str(folder))}"


def _write_pair(
    cert_file: Path, certificate: x509.Certificate, key_file: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """Write both as PEM, the key for its owner only. Neither may be there already."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    for file in (cert_file, key_file):
        if file.exists():
            raise StartupError(f"{file} is there already; move it away first", ExitCode.EXISTS)
    try:
        cert_file.parent.mkdir(parents=True, exist_ok=True)
        _write_new(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        _write_new(cert_file, certificate.public_bytes(Encoding.PEM), 0o644)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(error.filename)) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
