"""The owner's secret: a file that only the server's user can read. The `cortex` command sends its content as a key."""

import os
import secrets
from pathlib import Path
from typing import Final

from api.home import home

NAME: Final = "owner.secret"
_PREFIX: Final = "cortex-owner-"


def path() -> Path:
    return home() / NAME


def make_secret() -> str:
    """The owner's secret. It is made if there is none, or if others could have read it.

    Raises OSError if the file cannot be written.
    """
    if (found := read_secret()) and not path().stat().st_mode & 0o077:
        return found
    secret = _PREFIX + secrets.token_urlsafe(32)
    draft = path().with_name(f"{NAME}.{os.getpid()}")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    draft.replace(path())
    return secret


def read_secret() -> str | None:
    """The owner's secret; None if there is none, or if this user may not read it."""
    try:
        text = path().read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.startswith(_PREFIX) and text.isascii() and text.isprintable() else None


def credentials() -> dict[str, str]:
    """The headers by which the `cortex` command shows that it acts for the server's owner; empty without a secret."""
    secret = read_secret()
    return {"Authorization": f"Bearer {secret}"} if secret else {}
