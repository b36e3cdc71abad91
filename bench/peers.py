"""Which servers are compared and what each is told. `make peers` builds those that are not ours."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench.records import BenchError
from bench.servers import Spec

PEERS = Path(".peers")
# Answers that a server generates at once, for all of them; it is Cortex's default. What comes beyond waits its turn.
SLOTS = 32

# llama-server's candidates for "tuned": prompt chunks that spare running answers, or large ones; one pool or a lane for
# each slot. The host cache is on.
TUNING: tuple[tuple[str, ...], ...] = tuple(
    ("-b", batch, layout, "--cache-ram", "8192")
    for batch, layout in product(("64", "128", "2048"), ("--kv-unified", "--no-kv-unified"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What is the same for all: the model, the threads, and the tokens that the longest request needs."""

    model_path: Path
    threads: int
    context: int
    scratch: Path  # for what servers write
    extra: Mapping[str, tuple[str, ...]]  # the user's own flags, by server
    end_tokens: Callable[[], list[int]]  # that end an answer; for servers that do not know ignore_eos
    peers: Path = PEERS


def cortex(common: Common, port: int, name: str = "cortex", flags: Iterable[str] = ()) -> Spec:
    """At its defaults, a context of 8,192 whatever the requests need, but for these flags."""
    command = Path(sys.executable).with_name("cortex")
    flags = tuple(flags)
    return Spec(
        name=name,
        url=_url(port),
        command=(
            _found(command, "make install"),
            *("serve", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("--threads", str(common.threads), *flags, *common.extra.get(name, ())),
        ),
        environment={"CORTEX_HOME": str(common.scratch / name)},  # so that it runs beside the user's own
        note=shlex.join(flags) or "defaults",
    )


def llama_server(common: Common, port: int, name: str = "llama-server", flags: Iterable[str] = ()) -> Spec:
    """As many slots as Cortex has, each with the context that the longest request needs; else its defaults.

    It divides its context (-c) among the slots, so a larger one would only cost it memory, and without -np it would
    have four slots.
    """
    chosen = (*flags, *common.extra.get(name, ()))
    return Spec(
        name=name,
        url=_url(port),
        command=(
            _found(common.peers / "build/bin/llama-server"),
            *("-m", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("-t", str(common.threads), "-np", str(SLOTS), "-c", str(SLOTS * common.context), *chosen),
        ),
        note=f"{SLOTS} slots of {common.context} tokens, " + (shlex.join(chosen) if chosen else "else defaults"),
    )


def llama_cpp_python(common: Common, port: int) -> Spec:
    """Answers one request after another. By default it breaks an answer off when the next request comes."""
    return Spec(
        name="llama-cpp-python",
        url=_url(port),
        command=(
            _found(common.peers / "venv/bin/python"),
            *("-m", "llama_cpp.server", "--model", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("--n_threads", str(common.threads), "--n_threads_batch", str(common.threads)),
            *("--n_ctx", str(common.context), "--interrupt_requests", "False", "--logits_all", "False"),
            *common.extra.get("llama-cpp-python", ()),
        ),
        ignore_eos=False,
        fields={"logit_bias": _never(common)},
        note="one request at a time",
    )


def example_server(common: Common, port: int) -> Spec:
    """The batching server among llama-cpp-python's examples, with the sizes of its own example configuration."""
    config = common.scratch / "example-server.json"
    model = {
        "path": str(common.model_path),
        "alias": "model",
        "n_ctx": SLOTS * common.context,
        "n_seq_max": 64,
        "n_batch": 128,
        "n_ubatch": 128,
        "threads": common.threads,
        "threads_batch": common.threads,
        "kv_unified": True,
        "store_logits": False,
    }
    config.write_text(json.dumps({"server": {"host": "127.0.0.1", "port": port}, "model": model}, indent=2))
    return Spec(
        name="example-server",
        url=_url(port),
        command=(
            _found(common.peers / "venv/bin/python"),
            _found(common.peers / "source/examples/server/server.py"),
            *("--config-file", str(config)),
        ),
        ignore_eos=False,
        fields={"logit_bias": _never(common)},
        note=f"one pool of {SLOTS * common.context} tokens, chunks of 128",
    )


MAKERS: Mapping[str, Callable[[Common, int], Spec]] = {
    "cortex": cortex,
    "llama-server": llama_server,
    "llama-cpp-python": llama_cpp_python,
    "example-server": example_server,
}
TUNED = "llama-server-tuned"
BARE = "bare-loop"
NAMES = ("cortex", "llama-server", TUNED, "llama-cpp-python", "example-server", BARE)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def _never(common: Common) -> dict[str, int]:
    return {str(token): -100 for token in common.end_tokens()}


def _found(path: Path, remedy: str = "make peers") -> str:
    if not path.exists():
        raise BenchError(f"{path} is not there: run `{remedy}` first")
    return str(path.absolute())
