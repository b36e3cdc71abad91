"""A real server that demands API keys: the SDKs, the `cortex` command, and usage."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from tests.api.servers import MODEL, SECONDS, CortexServer

QUESTION = [{"role": "user", "content": "Hi."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    with CortexServer(tmp_path_factory.mktemp("server"), "--auth", "--ctx-len=256", "--max-seqs=2") as server:
        yield server


def cortex(server: CortexServer, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cortex")), *arguments],
        env=os.environ | {"CORTEX_HOME": str(server.home)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(server: CortexServer, key: str) -> int:
    with openai.OpenAI(base_url=server.url, api_key=key, max_retries=0) as client:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def test_a_server_with_keys_from_the_first_key_to_the_usage(server: CortexServer) -> None:
    base = server.url.removesuffix("/v1")
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        ask(server, "sk-cortex-wrong")
    with (
        anthropic.Anthropic(base_url=base, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="Incorrect API key"),
    ):
        client.messages.create(model=MODEL, messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]
    assert httpx.get(f"{base}/health", timeout=SECONDS).status_code == 200
    assert httpx.get(f"{base}/metrics", timeout=SECONDS).status_code == 401

    key = cortex(server, "keys", "add", "alice").strip()
    prompt_tokens = ask(server, key)  # at once

    [row] = json.loads(cortex(server, "ps", "--json"))
    assert (row["state"], Path(row["path"]).is_absolute()) == ("running", True)
    assert cortex(server, "run", "-d", MODEL).startswith(f"{MODEL} already runs at")
    assert cortex(server, "run", MODEL, stdin="Hi.\n").strip()

    newer = cortex(server, "keys", "rotate", "alice").strip()
    ask(server, newer)  # an unknown key makes the server read the database, so it knows what was revoked
    with pytest.raises(openai.AuthenticationError, match="has been revoked"):
        ask(server, key)

    assert cortex(server, "stop") == f"{MODEL} stopped.\n"
    usage = cortex(server, "usage", "--csv").splitlines()
    assert usage[1].startswith(f"alice,2,{2 * prompt_tokens},")
    assert usage[2].startswith("owner,1,")
