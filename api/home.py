"""The folder of Cortex's data."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of all data: $CORTEX_HOME, or the platform's default. It may not exist yet."""
    chosen = os.environ.get("CORTEX_HOME")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path("cortex", appauthor=False)
