"""The table of flags for the docs."""

from api.flags.row import Row
from api.flags.table import ROWS


def markdown() -> str:
    """A Markdown table with each flag's option, values, default, environment variable and description."""
    head = "| option | value | default | environment | |\n|---|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(_cells(row))} |\n" for row in ROWS.values())


def _cells(row: Row) -> tuple[str, ...]:
    option = f"`{row.option}`"
    if row.type is bool:
        option += f", `{row.option.replace('--', '--no-')}`"
    text = f"{row.flag.help} {row.flag.note}".rstrip()
    return option, _values(row), row.flag.default or _default(row), f"`{row.variable}`", text


def _values(row: Row) -> str:
    if row.flag.choices:
        return ", ".join(row.flag.choices)
    if row.flag.is_size:
        return "size"
    names = {int: "integer", float: "number", str: "text", bool: "on or off", list: "text, several"}
    name = "seconds" if row.metavar == "SECONDS" else names[row.type]
    return f"{name}, {row.range_text}" if row.flag.min is not None else name


def _default(row: Row) -> str:
    if row.type is bool:
        return "on" if row.default else "off"
    if row.type is list:
        return "none"
    return f"{row.default:g}" if row.type is float else str(row.default)
