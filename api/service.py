"""The model that is served: its names, its tokenizer and template, its engine, and whether it takes requests."""

import dataclasses
import time
from typing import Any, Final
from zlib import crc32

import trio

from api.engine import EngineClient
from api.errors import ApiError, unavailable
from api.template import ChatTemplate, TemplateRefusal
from api.tokenizer import Tokenizer

INLINE_CHARACTERS: Final = 20_000
"""Prompts up to this long are tokenized on the event loop, in a few milliseconds; longer ones in a thread."""


class ModelService:
    """Everything a route needs to answer for one model."""

    def __init__(self, names: tuple[str, ...], tokenizer: Tokenizer, engine: EngineClient, *, max_waiting: int) -> None:
        """`names` are the model's own and its aliases; `max_waiting` bounds the requests beyond those that run."""
        self.names = names
        self.tokenizer = tokenizer
        self.engine = engine
        self.created = int(time.time())
        self.draining = False
        self._template = ChatTemplate(tokenizer.chat_template, tokenizer)
        self._max_waiting = max_waiting

    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: changes with the model and the sizes it is served with. Raises ApiError 503."""
        info = self.engine.ready_info()
        return f"fp_{crc32(repr(dataclasses.replace(info, pid=0, load_seconds=0)).encode()):08x}"

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that is not served."""
        if name not in self.names:
            message = f"The model {name!r} does not exist. This server serves {' and '.join(map(repr, self.names))}."
            raise ApiError(404, message, param="model", code="model_not_found")

    def check_accepting(self) -> None:
        """Raises ApiError 503 while loading or shutting down, 429 when too many wait."""
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down")
        info = self.engine.ready_info()
        if self.engine.num_active >= info.max_seqs + self._max_waiting:
            message = f"Too many requests: {info.max_seqs} run and {self._max_waiting} wait. Please try again shortly."
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=1)

    async def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation. Raises ApiError 400 if the model's template refuses it."""
        try:
            if sum(len(message["content"]) for message in messages) > INLINE_CHARACTERS:
                return await trio.to_thread.run_sync(self._template.render_tokens, messages)
            return self._template.render_tokens(messages)
        except TemplateRefusal as error:
            message = f"The model's chat template refuses these messages: {error}"
            raise ApiError(400, message, param="messages", code="invalid_messages") from error

    def token_limit(self, num_prompt: int, requested: int | None) -> int:
        """How many tokens an answer may have. Raises ApiError 400 if the context cannot hold it."""
        context = self.engine.ready_info().ctx_len
        if num_prompt + (requested or 1) > context:
            message = f"This model's maximum context length is {context} tokens. However, "
            if requested is None:
                message += f"your messages resulted in {num_prompt} tokens. Please reduce the length of the messages."
            else:
                message += (
                    f"you requested {num_prompt + requested} tokens ({num_prompt} in the messages, {requested} in the"
                    " completion). Please reduce the length of the messages or completion."
                )
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        return requested or context - num_prompt

    async def health(self) -> dict[str, Any]:
        """What `cortex ps` shows."""
        info = self.engine.info
        report = await self.engine.inspect() if info else None
        kv = None
        if info and report:
            page = report.cache["page_tokens"]
            kv = {"tokens": info.kv_tokens, "bytes": info.kv_bytes} | {
                f"{use}_tokens": report.cache[f"{use}_pages"] * page for use in ("held", "cached", "free")
            }
        return {
            "status": "draining" if self.draining else "ok" if info else "loading",
            "model": self.names[0],
            "aliases": list(self.names[1:]),
            "engine_pid": info.pid if info else None,
            "context_length": info.ctx_len if info else None,
            "kv": kv,
            "running": report.scheduler["running"] if report else 0,
            "waiting": report.scheduler["waiting"] if report else 0,
            "statistics": {"scheduler": report.scheduler, "cache": report.cache} if report else None,
        }
