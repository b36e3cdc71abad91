"""Grammars that answers must match, by llguidance: compiled off the step's path, then followed token by token."""

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from scheduler.messages import Submit

_log = logging.getLogger("cortex.engine")

CACHE_SIZE: Final = 64
"""Compiled grammars that are kept."""
LIMITS: Final = LLParserLimits(verbose_errors=False)

Mask = NDArray[np.int32]
"""Packed bits: bit i % 32 of word i // 32 says whether token i may come next."""


class GrammarError(Exception):
    """The grammar cannot be compiled, or not be followed any further; the message is for the client."""


class Grammar:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        """Take a token in. Returns those that must follow, taken in as well. Raises GrammarError."""
        matcher = self.matcher
        if not matcher.consume_token(token):
            raise GrammarError(f"the answer cannot follow its grammar any further: {_reason(matcher)}")
        if not forces or matcher.is_stopped():
            return []
        forced = matcher.compute_ff_tokens()
        if forced and not matcher.consume_tokens(forced):
            raise GrammarError(f"the answer cannot follow its grammar any further: {_reason(matcher)}")
        return forced

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self.matcher.is_stopped()


def _reason(matcher: LLMatcher) -> str:
    """Without the lines of the grammar that llguidance shows, which may be long, and not the client's."""
    return " ".join(re.split(r"^ +\d+ \| ", matcher.get_error(), maxsplit=1, flags=re.MULTILINE)[0].split())


class Masks:
    """Computes what may come next, in a thread of its own while the model computes how likely it is."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._bits = allocate_token_bitmask(num_rows, vocab_size)
        self._executor = LLExecutor(num_threads=1)
        self._thread = ThreadPoolExecutor(1, "masks")

    def start(self, grammars: Sequence[Grammar | None]) -> "Future[None] | None":
        """Begin with the masks of these rows; None if no row has a grammar."""
        matchers = [(grammar.matcher, row) for row, grammar in enumerate(grammars) if grammar is not None]
        if not matchers:
            return None
        return self._thread.submit(fill_next_token_bitmask_par, self._executor, matchers, self._bits)

    def finish(self, filled: "Future[None] | None", grammars: Sequence[Grammar | None]) -> Sequence[Mask | None]:
        """The masks that were begun with, None for rows without a grammar."""
        if filled is None:
            return ()
        filled.result()
        return [None if grammar is None else self._bits[row] for row, grammar in enumerate(grammars)]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request whose grammar is ready, or why it will never be."""

    submit: Submit
    grammar: Grammar | GrammarError


class GrammarCompiler:
    """Compiles in a thread of its own, and keeps what it compiled last."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        """`make_tokenizer` takes about a second, and is called when the first grammar comes."""
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "grammars")

    def compile(self, submit: Submit, report: Callable[[Compiled], None]) -> None:
        """Call `report` from another thread, now or later."""
        self._thread.submit(lambda: report(Compiled(submit, self._compile(submit.grammar, submit.answer))))

    def _compile(self, source: str, answer: list[int]) -> Grammar | GrammarError:
        """As far as the answer has come."""
        matcher = self._matchers.get(source)
        if matcher is None:
            started = time.perf_counter()
            try:
                if self._tokenizer is None:
                    self._tokenizer = self._make_tokenizer()
                matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
            except Exception as error:  # whatever it is, the request must hear of it
                _log.exception("a grammar failed to compile")
                return GrammarError(str(error))
            if matcher.is_error():
                return GrammarError(_reason(matcher))
            _log.debug("compiled a grammar of %d characters in %.3f s", len(source), time.perf_counter() - started)
            self._matchers[source] = matcher
            if len(self._matchers) > CACHE_SIZE:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(source)
        matcher = matcher.deep_copy()
        if answer and not matcher.consume_tokens(answer):
            return GrammarError(f"the answer cannot follow its grammar any further: {_reason(matcher)}")
        return Grammar(matcher)
