"""TLS: the server's certificate, and the client side that trusts exactly this certificate."""

import re
import ssl
from pathlib import Path
from typing import Final

_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those that HTTP/2 allows."""
_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl module has no name for."""


class _PassphraseError(Exception):
    """OpenSSL asks for a passphrase. At a terminal it would wait for one."""


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """The TLS of a server that speaks HTTP/2 and HTTP/1.1, from two PEM files. The first may contain a chain.

    Raises OSError with a message for the user.
    """
    own_certificate(certificate)
    _read(key, "--tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(certificate, key, _refuse_passphrase)
    except _PassphraseError:
        raise OSError(f"--tls-key {key} has a passphrase; 'openssl pkey' writes a key without one") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OSError(f"--tls-key {key} is not the key of --tls-cert {certificate}") from None
        raise OSError(f"--tls-key {key} or --tls-cert {certificate} cannot be used: {error.reason}") from None
    return context


def own_certificate(certificate: str) -> str:
    """The first certificate of a PEM file, which is the server's own. Raises OSError with a message for the user."""
    found = _CERTIFICATE.search(_read(certificate, "--tls-cert"))
    if found is None:
        raise OSError(f"--tls-cert {certificate} has no certificate in PEM form")
    return found[0]


def client_context(certificate: str) -> ssl.SSLContext:
    """The TLS of a client that trusts this one certificate, in PEM form, under any name and at any time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    context.load_verify_locations(cadata=certificate)
    return context


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="latin-1")
    except OSError as error:
        raise OSError(f"cannot read {flag} {path}: {error.strerror}") from error


def _refuse_passphrase() -> str:
    raise _PassphraseError
