"""Keys of a server: made by the command, entered into the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.api.servers import SECONDS, CortexServer
from tests.page.visitor import Visitor


def change_keys(server: CortexServer, *arguments: str) -> str:
    """Runs `cortex keys` and returns what it prints."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cortex")), "keys", *arguments],
        env=os.environ | {"CORTEX_HOME": str(server.home)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def add_key(server: CortexServer, *arguments: str) -> str:
    return change_keys(server, "add", *arguments)


def enter(visitor: Visitor, key: str, *, remember: bool = False) -> None:
    visitor.key_field.fill(key)
    if remember:
        visitor.key_dialog.get_by_role("checkbox", name=re.compile("Remember")).check()
    visitor.key_dialog.get_by_role("button", name="Save", exact=True).click()
