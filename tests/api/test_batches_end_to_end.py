"""Batches on a real server and the real small model, also over the end of the server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.api.servers import MODEL, SECONDS, CortexServer, wait_until

FLAGS = ("--ctx-len=512", "--max-seqs=4", "--pooling=mean")
SYSTEM = "You are a clerk who sorts books by their numbers, and who says very little. " * 6
PAGE = 32
"""Tokens of a page of the cache."""


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Book {number}?"}],
                "guided_choice": [str(number)],
            },
        }
        for number in range(count)
    ]


def start(client: OpenAI, lines: list[dict[str, Any]]) -> str:
    file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    endpoint: Any = lines[0]["url"]
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id


def finished(client: OpenAI, batch_id: str) -> Batch:
    deadline = time.monotonic() + SECONDS
    while (batch := client.batches.retrieve(batch_id)).status not in ("completed", "failed"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def test_batches_of_a_real_server_survive_its_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with CortexServer(home, *FLAGS) as server, OpenAI(base_url=server.url, api_key="none") as client:
        batch_id = start(client, chats(6))

        def completed() -> int:
            counts = client.batches.retrieve(batch_id).request_counts
            return counts.completed if counts is not None else 0

        wait_until(lambda: completed() > 0, "a line is answered")
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(SECONDS)
    (home / "server.json").unlink()
    with CortexServer(home, *FLAGS) as server, OpenAI(base_url=server.url, api_key="none") as client:
        batch = finished(client, batch_id)
        assert batch.output_file_id is not None
        assert batch.error_file_id is None
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        texts = [each["response"]["body"]["choices"][0]["message"]["content"] for each in answers]
        assert texts == [str(number) for number in range(6)]
        usages = [each["response"]["body"]["usage"] for each in answers]
        shared = min(usage["prompt_tokens"] for usage in usages) - 2 * PAGE
        computed = sum(usage["prompt_tokens_details"]["cached_tokens"] < shared for usage in usages)
        assert computed <= 2, "two engines computed the shared prompt, each once"

        body = {"model": MODEL, "input": ["one", "two"]}
        embeds = [{"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": body}]
        batch = finished(client, start(client, embeds))
        assert batch.output_file_id is not None
        answer = json.loads(client.files.content(batch.output_file_id).text)
        assert [each["index"] for each in answer["response"]["body"]["data"]] == [0, 1]

        (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in chats(2)))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("cortex")), "batch", "run", "in.jsonl"],
            cwd=tmp_path,
            env=os.environ | {"CORTEX_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert len((tmp_path / "in.output.jsonl").read_text().splitlines()) == 2
        listed = [each.status for each in client.batches.list()]
        assert listed == ["completed"] * 3
