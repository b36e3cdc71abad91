"""`cortex keys`: adds, lists, changes and revokes the keys of a server's users. Works with and without a server."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from api.command.completion import choices
from api.command.terminal import print_tenants
from api.tenants import store
from api.tenants.database import database, path
from api.tenants.store import Change, StoredTenant
from api.tenants.tenant import Tenant
from api.tenants.values import (
    PRIORITIES,
    checked_name,
    checked_weight,
    expiry_of,
    limit_of,
    priority_of,
    seconds_of,
    time_text,
)

app = typer.Typer()

ALL_MODELS = "all"
ValueT = TypeVar("ValueT")


def _names(incomplete: str) -> list[str]:
    if not path().exists():
        return []
    with database() as connection:
        return [each.tenant.name for each in store.every(connection) if each.tenant.name.startswith(incomplete)]


def _limit(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        metavar="NUMBER", help=f"{text}. 0 for no limit; 'default' for the server's."
    )
    return option


NewName = Annotated[str, typer.Argument(metavar="NAME", help="A name for the user, which must be new.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name as shown by 'cortex keys list'.", autocompletion=_names)
]
Weight = Annotated[
    float | None,
    typer.Option(help="The user's share compared with the shares of others.", show_default="1 for a new key"),
]
PriorityName = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PRIORITIES),
        autocompletion=choices(PRIORITIES),
        help="The highest class of the user's requests. Higher classes go first.",
        show_default="default for a new key",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help=f"The models that the user may use, with commas; '{ALL_MODELS}' for all."),
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="When the user's keys expire: 30d, 12h, a date such as 2030-01-31, or 'never'."),
]
Admin = Annotated[bool | None, typer.Option("--admin/--no-admin", help="Whether the user may start and stop models.")]
MaxWaiting = Annotated[str | None, _limit("How many requests of the user may wait")]
MaxConcurrent = Annotated[str | None, _limit("How many requests of the user may wait and run")]
RequestsPerMinute = Annotated[str | None, _limit("Requests a minute")]
TokensPerMinute = Annotated[str | None, _limit("Prompt tokens and answer tokens a minute")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, without secrets.")]


@app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """Add, list, edit, rotate or revoke the keys of users. A running server follows within a second."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def add(
    name: NewName,
    weight: Weight = None,
    priority: PriorityName = None,
    models: Models = None,
    expires: Expires = None,
    admin: Admin = None,
    max_waiting: MaxWaiting = None,
    max_concurrent: MaxConcurrent = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    print_toml: Annotated[
        bool, typer.Option("--print-toml", help="Print an entry for a keys file instead of storing the key here.")
    ] = False,
) -> None:
    """Add a user and print the user's key. It is shown only now."""
    _checked("NAME", checked_name, name)
    limits = _limits(max_waiting, max_concurrent, requests_per_minute, tokens_per_minute)
    change = _change(weight, priority, models, expires, admin, limits)
    if print_toml:
        _print_entry(name, change)
        return
    with database() as connection:
        key = store.add(connection, name, change)
    _print_key(name, key)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the users and their keys."""
    with database() as connection:
        tenants = store.every(connection)
    rows = [_row(each) for each in tenants]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        print_tenants(rows)
    else:
        typer.echo("There are no keys; 'cortex keys add NAME' adds one.")


@app.command()
def edit(
    name: Name,
    weight: Weight = None,
    priority: PriorityName = None,
    models: Models = None,
    expires: Expires = None,
    admin: Admin = None,
    max_waiting: MaxWaiting = None,
    max_concurrent: MaxConcurrent = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
) -> None:
    """Change the settings of a user. Options that are not given stay as they are."""
    limits = _limits(max_waiting, max_concurrent, requests_per_minute, tokens_per_minute)
    change = _change(weight, priority, models, expires, admin, limits)
    if change == Change():
        raise typer.BadParameter("give at least one option to change; see 'cortex keys edit --help'")
    with database() as connection:
        store.edit(connection, name, change)
    typer.echo(f"{name} is changed.")


@app.command()
def rotate(
    name: Name,
    keep: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the older keys stay valid, such as 12h or 7d.")
    ] = None,
) -> None:
    """Make a new key for a user and print it. Older keys end at once, unless --keep is given."""
    seconds = 0.0 if keep is None else _checked("--keep", seconds_of, keep)
    with database() as connection:
        key = store.rotate(connection, name, seconds)
    _print_key(name, key)


@app.command()
def revoke(name: Name) -> None:
    """End all keys of a user."""
    with database() as connection:
        store.revoke(connection, name)
    typer.echo(f"The keys of {name} are revoked; 'cortex keys rotate {name}' makes a new one.")


def _change(
    weight: float | None,
    priority: str | None,
    models: list[str] | None,
    expires: str | None,
    admin: bool | None,
    limits: dict[str, int | None],
) -> Change:
    return Change(
        None if weight is None else _checked("--weight", checked_weight, weight),
        None if priority is None else _checked("--priority", priority_of, priority),
        None if not models else _models(models),
        admin,
        limits,
        None if expires is None else (_checked("--expires", lambda text: expiry_of(text, time.time()), expires),),
    )


def _limits(
    waiting: str | None, concurrent: str | None, requests_per_minute: str | None, tokens_per_minute: str | None
) -> dict[str, int | None]:
    given = {
        "waiting": ("--max-waiting", waiting),
        "concurrent": ("--max-concurrent", concurrent),
        "requests_per_minute": ("--requests-per-minute", requests_per_minute),
        "tokens_per_minute": ("--tokens-per-minute", tokens_per_minute),
    }
    return {name: _checked(option, limit_of, text) for name, (option, text) in given.items() if text is not None}


def _models(texts: list[str]) -> tuple[str, ...]:
    names = [name.strip() for text in texts for name in text.split(",")]
    if ALL_MODELS in names:
        return ()
    if not all(names):
        raise typer.BadParameter("the name of a model is empty", param_hint="--models")
    return tuple(dict.fromkeys(names))


def _checked(option: str, convert: Callable[[Any], ValueT], value: object) -> ValueT:
    try:
        return convert(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}", param_hint=option) from None


def _print_key(name: str, key: str) -> None:
    """The key alone is on stdout, so that a script can read it."""
    typer.echo(key)
    typer.echo(f"This is the key of {name}. Only its hash is stored, so it cannot be shown again.", err=True)


def _print_entry(name: str, change: Change) -> None:
    from api.tenants.keys import new_key
    from api.tenants.keys_file import entry_text  # imported late: pydantic imports slowly

    key = new_key()
    typer.echo(entry_text(change.of(Tenant(name)), key, change.expiry[0] if change.expiry else None))
    typer.echo(f"{key}\nThis is the key of {name}. It is stored nowhere. Add the entry to your keys file.", err=True)


def _row(stored: StoredTenant) -> dict[str, Any]:
    tenant, now = stored.tenant, time.time()
    keys = [key for key in stored.keys if key.revoked_at is None]
    return {
        "name": tenant.name,
        "state": stored.state(now),
        "weight": tenant.weight,
        "priority": tenant.priority.name.lower(),
        "admin": tenant.is_admin,
        "models": list(tenant.models),
        "max_waiting": tenant.limits.waiting,
        "max_concurrent": tenant.limits.concurrent,
        "requests_per_minute": tenant.limits.requests_per_minute,
        "tokens_per_minute": tenant.limits.tokens_per_minute,
        "created": time_text(stored.created_at),
        "expires": _time(stored.expires_at),
        "keys": [
            {"ending": key.ending, "created": time_text(key.created_at), "expires": _time(key.expires_at)}
            for key in keys
        ],
    }


def _time(at: float | None) -> str | None:
    return None if at is None else time_text(at)
