"""The servers of a comparison and their flags. `make peers` builds the servers other than Cortex."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from api.models.files import resolve
from bench.records import BenchError
from bench.servers import Spec

PEERS = Path(".peers")
# Answers that each server generates at the same time: Cortex's default. Further requests wait.
SLOTS = 32

# Flags to try for the tuned llama-server: small prompt chunks, which delay running answers less, or large ones; one
# pool, or a lane for each slot. The host cache is on.
TUNING: tuple[tuple[str, ...], ...] = tuple(
    ("-b", batch, layout, "--cache-ram", "8192")
    for batch, layout in product(("64", "128", "2048"), ("--kv-unified", "--no-kv-unified"))
)


# Flags to try for the llama-server that drafts: all kinds that need no second model.
DRAFTING_FLAGS: tuple[tuple[str, ...], ...] = tuple(
    ("--spec-type", kind) for kind in ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The same for all servers. `context` is the number of tokens that the longest request needs."""

    model_path: Path
    threads: int
    context: int
    scratch: Path  # for files of the servers
    extra: Mapping[str, tuple[str, ...]]  # the user's flags by server
    end_tokens: Callable[[], list[int]]  # end-of-generation tokens, for servers without ignore_eos
    peers: Path = PEERS


def cortex(common: Common, port: int, name: str = "cortex", flags: Iterable[str] = ()) -> Spec:
    """Cortex with its defaults and `flags`. Its context is 8,192 tokens, whatever the requests need."""
    command = Path(sys.executable).with_name("cortex")
    flags = tuple(flags)
    return Spec(
        name=name,
        url=_url(port),
        command=(
            _existing(command, "make install"),
            *("serve", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("--threads", str(common.threads), *flags, *common.extra.get(name, ())),
        ),
        environment={"CORTEX_HOME": str(common.scratch / name)},  # so that it can run beside the user's own server
        note=shlex.join(flags) or "defaults",
    )


def llama_server(common: Common, port: int, name: str = "llama-server", flags: Iterable[str] = ()) -> Spec:
    """llama-server with as many slots as Cortex, each with the context that the longest request needs.

    It divides its context (-c) among the slots, so a larger context would only cost memory. Without -np it would have
    four slots.
    """
    chosen = (*flags, *common.extra.get(name, ()))
    return Spec(
        name=name,
        url=_url(port),
        command=(
            _existing(common.peers / "build/bin/llama-server"),
            *("-m", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("-t", str(common.threads), "-np", str(SLOTS), "-c", str(SLOTS * common.context), *chosen),
        ),
        note=f"{SLOTS} slots of {common.context} tokens, " + (shlex.join(chosen) if chosen else "otherwise defaults"),
    )


def plain_llama_server(model: str, port: int) -> Spec:
    """llama-server with its defaults. Raises ModelFilesError if there is no such model."""
    return Spec(
        name="llama-server",
        url=_url(port),
        command=(
            _existing(PEERS / "build/bin/llama-server"),
            *("-m", str(resolve(model)), "--host", "127.0.0.1", "--port", str(port)),
        ),
        note="defaults",
    )


def llama_cpp_python(common: Common, port: int) -> Spec:
    """Answers one request at a time. Its default is to end an answer when the next request arrives; this is off."""
    return Spec(
        name="llama-cpp-python",
        url=_url(port),
        command=(
            _existing(common.peers / "venv/bin/python"),
            *("-m", "llama_cpp.server", "--model", str(common.model_path), "--host", "127.0.0.1", "--port", str(port)),
            *("--n_threads", str(common.threads), "--n_threads_batch", str(common.threads)),
            *("--n_ctx", str(common.context), "--interrupt_requests", "False", "--logits_all", "False"),
            *common.extra.get("llama-cpp-python", ()),
        ),
        ignore_eos=False,
        fields={"logit_bias": _end_token_bias(common)},
        note="one request at a time",
    )


def example_server(common: Common, port: int) -> Spec:
    """The batching server of llama-cpp-python's examples, with the sizes of its example configuration."""
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
            _existing(common.peers / "venv/bin/python"),
            _existing(common.peers / "source/examples/server/server.py"),
            *("--config-file", str(config)),
        ),
        ignore_eos=False,
        fields={"logit_bias": _end_token_bias(common)},
        note=f"one pool of {SLOTS * common.context} tokens, chunks of 128",
    )


MAKERS: Mapping[str, Callable[[Common, int], Spec]] = {
    "cortex": cortex,
    "llama-server": llama_server,
    "llama-cpp-python": llama_cpp_python,
    "example-server": example_server,
}
TUNED = "llama-server-tuned"
DRAFTING = "llama-server-drafts"
BARE = "bare-loop"
NAMES = ("cortex", "llama-server", TUNED, "llama-cpp-python", "example-server", BARE)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"


def _end_token_bias(common: Common) -> dict[str, int]:
    return {str(token): -100 for token in common.end_tokens()}


def _existing(path: Path, remedy: str = "make peers") -> str:
    if not path.exists():
        raise BenchError(f"{path} does not exist: run `{remedy}` first")
    return str(path.absolute())
