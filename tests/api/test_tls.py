"""The server's certificate, and clients that trust only this certificate."""

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from api.tls import client_context, own_certificate, server_context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and keys of two servers."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert(f"{name}.example", not_after=datetime(2020, 1, 1, tzinfo=UTC))
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for each in (*issued.cert_chain_pems, authority.cert_pem):
            each.write_to_path(folder / f"{name}.pem", append=True)
    return folder


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """The protocol that two ends agree on, in memory. Raises SSLError if the client does not trust the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = server.wrap_bio(to_server, to_client, server_side=True), client.wrap_bio(to_client, to_server)
    for _ in range(4):
        for end in reversed(ends):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1].selected_alpn_protocol()


def test_a_client_trusts_the_servers_own_certificate_even_when_it_has_expired(files: Path) -> None:
    server = server_context(str(files / "one.pem"), str(files / "one.key"))
    client = client_context(own_certificate(str(files / "one.pem")))
    client.set_alpn_protocols(["h2"])
    assert shake_hands(server, client) == "h2"


def test_a_client_does_not_trust_another_certificate_of_the_same_authority(files: Path) -> None:
    """A file with a chain also contains the authority."""
    server = server_context(str(files / "two.pem"), str(files / "two.key"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client_context(own_certificate(str(files / "one.pem"))))


def test_tls_before_1_2_is_refused(files: Path) -> None:
    server = server_context(str(files / "one.pem"), str(files / "one.key"))
    assert server.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("missing.pem", "one.key", "cannot read --tls-cert {}/missing.pem: No such file or directory"),
        ("one.pem", "missing.key", "cannot read --tls-key {}/missing.key: No such file or directory"),
        (".", "one.key", "cannot read --tls-cert {}: Is a directory"),
        ("one.key", "one.key", "--tls-cert {}/one.key has no certificate in PEM form"),
        ("one.pem", "two.key", "--tls-key {0}/two.key is not the key of --tls-cert {0}/one.pem"),
        ("one.pem", "noise", "--tls-key {0}/noise or --tls-cert {0}/one.pem cannot be used: "),
        ("broken.pem", "one.key", "--tls-key {0}/one.key or --tls-cert {0}/broken.pem cannot be used: "),
        ("one.pem", "locked.key", "--tls-key {}/locked.key has a passphrase; 'openssl pkey' writes a key without one"),
    ],
)
def test_files_that_cannot_be_used_are_named(files: Path, certificate: str, key: str, message: str) -> None:
    (files / "noise").write_bytes(b"\xff noise")
    (files / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (files / "locked.key").write_bytes(locked((files / "one.key").read_bytes()))
    with pytest.raises(OSError, match="--tls-") as raised:
        server_context(str(files / certificate), str(files / key))
    assert str(raised.value).startswith(message.format(files))
    assert "\n" not in str(raised.value)


def locked(key: bytes) -> bytes:
    """The private key with a passphrase."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
