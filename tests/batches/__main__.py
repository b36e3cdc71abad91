"""Runs a batch on the embedded model, and kills the API or the engine at random instants.

Usage: python -m tests.batches [--lines 2000] [--kills 10] [--seed N]

Each line must be answered once, with its own answer. Lines share a system prompt, which an engine must compute once.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types import Batch

from tests.api.servers import MODEL, CortexServer

CHAT: Final = "/v1/chat/completions"
SYSTEM: Final = "You are a clerk of a large library, who sorts books by their numbers, and says little. " * 6
SECONDS: Final = 3600.0
PAGE: Final = 32
"""Tokens of a page of the cache: less than a page of the shared prompt may be computed for each line."""


def lines(count: int) -> list[dict[str, Any]]:
    """Requests whose answer is their own number: a grammar allows no other."""
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {
                "model": MODEL,
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": f"Which number has this book: {number}?"},
                ],
                "guided_choice": [str(number)],
                "max_tokens": 8,
            },
        }
        for number in range(count)
    ]


class Trial:
    """A server that is started again whenever it was killed, and one batch."""

    def __init__(self, home: Path, num_lines: int, chance: random.Random) -> None:
        self._home = home
        self._num_lines = num_lines
        self._chance = chance
        self._server: CortexServer | None = None
        self.kills: Counter[str] = Counter()
        self.engines = 0
        self._pid: int | None = None

    def start(self) -> None:
        (self._home / "server.json").unlink(missing_ok=True)
        self._server = CortexServer(self._home)
        self._server.__enter__()
        self._note_engine()

    def stop(self) -> None:
        if self._server is not None:
            self._server.__exit__(None, None, None)

    @property
    def log(self) -> str:
        return self._server.log if self._server is not None else ""

    def _client(self) -> OpenAI:
        assert self._server is not None
        return OpenAI(base_url=self._server.url, api_key="none", max_retries=5, timeout=60)

    def _note_engine(self) -> None:
        """Count the engines that were ready."""
        assert self._server is not None
        with suppress(httpx.HTTPError, StopIteration):
            pid = self._server.health()["engine_pid"]
            if pid is not None and pid != self._pid:
                self._pid = pid
                self.engines += 1

    def create(self) -> str:
        with self._client() as client:
            data = "".join(f"{json.dumps(line)}\n" for line in lines(self._num_lines)).encode()
            file = client.files.create(file=("lines.jsonl", data), purpose="batch")
            return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id

    def batch(self, batch_id: str) -> Batch:
        self._note_engine()
        while True:
            with suppress(APIConnectionError, APIStatusError), self._client() as client:
                return client.batches.retrieve(batch_id)
            time.sleep(0.2)

    def kill(self) -> str:
        """Kill the API or the engine, and start the server again if it was the API."""
        assert self._server is not None
        self._note_engine()
        what = self._chance.choice(["API", "engine"])
        self.kills[what] += 1
        if what == "engine":
            engines = [each for each in psutil.Process(self._server.pid).children() if "scheduler" in each.cmdline()]
            for engine in engines:
                engine.kill()
            return f"engine {engines[0].pid if engines else '(none runs)'}"
        pid = self._server.pid
        os.kill(pid, signal.SIGKILL)
        self._server.process.wait()
        self.start()
        return f"API {pid}"

    def answers(self, batch: Batch) -> list[dict[str, Any]]:
        with self._client() as client:
            files = [each for each in (batch.output_file_id, batch.error_file_id) if each is not None]
            return [json.loads(line) for each in files for line in client.files.content(each).text.splitlines()]

    def num_result_files(self) -> int:
        with self._client() as client:
            return sum(file.purpose == "batch_output" for file in client.files.list())


def run(trial: Trial, num_lines: int, num_kills: int, chance: random.Random) -> list[str]:
    """The faults that were found."""
    trial.start()
    batch_id = trial.create()
    started = time.monotonic()
    instants = sorted(chance.uniform(0, 0.97) for _ in range(num_kills))
    batch = trial.batch(batch_id)
    for instant in instants:
        while batch.request_counts is None or batch.request_counts.completed < instant * num_lines:
            if batch.status in ("completed", "failed", "cancelled", "expired"):
                break
            time.sleep(0.1)
            batch = trial.batch(batch_id)
        time.sleep(chance.uniform(0, 1))
        counts = batch.request_counts
        done = counts.completed if counts is not None else 0
        print(f"{time.monotonic() - started:6.1f} s: {done} lines are answered; killing ", end="", flush=True)
        print(trial.kill(), flush=True)
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        if time.monotonic() - started > SECONDS:
            return [f"the batch has not ended after {SECONDS:.0f} s: {batch.status}, {batch.request_counts}"]
        time.sleep(0.2)
        batch = trial.batch(batch_id)
    print(f"{time.monotonic() - started:6.1f} s: {batch.status}, {batch.request_counts}")
    return faults(trial, batch, num_lines)


def faults(trial: Trial, batch: Batch, num_lines: int) -> list[str]:
    found = []
    answers = trial.answers(batch)
    counted = Counter(answer["custom_id"] for answer in answers)
    wanted = [f"line-{number}" for number in range(num_lines)]
    if batch.status != "completed" or batch.error_file_id is not None:
        found.append(f"the batch is {batch.status} with the error file {batch.error_file_id}")
    if (missing := [each for each in wanted if not counted[each]]) != []:
        found.append(f"{len(missing)} lines have no answer, such as {missing[:3]}")
    if more := {each: count for each, count in counted.items() if count > 1 or each not in set(wanted)}:
        found.append(f"answers are there more than once, or nobody asked for them: {more}")
    if [answer["custom_id"] for answer in answers] != wanted:
        found.append("the answers are not in the order of the input")
    bodies = [answer["response"]["body"] for answer in answers if answer["response"]["status_code"] == 200]
    for answer, body in zip(answers, bodies, strict=False):
        text = body["choices"][0]["message"]["content"]
        if text != answer["custom_id"].removeprefix("line-"):
            found.append(f"{answer['custom_id']} has the answer {text!r}")
    shared = min(body["usage"]["prompt_tokens"] for body in bodies) - 2 * PAGE
    computed = sum(body["usage"]["prompt_tokens_details"]["cached_tokens"] < shared for body in bodies)
    print(f"{trial.engines} engines were started; {computed} lines did not find the shared prompt in the cache")
    if computed > trial.engines:
        found.append(f"{trial.engines} engines computed the shared prompt {computed} times")
    if (num_files := trial.num_result_files()) != 1:
        found.append(f"there are {num_files} result files")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.batches", description=__doc__)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(f"{options.lines} lines, {options.kills} kills, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), options.lines, chance)
        try:
            found = run(trial, options.lines, options.kills, chance)
            if found:
                print(trial.log)
        finally:
            trial.stop()
    kills = ", ".join(f"{count} times the {what}" for what, count in trial.kills.items())
    for fault in found:
        print(f"FAULT: {fault}")
    if not found:
        print(f"each of {options.lines} lines was answered once, although kill -9 ended {kills}")
    return bool(found)


sys.exit(main())
