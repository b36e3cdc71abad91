"""The routers that `bench cluster` starts, and their flags."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from bench.peers import PEERS
from bench.records import BenchError
from bench.servers import Spec
from bench.simulation.routing import Thresholds

SMG_FLAGS: Final = Path("deploy/smg.flags")
"""The flags that docs/cluster.md explains, `--policy` included."""
VLLM_FLAGS: Final = (
    *("--balance-abs-threshold", "1", "--balance-rel-threshold", "1.1"),
    *("--cb-failure-threshold", "1", "--health-check-interval-secs", "1", "--health-failure-threshold", "1"),
    *("--health-success-threshold", "1", "--worker-startup-check-interval", "1"),
)
EVENTS_POLICY: Final = "kv_aware"
PAGE_TOKENS: Final = 32
ROUTERS: Final[Mapping[str, str]] = {"smg": "'cortex-server[cluster]'", "vllm-router": "vllm-router"}
"""What pip must install, by the name of the router and of its command."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A router and one of its policies."""

    router: str
    policy: str

    def __str__(self) -> str:
        return f"{self.router}:{self.policy}"

    @property
    def needs_events(self) -> bool:
        """Whether the nodes must publish what their KV caches hold."""
        return (self.router, self.policy) == ("vllm-router", EVENTS_POLICY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A node as its router sees it. Without endpoints, it publishes no KV events."""

    url: str
    events: str = ""
    replay: str = ""
    model: str = ""
    """The name of the model whose events it publishes."""


def choices(given: str) -> tuple[Choice, ...]:
    """Reads ROUTER:POLICY, separated by commas. Raises BenchError if there is no such router, or no policy."""
    chosen = []
    for each in filter(None, given.split(",")):
        router, _, policy = each.partition(":")
        if router not in ROUTERS or not policy:
            raise BenchError(f"--policies {each}: use ROUTER:POLICY; the routers are {', '.join(ROUTERS)}")
        chosen.append(Choice(router, policy))
    if not chosen:
        raise BenchError("--policies names no policy")
    return tuple(dict.fromkeys(chosen))


def extra_flags(given: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The user's flags for each router. Raises BenchError if there is no such router."""
    for name in given:
        if name not in ROUTERS:
            raise BenchError(f"--router-flags {name}: the routers are {', '.join(ROUTERS)}")
    return {name: tuple(shlex.split(flags)) for name, flags in given.items()}


def find(router: str, folder: Path | None) -> Path:
    """Returns the router's command in `folder`; by default beside this Python, else on PATH, else in .peers/venv.

    Raises BenchError if it is not there.
    """
    if folder is not None:
        places = [folder / router]
    else:
        on_path = shutil.which(router)
        beside = Path(sys.executable).with_name(router)
        places = [beside, *([Path(on_path)] if on_path else []), PEERS / "venv/bin" / router]
    for place in places:
        if place.is_file():
            return place.absolute()
    if folder is not None:
        raise BenchError(f"{router} is not in {folder}")
    raise BenchError(f"{router} is not installed: pip install {ROUTERS[router]}, or use --router-folder")


def spec(
    choice: Choice, command: Path, port: int, metrics_port: int, nodes: Sequence[Behind], extra: Sequence[str]
) -> Spec:
    """Returns how to start the router in front of these nodes. `extra` are the user's flags: they win.

    Raises BenchError if the file with SMG's flags cannot be read.
    """
    common = (
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        *("--worker-urls", *(node.url for node in nodes)),
    )
    flags = (*_own_flags(choice.router), *common)
    if choice.needs_events:
        flags = (*flags, "--kv-event-block-size", str(PAGE_TOKENS), "--kv-event-model", nodes[0].model)
        for node in nodes:
            flags = (*flags, "--kv-event-source", f"{node.url}={node.events}")
            flags = (*flags, "--kv-event-replay-source", f"{node.url}={node.replay}")
    return Spec(
        name=str(choice),
        url=f"http://127.0.0.1:{port}/v1",
        command=(str(command), *flags, "--policy", choice.policy, *extra),
    )


def thresholds(choice: Choice, extra: Sequence[str]) -> Thresholds:
    """What the router's flags say about balance, for its model. Raises BenchError as `spec` does."""
    flags = [*_own_flags(choice.router), *extra]
    names = {"--cache-threshold": "match", "--balance-abs-threshold": "absolute", "--balance-rel-threshold": "relative"}
    given = {names[flag]: float(value) for flag, value in pairwise(flags) if flag in names}
    return replace(Thresholds(), **given)


def _own_flags(router: str) -> tuple[str, ...]:
    if router == "smg":
        return "launch", *_smg_flags(), "--log-level", "warn"
    return *VLLM_FLAGS, "--log-level", "warning"


def _smg_flags() -> list[str]:
    try:
        return shlex.split(SMG_FLAGS.read_text(), comments=True)
    except OSError as error:
        raise BenchError(f"cannot read {SMG_FLAGS}: run it in a checkout of Cortex ({error.strerror})") from error
