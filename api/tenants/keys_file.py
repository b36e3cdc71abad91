"""The file of `--keys-file`: tenants and their keys in TOML, for machines that share keys."""

import json
import tomllib
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from api.tenants.errors import TenantsError
from api.tenants.keys import hash_of
from api.tenants.store import ENDING, StoredKey, StoredTenant
from api.tenants.tenant import Limits, Priority, Tenant
from api.tenants.values import MAX_LIMIT, checked_key, checked_name, checked_weight, end_of, time_text

HASH_PREFIX: Final = "sha256:"

Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT)]


def _timestamp(value: datetime | date) -> float:
    return value.timestamp() if isinstance(value, datetime) else end_of(value)


def _checked_time(value: datetime | date) -> datetime | date:
    try:
        _timestamp(value)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{value} is not a time that this system knows") from error
    return value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, AfterValidator(checked_name)]
    hashes: list[Annotated[str, Field(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")]] = Field(default_factory=list)
    keys: list[Annotated[str, AfterValidator(checked_key)]] = Field(default_factory=list)
    weight: Annotated[float, AfterValidator(checked_weight)] = 1.0
    priority: Literal["interactive", "default", "batch"] = "default"
    models: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    admin: bool = False
    expires: Annotated[datetime | date, AfterValidator(_checked_time)] | None = None
    max_waiting: Limit | None = None
    max_concurrent: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None

    def stored(self, now: float) -> StoredTenant:
        keys = [StoredKey(bytes.fromhex(each.removeprefix(HASH_PREFIX)), each[-ENDING:], now) for each in self.hashes]
        keys += [StoredKey(hash_of(each), each[-ENDING:], now) for each in self.keys]
        limits = Limits(self.max_waiting, self.max_concurrent, self.requests_per_minute, self.tokens_per_minute)
        priority = Priority[self.priority.upper()]
        tenant = Tenant(self.name, self.weight, priority, limits, tuple(self.models), self.admin)
        return StoredTenant(tenant, now, self._expires_at, tuple(keys))

    @property
    def _expires_at(self) -> float | None:
        return None if self.expires is None else _timestamp(self.expires)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tenant: list[_Entry] = Field(default_factory=list)


class KeysFileError(TenantsError):
    """A keys file that cannot be used."""


def read_keys_file(file: Path, now: float = 0.0) -> list[StoredTenant]:
    """The tenants of a keys file. `now`: the time that they are said to be made at.

    Raises KeysFileError if the file cannot be read or is not valid. The message has no key.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe could be read once only
            raise KeysFileError(f"{file} is not a regular file")
        content = tomllib.loads(file.read_bytes().decode())
        entries = _File.model_validate(content).tenant
    except OSError as error:
        raise KeysFileError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise KeysFileError(f"{file}: {_first_problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise KeysFileError(f"{file} is not TOML: {' '.join(str(error).split())}") from None
    names = [entry.name for entry in entries]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise KeysFileError(f"{file}: the name {twice!r} occurs twice")
    tenants = [entry.stored(now) for entry in entries]
    hashes = [key.hash for each in tenants for key in each.keys]
    if len(set(hashes)) < len(hashes):
        raise KeysFileError(f"{file}: a key occurs twice")
    return tenants


def _first_problem(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"]).removeprefix(".")
    return f"{place}: {details['msg'].removeprefix('Value error, ')}"


def entry_text(tenant: Tenant, key: str, expires_at: float | None) -> str:
    """The entry of a tenant in a keys file. It has the key's hash only."""
    limits = tenant.limits
    values: dict[str, str | None] = {
        "name": _quoted(tenant.name),
        "hashes": f'["{HASH_PREFIX}{hash_of(key).hex()}"]',
        "weight": f"{float(tenant.weight)!r}" if tenant.weight != 1 else None,
        "priority": _quoted(tenant.priority.name.lower()) if tenant.priority is not Priority.DEFAULT else None,
        "models": f"[{', '.join(map(_quoted, tenant.models))}]" if tenant.models else None,
        "admin": "true" if tenant.is_admin else None,
        "expires": time_text(expires_at) if expires_at else None,
        "max_waiting": _number(limits.waiting),
        "max_concurrent": _number(limits.concurrent),
        "requests_per_minute": _number(limits.requests_per_minute),
        "tokens_per_minute": _number(limits.tokens_per_minute),
    }
    lines = [f"{name} = {value}" for name, value in values.items() if value is not None]
    return "\n".join(["[[tenant]]", *lines]) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text)  # also a string in TOML


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)
