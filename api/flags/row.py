"""A row of the table of flags: the properties of a flag and the checks of its values."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from api.models.files import ModelFilesError, resolve

MAX_NAME_LENGTH: Final = 512

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def num_bytes(size: str) -> int:
    """The number of bytes of a size such as 512MiB, 4G or 0. Raises ValueError if it is not a valid size."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", size.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{size!r} is not a size such as 512MiB, 4GiB or 0.")
    number = float(match[1]) * _UNITS[match[2].upper()]
    if number >= 2**63:
        raise ValueError(f"{size!r} is too large; it must be less than 8 EiB.")
    return int(number)


def _is_endpoint(text: str) -> bool:
    match = re.fullmatch(r"tcp://(?:\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?:\*|([0-9]{1,5}))", text)
    return match is not None and 0 <= int(match[1] or 0) <= 65535


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The properties of a flag in the table, except its name and type."""

    help: str
    default: str = ""
    """Describes a default that is not a fixed value. Fixed defaults are in EngineConfig and ServerSettings."""
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    is_size: bool = False
    """Whether the text is a size such as 4GiB, which is converted to bytes."""
    is_endpoint: bool = False
    """Whether the text is a TCP endpoint of ZMQ."""
    is_path: bool = False
    """Whether the text is the path of a file, which becomes absolute."""
    is_model: bool = False
    """Whether the text names a model on disk, and becomes the path of its first file. Empty is none."""
    is_shared: bool = True
    """Whether a flag of a model applies to all models that a server loads."""
    max_length: int | None = None
    """Maximum number of characters of a text. If it is set, the text must not be empty."""
    metavar: str | None = None
    becomes: str = ""
    """The field of EngineConfig or ServerSettings, if its name differs from the flag's."""
    note: str = ""
    """Text that the README adds to the help."""


@dataclass(frozen=True)
class Row:
    """A flag with its name and type."""

    name: str
    """Its key in cortex.toml and in start requests, and its field in ModelFlags or ServerFlags."""
    type: type
    """int, float, str, bool, or list for a list of texts."""
    flag: Flag
    scope: Literal["model", "server"]
    default: Any
    """The built-in default; None if it is not a fixed value."""

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"CORTEX_{self.name.upper()}"

    @property
    def becomes(self) -> str:
        """The field of EngineConfig or ServerSettings."""
        return self.flag.becomes or self.name

    @property
    def help(self) -> str:
        return f"{self.flag.help} (default: {self.flag.default})" if self.flag.default else self.flag.help

    @property
    def metavar(self) -> str | None:
        return self.flag.metavar or "|".join(self.flag.choices) or None

    def converted(self, value: Any) -> Any:
        """Convert a checked value to the value of the options. Raises ModelFilesError if it names no usable model."""
        if self.flag.is_size:
            return num_bytes(value)
        if self.flag.is_model:
            return self._file_of(value)
        if self.flag.is_path:
            return str(Path(value).expanduser().absolute())
        return tuple(value) if self.type is list else value

    def _file_of(self, model: str) -> str:
        try:
            return str(resolve(model)) if model else ""
        except ModelFilesError as error:
            raise ModelFilesError(f"{self.option}: {error}") from error

    def arguments(self, value: Any) -> list[str]:
        """The command-line arguments that set this value."""
        if self.type is bool:
            return [self.option if value else self.option.replace("--", "--no-", 1)]
        return [f"{self.option}={each}" for each in (value if self.type is list else [value])]

    def check_text(self, text: str) -> None:
        """Raises ValueError if a text, or an item of a list, is not valid."""
        flag = self.flag
        if flag.choices and text not in flag.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(flag.choices)}.")
        if flag.max_length is not None and not 1 <= len(text) <= flag.max_length:
            raise ValueError(f"a name has 1 to {flag.max_length} characters.")
        if flag.is_size:
            num_bytes(text)
        if flag.is_endpoint and not _is_endpoint(text):
            raise ValueError(f"{text!r} is not an endpoint such as tcp://127.0.0.1:5557 or tcp://*:5557.")
        if flag.is_path and (not text or "\0" in text):
            raise ValueError(f"{text!r} is not a path.")

    def checked(self, value: object) -> Any:
        """Check a value from a file and return it. Integers are accepted as floats.

        Raises ValueError if the value has another type or is not valid.
        """
        if self.type is float and type(value) is int and abs(value) < 2**63:
            value = float(value)
        if type(value) is not self.type or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            raise ValueError(f"must be {self._type_text}")
        if isinstance(value, int | float) and not self._is_in_range(value):
            raise ValueError(f"must be {self.range_text}")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                self.check_text(text)
        return value

    def _is_in_range(self, value: float) -> bool:
        low, high = self.flag.min, self.flag.max
        is_finite = isinstance(value, int) or math.isfinite(value)
        return is_finite and (low is None or value >= low) and (high is None or value <= high)

    @property
    def range_text(self) -> str:
        """The range of a number, as in `from 1 to 255`."""
        low, high = self.flag.min, self.flag.max
        if low is None or high is None:
            return "a finite number" if low is None else f"at least {low:g}"
        return f"from {low:g} to {high:g}"

    @property
    def _type_text(self) -> str:
        if self.flag.is_size:
            return 'a size in quotes, such as "4GiB" or "0"'
        texts = {
            int: "an integer",
            float: "a number",
            str: "a string",
            bool: "true or false",
            list: "a list of strings",
        }
        return texts[self.type]
