"""`cortex usage`: what the server's users have used."""

import csv
import sys
from enum import StrEnum
from typing import Annotated

import typer

from api.command.terminal import print_usage
from api.tenants.database import database
from api.tenants.usage import totals

COLUMNS = ("requests", "prompt_tokens", "cached_tokens", "answer_tokens")


class By(StrEnum):
    KEY = "key"
    MODEL = "model"
    DAY = "day"


def usage(
    by: Annotated[By, typer.Option(help="One row for each key, model or day.")] = By.KEY,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show how many requests and tokens were used. A running server adds its numbers every few seconds."""
    with database() as connection:
        rows = totals(connection, by.value)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([by.value, *COLUMNS])
        writer.writerows(
            [name, used.requests, used.prompt_tokens, used.cached_tokens, used.answer_tokens] for name, used in rows
        )
    elif rows:
        print_usage(by.value, rows)
    else:
        typer.echo("Nothing has been used yet.")
