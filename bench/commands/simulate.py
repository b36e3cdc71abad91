"""`python -m bench simulate`: tenants that share a machine, in virtual time and without a model."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer
from rich.console import Console
from rich.table import Table

from bench.commands.common import FAILED, USAGE, command_line
from bench.records import BenchError
from bench.simulation.machine import POLICIES
from bench.simulation.plot import draw
from bench.simulation.scenarios import DRAWN, SCENARIOS, Limit, Outcome, Scenario, Setup


def simulate(
    *,
    scenario: Annotated[
        str, typer.Option(help=f"One of {', '.join(SCENARIOS)}. Default: all of them.", show_default=False)
    ] = "",
    policy: Annotated[str, typer.Option(help=f"The scheduling policy: {' or '.join(POLICIES)}.")] = next(
        iter(POLICIES)
    ),
    seconds: Annotated[float, typer.Option(min=20.0, max=3600.0, help="Virtual seconds of each phase.")] = 60.0,
    kv_layout: Annotated[Literal["lanes", "pool"], typer.Option(help="The layout of the KV memory.")] = "lanes",
    out: Annotated[Path | None, typer.Option(help="A JSON file with all measures.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help=f"A PNG file: the service of each tenant over time ({' or '.join(DRAWN)}).")
    ] = None,
) -> None:
    """Simulate tenants on the real scheduler in virtual time. The exit code is 1 if a limit is not met."""
    try:
        chosen = _chosen(scenario, policy, plot)
        setup = Setup(policy=policy, seconds=seconds, lanes=kv_layout == "lanes")
        outcomes = {name: each.run(setup) for name, each in chosen.items()}
        if plot is not None:
            curves = outcomes[scenario].curves
            assert curves is not None, "_chosen has checked that there is something to draw"
            draw(curves, f"{scenario}, policy {policy}", plot)
        if out is not None:
            document = {
                "command": command_line(),
                "policy": policy,
                "seconds": seconds,
                "kv_layout": kv_layout,
                "scenarios": {name: outcome.measures for name, outcome in outcomes.items()},
            }
            out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    except (BenchError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    console = Console()
    for name, outcome in outcomes.items():
        _show(name, chosen[name], outcome, console)
    sys.stdout.write(orjson.dumps({name: outcome.measures for name, outcome in outcomes.items()}).decode() + "\n")
    if not all(limit.is_met(outcomes[name].measures) for name, each in chosen.items() for limit in each.limits):
        raise typer.Exit(FAILED)


def _chosen(scenario: str, policy: str, plot: Path | None) -> dict[str, Scenario]:
    """Raises BenchError if there is no such scenario or policy, or nothing to draw."""
    if policy not in POLICIES:
        raise BenchError(f"--policy {policy}: must be one of {', '.join(POLICIES)}")
    if scenario and scenario not in SCENARIOS:
        raise BenchError(f"--scenario {scenario}: must be one of {', '.join(SCENARIOS)}")
    if plot is not None and scenario not in DRAWN:
        raise BenchError(f"--plot needs --scenario {' or '.join(DRAWN)}")
    return {scenario: SCENARIOS[scenario]} if scenario else dict(SCENARIOS)


def _show(name: str, scenario: Scenario, outcome: Outcome, console: Console) -> None:
    table = Table(title=f"{name}: {scenario.description}", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("limit")
    limits = {limit.measure: limit for limit in scenario.limits}
    for measure, value in outcome.measures.items():
        limit = limits.get(measure)
        verdict = "" if limit is None else f"{_text(limit)}: {'met' if limit.is_met(outcome.measures) else 'NOT met'}"
        table.add_row(measure, "-" if value is None else f"{value:,.3f}".rstrip("0").rstrip("."), verdict)
    console.print(table)


def _text(limit: Limit) -> str:
    ends = [(limit.at_least, "at least"), (limit.at_most, "at most")]
    return ", ".join(f"{word} {value:g}" for value, word in ends if abs(value) != float("inf"))
