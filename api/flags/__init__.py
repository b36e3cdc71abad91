"""The table of flags, and the options made from their values."""

from api.flags.options import (
    DEFAULT_PORT,
    CacheScope,
    ModelOptions,
    ServerOptions,
    ServerSettings,
    is_loopback,
    own_defaults,
)
from api.flags.row import MAX_NAME_LENGTH, Flag, Row, num_bytes
from api.flags.table import MODEL_ROWS, ROWS, SERVER_ROWS, ModelFlags, ServerFlags

__all__ = [
    "DEFAULT_PORT",
    "MAX_NAME_LENGTH",
    "MODEL_ROWS",
    "ROWS",
    "SERVER_ROWS",
    "CacheScope",
    "Flag",
    "ModelFlags",
    "ModelOptions",
    "Row",
    "ServerFlags",
    "ServerOptions",
    "ServerSettings",
    "is_loopback",
    "num_bytes",
    "own_defaults",
]
