"""Reads cortex.toml, which sets flags. Its keys are the flags' names with underscores."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from api.flags.table import ROWS
from api.home import home

CONFIG_NAME: Final = "cortex.toml"


class ConfigFileError(Exception):
    """A cortex.toml that cannot be used. The message is one line for the user."""


def read_config(path: str | None) -> dict[str, Any]:
    """The flags that a file sets, by name. Without a path, it is cortex.toml in $CORTEX_HOME, if that exists.

    Raises ConfigFileError if the file cannot be read, is not TOML, or has an unknown key or an invalid value.
    """
    file = home() / CONFIG_NAME if path is None else _expanded(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        if path is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise ConfigFileError(f"{file} cannot be read: {error.strerror}") from error
    values = _parsed(content, file)
    for key, value in values.items():
        if key not in ROWS:
            name = key.replace("-", "_")
            meant = f"; did you mean {name!r}?" if name in ROWS else ""
            raise ConfigFileError(f"{file}: the key {key!r} is unknown{meant}")
        try:
            values[key] = ROWS[key].checked(value)
        except ValueError as error:
            raise ConfigFileError(f"{file}: {key}: {error}") from None
    return values


def _parsed(content: bytes, file: Path) -> dict[str, Any]:
    import tomllib  # imported late: most commands have no such file

    try:
        return tomllib.loads(content.decode() + "\n")  # else tomllib reports no line number for the last line
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigFileError(f"{file} is not TOML: {' '.join(str(error).split())}") from None


def _expanded(path: str) -> Path:
    with suppress(RuntimeError):  # no such user
        return Path(path).expanduser()
    return Path(path)
