"""`python -m bench`: measure the speed of Cortex and of other OpenAI-compatible servers."""

import typer

from bench.commands.ceiling import ceiling
from bench.commands.cluster import cluster
from bench.commands.compare import compare, page_command
from bench.commands.connections import connections
from bench.commands.crowded import crowded
from bench.commands.fanout import fanout
from bench.commands.load import load
from bench.commands.memory import memory
from bench.commands.restart import restart
from bench.commands.simulate import simulate
from bench.commands.start import start

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
for command in (load, ceiling, compare, start, restart, memory, fanout, crowded, connections, cluster, simulate):
    app.command()(command)
app.command("page")(page_command)

if __name__ == "__main__":
    app()
