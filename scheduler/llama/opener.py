"""Opens llama.cpp contexts of any size for one model: at the start, and in the background for a size that changes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.config import EngineConfig
from scheduler.elastic import Place
from scheduler.llama.context import Context
from scheduler.llama.kv_memory import ContextMemory, LaneMemory, PoolMemory
from scheduler.llama.model import Model
from scheduler.llama.state import StateFormat
from scheduler.shapes import Shape

Busy = Callable[[], AbstractContextManager[object]]
"""Makes a block that lasts while a thread beside the steps uses a core."""


@dataclass(frozen=True, slots=True)
class ContextKind:
    """What all contexts of an engine have in common."""

    in_lanes: bool
    num_outputs: int
    batch_tokens: int
    threads: int
    window: int
    """See `ContextMemory`."""
    form: StateFormat | None
    """The proven format of pages; None if only whole sequences can be moved."""
    bytes_per_token: int
    bytes_per_id: int
    keeps_evicted: bool
    """Whether there is a tier."""
    max_cached: int | None
    """See `PoolLayout`."""


@dataclass(frozen=True, slots=True)
class OpenedContext:
    """Implements scheduler.elastic.Place."""

    shape: Shape
    context: Context
    memory: ContextMemory
    layout: Layout
    use: Callable[[Context], Context]
    busy: Busy

    def enter(self) -> None:
        """See `Place.enter`. A thread closes the old context, because the kernel needs time to take gigabytes back."""
        _in_background(self.use(self.context).close, self.busy)

    def close(self) -> None:
        self.context.close()


class ContextOpener:
    """Implements scheduler.elastic.Opener."""

    def __init__(self, model: Model, config: EngineConfig, kind: ContextKind) -> None:
        self._model = model
        self._config = config
        self._kind = kind
        self.use: Callable[[Context], Context] = lambda context: context
        """Makes the engine compute in another context. Returns the present one, which is not needed any more."""
        self.busy: Busy = nullcontext

    def num_bytes(self, shape: Shape) -> int:
        return shape.tokens * self._kind.bytes_per_token + shape.ids * self._kind.bytes_per_id

    def open_now(self, shape: Shape) -> tuple[Context, ContextMemory, Layout]:
        """Raises ModelError if llama.cpp cannot open the context."""
        kind = self._kind
        context = Context(
            self._model,
            self._config,
            kv_tokens=shape.tokens,
            num_ids=shape.ids,
            num_outputs=kind.num_outputs,
            batch_tokens=kind.batch_tokens,
            threads=kind.threads,
            unified=not kind.in_lanes,
        )
        memory = LaneMemory(context, kind.window) if kind.in_lanes else PoolMemory(context, kind.window)
        memory.take_format(kind.form)
        num_pages = shape.tokens // PAGE_TOKENS
        layout: Layout
        if kind.in_lanes:
            layout = LaneLayout(num_pages // shape.ids, memory.num_ids, keeps_evicted=kind.keeps_evicted)
        else:
            layout = PoolLayout(num_pages, memory.num_ids, max_cached=kind.max_cached)
        return context, memory, layout

    def open(self, shape: Shape) -> Future[Place]:
        """See `Opener.open`. llama.cpp releases the GIL meanwhile."""
        future: Future[Place] = Future()

        def work() -> None:
            try:
                context, memory, layout = self.open_now(shape)
                future.set_result(OpenedContext(shape, context, memory, layout, self.use, self.busy))
            except BaseException as error:  # also MemoryError: the engine goes on without the memory
                future.set_exception(error)

        _in_background(work, self.busy)
        return future


def _in_background(work: Callable[[], None], busy: Busy) -> None:
    def run() -> None:
        with busy():
            work()

    threading.Thread(target=run, name="KV memory", daemon=True).start()
