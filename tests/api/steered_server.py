"""A real server, in a thread, with many chat templates over one real engine, whose answers a test dictates.

Each template is a model of its own for clients. All have the same file, vocabulary and engine process.
"""

import itertools
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio
import yaml
from anthropic import Anthropic
from hypercorn.config import Config
from hypercorn.trio import serve
from openai import OpenAI

from api.engine.client import EngineClient
from api.engine.process import EngineLauncher
from api.flags import ModelOptions
from api.http.app import create_app
from api.models.defaults import parse_defaults
from api.serving.fleet import Fleet
from api.serving.service import ModelService
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig
from scheduler.messages import Message, Submit
from tests.api.servers import SECONDS

ENGINE: Final = Path(__file__).parents[1] / "steered_engine.py"


class _Client(EngineClient):
    """Records what it submits."""

    def __init__(self, launcher: EngineLauncher) -> None:
        super().__init__(launcher)
        self.submitted: list[Submit] = []

    def _post(self, message: Message) -> None:
        if isinstance(message, Submit):
            self.submitted.append(message)
        super()._post(message)


class SteeredServer:
    """Serves during a `with` block."""

    def __init__(self, folder: Path, model_path: str, templates: Mapping[str, str]) -> None:
        """`templates`: Jinja sources by the names of their models."""
        self._folder = folder
        self._numbers = itertools.count(1)
        config = EngineConfig(model_path, ctx_len=2048, max_seqs=8, threads=1)
        command = (sys.executable, "-P", str(ENGINE), str(folder))
        self._engine = _Client(EngineLauncher(config, command=command))
        self._tokenizer = Tokenizer(model_path)
        fleet = Fleet(max_waiting=8)
        for name, source in templates.items():
            defaults = parse_defaults(yaml.safe_dump({"chat_template": source}), folder / "model.yaml")
            service = ModelService((name,), self._tokenizer, self._engine, max_waiting=8, defaults=defaults)
            fleet.adopt(ModelOptions(name, Path(model_path), replace(config), defaults=defaults), service)
        self._app = create_app(fleet)
        self._thread = threading.Thread(target=trio.run, args=(self._run,), daemon=True)
        self._ready = threading.Event()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        config = Config()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._engine.run)
            [url] = await nursery.start(lambda task_status: serve(self._app, config, task_status=task_status))
            self.openai = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=SECONDS)
            self.anthropic = Anthropic(base_url=url, api_key="none", max_retries=0, timeout=SECONDS)
            self._ready.set()
            await self._end.wait()
            self._engine.stop()
            nursery.cancel_scope.cancel()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(SECONDS), "the server does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join(SECONDS)
        self.openai.close()
        self.anthropic.close()
        self._tokenizer.close()

    def script(self, *texts: str) -> str:
        """A text for a prompt. The answer is then the first of these texts, as far as grammars and limits allow it."""
        number = next(self._numbers)
        (self._folder / f"{number}.json").write_text(json.dumps(texts))
        return f"script-{number}."

    def prompt(self, script: str) -> str:
        """The newest prompt that contains this script."""
        texts = (self._tokenizer.text(submit.tokens) for submit in reversed(self._engine.submitted))
        return next(text for text in texts if script in text)
