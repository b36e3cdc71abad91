"""Gives typer commands the flags of the table, with values from cortex.toml."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from api.command.completion import choices
from api.flags import ROWS, Row, ServerFlags
from api.flags.config_file import CONFIG_NAME, read_config

_CONFIG: Final = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            envvar="CORTEX_CONFIG",
            metavar="PATH",
            help=f"TOML file with values for flags. (default: {CONFIG_NAME} in $CORTEX_HOME, if it exists)",
        ),
    ],
)


def with_server_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a typer command `--config` and the flags of these names, or all flags of the table without names.

    The command receives their values as its parameter `flags`. Precedence: command line, environment, cortex.toml. The
    decorated command raises ConfigFileError if the file cannot be used.

    Typer reads a command's parameters from its signature, so the decorated command has a parameter per flag.
    """
    return functools.partial(_with_flags, [row for row in ROWS.values() if not names or row.name in names])


def _with_flags(rows: list[Row], command: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)
    own_parameters = [parameter for name, parameter in signature.parameters.items() if name != "flags"]

    @functools.wraps(command)
    def decorated(context: typer.Context, config: str | None, **arguments: Any) -> None:
        values = {row.name: arguments.pop(row.name) for row in rows}
        given = {name: value for name, value in values.items() if _is_given(context, name)}
        in_file = {name: value for name, value in read_config(config).items() if name in values}
        command(flags=ServerFlags(**in_file | given), **arguments)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    decorated.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own_parameters, *map(_parameter, rows), _CONFIG, context]
    )
    return decorated


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line or the environment set a parameter, even to its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _parameter(row: Row) -> inspect.Parameter:
    kind = list[str] if row.type is list else row.type
    return inspect.Parameter(
        row.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=row.default,
        annotation=Annotated[kind if row.default is not None else kind | None, _option(row)],
    )


def _option(row: Row) -> Any:
    def check(value: Any) -> Any:
        texts = value if row.type is list else [value]
        try:
            for text in texts:
                if isinstance(text, str):
                    row.check_text(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return typer.Option(
        *([f"{row.option}/--no-{row.option[2:]}"] if row.type is bool else []),
        envvar=row.variable,
        min=row.flag.min,
        max=row.flag.max,
        metavar=row.metavar,
        callback=check,
        autocompletion=choices(row.flag.choices) if row.flag.choices else None,
        help=row.help,
    )
