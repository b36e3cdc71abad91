"""A request that makes the real engine fail, beside ten others: the ten complete unchanged, and the engine lives."""

import asyncio
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from api.text.tokenizer import Tokenizer
from tests.api.servers import MODEL, SECONDS, CortexServer
from tests.poisoned_engine import Fault

ENGINE = Path(__file__).parents[1] / "poisoned_engine.py"
COMMAND = f"""
import sys
from api.engine import spawn
spawn.ENGINE_COMMAND = (sys.executable, "-P", {str(ENGINE)!r})
from api.command.cli import main
sys.argv[0] = "cortex"
main()
"""
NUM_TOKENS = 12
FAILED = "the model failed on this request: "
ERRORS = {
    Fault.STEP: (500, FAILED + "a poisoned step"),
    Fault.RUNNER: (500, FAILED + "ZeroDivisionError: a poisoned runner"),
    Fault.NAN: (500, "the model computed no valid logits (NaN) for this request"),
    Fault.SAMPLER: (500, FAILED + "KeyError: 'a poisoned sampler'"),
    Fault.GRAMMAR: (500, FAILED + "RuntimeError: a poisoned grammar"),
    Fault.MASK: (400, "a poisoned mask"),
}


@pytest.fixture(scope="module")
def server(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CortexServer]:
    flags = (f"--alias={MODEL}", "--ctx-len=256", "--max-seqs=16")
    server = CortexServer(tmp_path_factory.mktemp("server"), *flags, model=tiny_model_path)
    server._command = [sys.executable, "-P", "-c", COMMAND]
    with server:
        yield server


@pytest.mark.parametrize("fault", ERRORS, ids=lambda fault: fault.name.lower())
def test_ten_requests_beside_a_poisoned_one_complete(server: CortexServer, fault: Fault, tokenizer: Tokenizer) -> None:
    """A logit bias binds each answer to a letter of its own, because texts depend on the shapes of batches."""
    own = {letter: tokenizer.encode(letter, parse_special=False)[0] for letter in string.ascii_letters[:10]}

    def ask(client: AsyncOpenAI, **fields: Any) -> Any:
        message: Any = {"role": "user", "content": f"Say it. {fields}"}
        return client.chat.completions.create(model=MODEL, messages=[message], max_tokens=NUM_TOKENS, **fields)

    async def ask_all() -> list[ChatCompletion | BaseException]:
        async with AsyncOpenAI(base_url=server.url, api_key="-", max_retries=0, timeout=3 * SECONDS) as client:
            bound = [
                ask(client, logit_bias={str(token): 100}, extra_body={"ignore_eos": True}) for token in own.values()
            ]
            poisoned = ask(client, seed=int(fault), extra_body={"guided_regex": "[a-z ]{200}"})
            return await asyncio.gather(*bound, poisoned, return_exceptions=True)

    engine = server.health()["engine_pid"]
    *answers, error = asyncio.run(ask_all())
    for letter, answer in zip(own, answers, strict=True):
        assert isinstance(answer, ChatCompletion), answer
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason) == (letter * NUM_TOKENS, "length")
        assert answer.usage is not None
        assert answer.usage.completion_tokens == NUM_TOKENS
    assert isinstance(error, openai.APIStatusError), error
    status, reason = ERRORS[fault]
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert reason in error.body["message"]
    assert server.health()["engine_pid"] == engine
    server.assert_nothing_is_held()
