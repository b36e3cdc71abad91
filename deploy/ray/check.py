"""Checks the application on this machine with the SDKs: `python -m deploy.ray.check`. Needs openai and anthropic.

It runs two replicas of the embedded model, kills a node and a replica, and scales from 1 to 2 replicas and back. Exits
with 1 if a check failed.
"""

import asyncio
import ipaddress
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import httpx
import psutil
from anthropic import Anthropic
from openai import OpenAI
from openai.types.shared_params import FunctionDefinition

from deploy.ray.local import Cluster, NodePlace, cluster, metric

MODEL: Final = "smollm2:135m"
SECONDS: Final = 60.0
REPLACED_SECONDS: Final = 10.0
START_SECONDS: Final = 300.0
"""Of another node, on a machine that is busy with the load of this check."""
USERS: Final = 20
WEATHER: Final[FunctionDefinition] = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION: Final = "Count from one to ten in words."


def main() -> int:
    failed = 0

    def check(name: str, run: Callable[[], str]) -> None:
        nonlocal failed
        try:
            print(f"{name}: ok, {run()}", flush=True)
        except Exception as error:  # each check is independent
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with cluster(MODEL, log, "--replicas=2", "--pooling=mean") as two:
            openai = OpenAI(base_url=two.url, api_key="none", timeout=SECONDS, max_retries=0)
            anthropic = Anthropic(base_url=two.root, api_key="none", timeout=SECONDS, max_retries=0)
            check("listens on loopback only", lambda: listens_on_loopback(two))
            check("openai chat", lambda: chat(openai))
            check("openai stream", lambda: stream(openai))
            check("openai tools", lambda: tools(openai))
            check("openai responses", lambda: responses(openai))
            check("openai embeddings", lambda: embeddings(openai))
            check("anthropic messages", lambda: messages(anthropic))
            check("anthropic stream", lambda: messages_stream(anthropic))
            check("errors and headers pass", lambda: passes(two))
            check("a disconnect cancels", lambda: cancels(two))
            check("a prefix stays on a node", lambda: stays(two, openai))
            check("kill -9 of a node", lambda: replaced(two, openai, lambda node: node.process))
            check("kill -9 of a replica", lambda: replaced(two, openai, replica_of))
        elastic = ("--min-replicas=1", "--replicas=2", "--downscale-delay=10", "--target-ongoing-requests=4")
        with cluster(MODEL, log, *elastic) as one:
            check("scales from 1 to 2 and back", lambda: scales(one))
    return 1 if failed else 0


def listens_on_loopback(running: Cluster) -> str:
    """Serve's replicas listen on all interfaces, whatever is set. These ports must demand Ray's token."""
    local, guarded = 0, 0
    for process in running.processes():
        for each in process.net_connections(kind="tcp"):
            if each.status != psutil.CONN_LISTEN:
                continue
            if ipaddress.ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback:
                local += 1
                continue
            assert "ServeReplica" in process.name(), f"{each.laddr} of {process.name()}"
            with grpc.insecure_channel(f"127.0.0.1:{each.laddr.port}") as channel:
                try:
                    channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=SECONDS)
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error  # noqa: PT017
                else:
                    raise AssertionError(f"{each.laddr} of {process.name()} answers without the token")
            guarded += 1
    return f"{local} ports; {guarded} ports of Serve's replicas, on all interfaces, demand Ray's token"


def chat(client: OpenAI) -> str:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=16, temperature=0
    )
    text = answer.choices[0].message.content
    assert text
    return repr(text)


def stream(client: OpenAI) -> str:
    began = time.monotonic()
    pieces = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=48, temperature=0, stream=True
    )
    times = [time.monotonic() - began for piece in pieces if piece.choices and piece.choices[0].delta.content]
    assert len(times) > 1  # the first token never shares a piece with those after it
    assert times[-1] > times[0] * 1.2, "all pieces came at once"
    return f"{len(times)} pieces, the first after {times[0]:.2f} s, the last after {times[-1]:.2f} s"


