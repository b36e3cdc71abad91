"""How much each tenant has used, in the database."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from api.sqlite import transaction

By = Literal["key", "model", "day"]
_COLUMNS: Final[dict[By, str]] = {"key": "tenant", "model": "model", "day": "day"}


@dataclass(frozen=True, slots=True)
class Used:
    """What requests have used."""

    requests: int = 0
    prompt_tokens: int = 0
    """The cached ones included."""
    cached_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: "Used") -> "Used":
        return Used(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.answer_tokens + other.answer_tokens,
        )


@dataclass(frozen=True, slots=True)
class UsageRow:
    day: str
    """The day of the server's local time, as in `2030-01-31`."""
    tenant: str
    model: str
    used: Used


def write(connection: sqlite3.Connection, rows: Iterable[UsageRow]) -> None:
    """Add rows to what the database has."""
    with transaction(connection):
        connection.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, tenant, model) DO UPDATE SET"
            " requests = requests + excluded.requests,"
            " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " cached_tokens = cached_tokens + excluded.cached_tokens,"
            " answer_tokens = answer_tokens + excluded.answer_tokens",
            (
                (
                    row.day,
                    row.tenant,
                    row.model,
                    row.used.requests,
                    row.used.prompt_tokens,
                    row.used.cached_tokens,
                    row.used.answer_tokens,
                )
                for row in rows
            ),
        )


def totals(connection: sqlite3.Connection, by: By) -> list[tuple[str, Used]]:
    """The usage of each tenant, model or day, by name."""
    column = _COLUMNS[by]
    sql = (
        f"SELECT {column}, sum(requests), sum(prompt_tokens), sum(cached_tokens), sum(answer_tokens)"  # noqa: S608
        f" FROM usage GROUP BY {column} ORDER BY {column}"
    )
    return [(name, Used(*numbers)) for name, *numbers in connection.execute(sql)]
