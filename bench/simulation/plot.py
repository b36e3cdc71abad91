"""A plot of the service of tenants over time, and of the gap between them beside its bound."""

from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

from bench.records import BenchError
from bench.simulation.service import Curves


def draw(curves: Curves, title: str, path: Path) -> None:
    """Writes a PNG file. Raises BenchError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise BenchError("no plot: install matplotlib with pip install 'cortex-server[bench]'")
    from matplotlib.figure import Figure  # optional: only reports need it

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, served in curves.served.items():
        above.plot(curves.times, served, label=f"{name}, weight {curves.weights[name]:g}")
    above.set_ylabel("tokens computed")
    above.set_title(title)
    above.legend(fontsize="small")
    for one, other in combinations(curves.served, 2):
        mine, theirs = ([tokens / curves.weights[name] for tokens in curves.served[name]] for name in (one, other))
        below.plot(curves.times, [a - b for a, b in zip(mine, theirs, strict=True)], linewidth=1)
    for sign in (1, -1):
        below.axhline(sign * curves.bound, color="black", linestyle="--", linewidth=1)
    below.set_ylabel("gap between two tenants,\ntokens / weight")
    below.set_xlabel("virtual seconds")
    figure.savefig(path, format="png", dpi=120)