def tools(client: OpenAI) -> str:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": WEATHER}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=64,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    call = calls[0]
    assert call.type == "function"
    return f"{call.function.name}({call.function.arguments})"


def responses(client: OpenAI) -> str:
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16, temperature=0)
    assert answer.output_text
    kinds = [
        event.type for event in client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16, stream=True)
    ]
    assert kinds[0] == "response.created"
    return f"{answer.output_text!r}, a stream of {len(kinds)} events that ends with {kinds[-1]}"


def embeddings(client: OpenAI) -> str:
    answer = client.embeddings.create(model=MODEL, input=["one", "two"])
    return f"{len(answer.data)} embeddings of {len(answer.data[0].embedding)} numbers"


def messages(client: Anthropic) -> str:
    answer = client.messages.create(model=MODEL, max_tokens=16, messages=[{"role": "user", "content": QUESTION}])
    (block,) = answer.content
    assert block.type == "text"
    return repr(block.text)


def messages_stream(client: Anthropic) -> str:
    with client.messages.stream(model=MODEL, max_tokens=32, messages=[{"role": "user", "content": QUESTION}]) as answer:
        pieces = list(answer.text_stream)
    assert len(pieces) > 1
    return f"{len(pieces)} pieces"


def passes(running: Cluster) -> str:
    """An error has the node's status and body, and headers pass both ways."""
    answer = httpx.post(f"{running.url}/chat/completions", json={"model": MODEL, "messages": 1}, trust_env=False)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "messages", answer.text
    missing = httpx.get(f"{running.url}/nothing", trust_env=False)
    assert missing.status_code == 404
    late = {"X-Request-Timeout": "0.001"}  # a header of Cortex
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64}
    timed = httpx.post(f"{running.url}/chat/completions", json=body, headers=late, timeout=SECONDS, trust_env=False)
    assert timed.status_code == 504, timed.text
    return "400 with its field, 404, and the 504 that X-Request-Timeout asks for"


def cancels(running: Cluster) -> str:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Write a very long story."}],
        "max_tokens": 4000,
        "stream": True,
        "ignore_eos": True,
    }
    with httpx.stream("POST", f"{running.url}/chat/completions", json=body, timeout=SECONDS, trust_env=False) as answer:
        lines = answer.iter_lines()  # it ends the answer when it is collected
        next(lines)
        _wait_until(lambda: len(_busy(running)) == 1, "no node computes")
    seconds = _wait_until(lambda: not _busy(running), "the node still computes")
    return f"the node has stopped computing {seconds:.2f} s after the client left"


def _busy(running: Cluster) -> list[NodePlace]:
    return [node for node in running.nodes() if metric(node, "vllm:num_requests_running")]


def _wait_until(condition: Callable[[], bool], trouble: str, seconds: float = SECONDS) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, trouble
        time.sleep(0.05)
    return time.monotonic() - began


def stays(running: Cluster, client: OpenAI) -> str:
    """Turns of conversations: each must find its history in the cache of its node."""
    before = [metric(node, "vllm:prefix_cache_hits") for node in running.nodes()]
    asked = [metric(node, "vllm:request_success") for node in running.nodes()]
    for subject in ("ships", "trees", "maps", "bread", "clocks", "rivers"):
        history = [f"Tell me about {subject}. " + "Be precise, friendly and brief. " * 20]
        for turn in range(3):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": each} for each in history], max_tokens=4
            )
            history.append(f"And what else is there, number {turn}?")
    hits = [metric(node, "vllm:prefix_cache_hits") - old for node, old in zip(running.nodes(), before, strict=True)]
    counts = [metric(node, "vllm:request_success") - old for node, old in zip(running.nodes(), asked, strict=True)]
    assert sum(counts) == 18, counts
    assert all(counts), f"one node got everything: {counts}"
    assert all(count % 3 == 0 for count in counts), f"a conversation changed its node: {counts}"
    return f"requests of the nodes {[int(each) for each in counts]}, cached tokens {[int(each) for each in hits]}"


