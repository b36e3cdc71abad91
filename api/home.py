"""Where Cortex keeps things."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of everything that Cortex keeps. It may not exist yet."""
    chosen = os.environ.get("CORTEX_HOME")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path("cortex", appauthor=False)
