"""What Ray Serve costs beside a node directly: `python -m deploy.ray.measure`. Prints JSON. Takes about five minutes.

- `single`: streams of one user, in turn to a node directly, through Serve, and through each URL of `--url`: time to the
  first token, time between tokens, and CPU time of Ray's processes for each token. Overheads compare medians.
- `shared` and `multiturn`: 16 users of two replicas: hit rate, prompt tokens computed, share of the busier node.
- memory of Ray's processes and of the nodes.

No other work may run on this machine meanwhile.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import psutil

from deploy.ray.local import Cluster, cluster, metric

MODEL: Final = "smollm2:135m"
START_SECONDS: Final = 300.0
LOADS: Final = {"shared": ("--requests=48", "--users=16"), "multiturn": ("--requests=48", "--users=16")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.measure", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--streams", type=int, default=15, help="streams to each server (default: 15)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer (default: 128)")
    parser.add_argument("--url", action="append", default=[], metavar="URL", help="another server, as in http://.../v1")
    options = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with node(Path(folder)) as direct, cluster(MODEL, log, "--replicas=1") as one:
            result["single"] = single([direct, one.url, *options.url], one, options.streams, options.tokens)
            result["memory_mib"] = memory(one)
        with cluster(MODEL, log, "--replicas=2") as two:
            result |= {name: loaded(two, name, flags) for name, flags in LOADS.items()}
            result["memory_mib_of_two"] = memory(two)
    print(json.dumps(result, indent=2))


@contextmanager
def node(folder: Path) -> Iterator[str]:
    """A node with one thread, as in a replica. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "api", "serve", f"--port={port}", "--threads=1", MODEL]
    with (folder / "direct.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | {"CORTEX_HOME": str(folder / "direct")}, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node did not start:\n{(folder / 'direct.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def single(urls: Sequence[str], ray: Cluster, streams: int, tokens: int) -> list[dict[str, object]]:
    """The servers in turn, the first stream of each not counted. The first URL is the baseline."""
    firsts: dict[str, list[float]] = {url: [] for url in urls}
    gaps: dict[str, list[float]] = {url: [] for url in urls}
    cpu: dict[str, list[float]] = {url: [] for url in urls}
    with httpx.Client(timeout=START_SECONDS, trust_env=False) as http:
        for number in range(streams + 1):
            for url in urls:
                before = ray_cpu(ray)
                times = stream(http, url, number, tokens)
                if number:
                    firsts[url].append(times[0])
                    gaps[url].append((times[-1] - times[0]) / (len(times) - 1))
                    cpu[url].append((ray_cpu(ray) - before) / len(times))
    first, gap = median(firsts[urls[0]]), median(gaps[urls[0]])
    return [
        {
            "url": url,
            "ttft_ms": round(1000 * median(firsts[url]), 2),
            "ttft_overhead_ms": round(1000 * (median(firsts[url]) - first), 2),
            "token_ms": round(1000 * median(gaps[url]), 3),
            "token_overhead_ms": round(1000 * (median(gaps[url]) - gap), 3),
            "ray_cpu_ms_a_token": round(1000 * median(cpu[url]), 3),
        }
        for url in urls
    ]


def stream(http: httpx.Client, url: str, number: int, tokens: int) -> list[float]:
    """When each piece of text came, in seconds after the request. Each prompt begins differently."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{number} {url} {time.time_ns()}: tell me a long story."}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began = time.monotonic()
    times = []
    with http.stream("POST", f"{url}/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    times.append(time.monotonic() - began)
    return times


def ray_processes(ray: Cluster) -> list[psutil.Process]:
    """Ray's own, without the nodes."""
    nodes = [each.process for each in ray.nodes()]
    engines = [child for each in nodes for child in each.children(recursive=True)]
    return [each for each in ray.processes() if each not in (*nodes, *engines)]


def ray_cpu(ray: Cluster) -> float:
    """CPU seconds so far. Ray's background work is in it."""
    return sum(sum(each.cpu_times()[:2]) for each in ray_processes(ray))


def memory(ray: Cluster) -> dict[str, int]:
    """MiB by kind of process; pages that processes share are divided among them."""
    found: dict[str, int] = {"nodes": 0, "ray": 0}
    mine = ray_processes(ray)
    for process in ray.processes():
        mib = process.memory_full_info().pss >> 20
        found["ray" if process in mine else "nodes"] += mib
        if "Serve" in process.name() or "Proxy" in process.name():
            found[process.name()] = found.get(process.name(), 0) + mib
    return found


def loaded(ray: Cluster, workload: str, flags: Sequence[str]) -> dict[str, object]:
    """`python -m bench load` through Serve, and what the nodes counted meanwhile."""
    names = ("vllm:prompt_tokens", "vllm:prefix_cache_hits", "vllm:request_success")
    before = {name: [metric(node, name) for node in ray.nodes()] for name in names}
    command = [sys.executable, "-m", "bench", "load", "--url", ray.url, "--workload", workload, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counted = {
        name: [metric(node, name) - old for node, old in zip(ray.nodes(), before[name], strict=True)] for name in names
    }
    prompts, hits, requests = counted.values()
    return {
        "prompt_tokens": sum(prompts),
        "computed_tokens": sum(prompts) - sum(hits),
        "hit_rate": round(sum(hits) / sum(prompts), 3),
        "requests": requests,
        "share_of_the_busier": round(max(requests) / sum(requests), 3),
        "load": json.loads(done.stdout.strip().splitlines()[-1])["summary"],
    }


if __name__ == "__main__":
    main()