def replica_of(node: NodePlace) -> psutil.Process:
    parent = node.process.parent()
    assert parent is not None
    return parent


def replaced(running: Cluster, client: OpenAI, victim: Callable[[NodePlace], psutil.Process]) -> str:
    """A stream breaks with an error at the end of its node. Requests are served meanwhile, and the node replaced."""
    _wait_until(lambda: running.num_ready() == 2, "not two nodes", START_SECONDS)
    broken: list[str] = []
    started = threading.Event()

    def read() -> None:
        try:
            for _ in client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Write a very long story."}],
                max_tokens=4000,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                started.set()
            broken.append("no error")
        except Exception as error:
            broken.append(f"{type(error).__name__}: {error}")

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(SECONDS)
    _wait_until(lambda: len(_busy(running)) == 1, "no node computes")
    (node,) = _busy(running)
    old = {each.process.pid for each in running.nodes()}
    os.kill(victim(node).pid, signal.SIGKILL)
    began = time.monotonic()
    served = [_seconds_of_request(client, number) for number in range(4)]
    reader.join(SECONDS)
    assert broken, "the stream hangs"
    assert broken[0] != "no error"
    assert max(served) < REPLACED_SECONDS, served
    _wait_until(
        lambda: running.num_ready() == 2 and len({each.process.pid for each in running.nodes()} - old) == 1,
        "not replaced",
        START_SECONDS,
    )
    back = time.monotonic() - began
    return f"4 new requests took {max(served):.2f} s at most, replaced after {back:.1f} s, its stream got {broken[0]!r}"


def _seconds_of_request(client: OpenAI, number: int) -> float:
    began = time.monotonic()
    client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": f"Say {number}."}], max_tokens=4, temperature=0
    )
    return time.monotonic() - began


@dataclass
class Load:
    """Users that stream one answer after the other."""

    url: str
    users: int
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    done: bool = False

    async def play(self) -> None:
        async with httpx.AsyncClient(timeout=SECONDS * 5, trust_env=False) as http:
            await asyncio.gather(*(self._user(http, number) for number in range(USERS)))

    async def _user(self, http: httpx.AsyncClient, number: int) -> None:
        turn = 0
        while not self.done:
            if number >= self.users:
                await asyncio.sleep(0.1)
                continue
            turn += 1
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": f"{QUESTION} I am number {number}, and this is {turn}."}],
                "max_tokens": 48,
                "stream": True,
                "ignore_eos": True,
            }
            try:
                answer = await http.post(f"{self.url}/chat/completions", json=body)
                if answer.status_code != 200 or not answer.text.rstrip().endswith("data: [DONE]"):
                    self.failures.append(f"{answer.status_code}: {answer.text[-200:]}")
            except httpx.HTTPError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.answers += 1


def scales(running: Cluster) -> str:
    load = Load(running.url, USERS)
    player = threading.Thread(target=lambda: asyncio.run(load.play()))
    player.start()
    try:
        up = _wait_for(running, 2)
        time.sleep(10)
        many = load.answers
        load.users = 1
        down = _wait_for(running, 1)
        few = load.answers - many
    finally:
        load.done = True
        player.join()
    assert not load.failures, f"{len(load.failures)} of {load.answers} failed: {load.failures[0]}"
    return f"2 nodes after {up:.0f} s and {many} answers, 1 node {down:.0f} s and {few} answers later, 0 failed"


def _wait_for(running: Cluster, nodes: int) -> float:
    return _wait_until(
        lambda: len(running.nodes()) == nodes and running.num_ready() == nodes,
        f"not {nodes} nodes",
        START_SECONDS,
    )


if __name__ == "__main__":
    sys.exit(main())
