"""Loads models, one at a time: starts the engine, then reads the vocabulary."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import trio

from api.engine.client import EngineClient
from api.engine.connection import Connection
from api.engine.supervisor import EngineFailedError, Launcher
from api.flags import ModelOptions
from api.models.files import num_file_bytes
from api.serving.service import ModelService
from api.text.tokenizer import Tokenizer
from scheduler.config import EngineConfig, EngineInfo

_log = logging.getLogger("cortex.api")

MakeLauncher = Callable[[EngineConfig], Launcher]
"""Makes a launcher for an engine's configuration."""


class Neighbours(Protocol):
    """The other models on this machine. Loading a model depends on them."""

    def mapped_bytes_beside(self, name: str) -> int:
        """Bytes of the weights of all other loaded models that the system counts as available memory."""

    async def make_room(self, missing_bytes: int) -> bool:
        """Unload an idle model. Returns False if this cannot free `missing_bytes`."""


class LoadedModel(NamedTuple):
    service: ModelService
    weight_bytes: int
    mapped_bytes: int
    """Bytes of its weights that the system counts as available memory."""


class FreshLauncher:
    """Launches the engines of one model. Makes a new launcher for each, because the other models may have changed."""

    def __init__(self, make_launcher: Callable[[], Launcher]) -> None:
        self._make_launcher = make_launcher
        self._launcher = make_launcher()

    def launch(self) -> AbstractAsyncContextManager[Connection]:
        """See `Launcher`."""
        self._launcher = self._make_launcher()
        return self._launcher.launch()

    def public_reason(self, reason: str) -> str:
        """See `Launcher`."""
        return self._launcher.public_reason(reason)

    def resident_bytes(self, info: EngineInfo) -> int:
        """See `Launcher`."""
        return self._launcher.resident_bytes(info)


class ModelLoader:
    """Loads models one at a time: how much memory is free is only known once the previous model is loaded.

    This holds for engines that replace others, too.
    """

    def __init__(self, neighbours: Neighbours, make_launcher: MakeLauncher, *, max_waiting: int) -> None:
        """`max_waiting`: how many requests to one model may wait."""
        self._neighbours = neighbours
        self._make_launcher = make_launcher
        self._max_waiting = max_waiting
        self._one_at_a_time = trio.Lock()

    async def load(self, options: ModelOptions, nursery: trio.Nursery, *, may_make_room: bool) -> LoadedModel:
        """Load a model whose engine runs in the nursery. `may_make_room`: whether idle models may be unloaded for it.

        The vocabulary is read after the engine has started: if llama.cpp aborts on it, only the engine ends.
        Raises EngineFailedError, ModelError, ModelFilesError, and OSError if no engine can be started.
        """
        async with self._one_at_a_time:
            drafter = options.engine.draft_model
            weight_bytes = num_file_bytes(options.path) + (num_file_bytes(Path(drafter)) if drafter else 0)
            engine, info = await self._start_engine(options, nursery, may_make_room=may_make_room)
            service = await trio.to_thread.run_sync(self._make_service, options, engine)
            await trio.lowlevel.checkpoint_if_cancelled()  # the model may have been stopped meanwhile
        _log.info("%s %s", options.name, _abilities(info))
        if info.generates:
            _log.info("%s: %s", options.name, service.prompts.learned_line)
        tokenizer = service.tokenizer
        if 0 < tokenizer.trained_context < info.ctx_len:
            _log.warning(
                "%s was trained for a context of %d tokens and runs with %d: answers beyond the trained length may be "
                "wrong",
                *(options.name, tokenizer.trained_context, info.ctx_len),
            )
        return LoadedModel(service, weight_bytes, weight_bytes if info.mapped_bytes is None else info.mapped_bytes)

    def _make_service(self, options: ModelOptions, engine: EngineClient) -> ModelService:
        """Reads the vocabulary and probes the chat template, which takes up to a second."""
        tokenizer, defaults = Tokenizer(options.path), options.defaults
        return ModelService(options.names, tokenizer, engine, max_waiting=self._max_waiting, defaults=defaults)

    async def _start_engine(
        self, options: ModelOptions, nursery: trio.Nursery, *, may_make_room: bool
    ) -> tuple[EngineClient, EngineInfo]:
        while True:
            launcher = FreshLauncher(partial(self._launcher, options))
            engine = EngineClient(launcher, self._one_at_a_time)
            try:
                info: EngineInfo = await nursery.start(engine.run)
            except EngineFailedError as error:
                missing = error.missing_bytes
                if not (may_make_room and missing and await self._neighbours.make_room(missing)):
                    raise
            else:
                return engine, info

    def _launcher(self, options: ModelOptions) -> Launcher:
        """A launcher for an engine beside the models that are loaded now."""
        others_bytes = self._neighbours.mapped_bytes_beside(options.name)
        return self._make_launcher(replace(options.engine, others_bytes=others_bytes))


def _abilities(info: EngineInfo) -> str:
    """What a model can do, and how much KV memory it has."""
    if not info.generates:
        return f"makes embeddings of texts of up to {info.max_text_tokens} tokens"
    layout = "lanes" if info.kv_layout == "lanes" else "one pool"
    kept = {"pages": "pages", "sequences": "whole sequences", "none": "nothing"}[info.tier]
    tokens = f"{info.kv_tokens} to {info.kv_max}" if info.kv_max > info.kv_tokens else str(info.kv_tokens)
    drafts = f"; {info.draft_model} drafts" if info.draft_model else ""
    return (
        f"answers (context {info.ctx_len}, {info.max_seqs} sequences at once, {tokens} tokens of KV memory in "
        f"{layout}: {info.kv_layout_reason}; the tiers keep {kept}{drafts})"
    )
