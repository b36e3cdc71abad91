"""Grammars that constrain answers, with llguidance. They are compiled in a thread, outside of the step."""

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
"""Number of compiled grammars that are kept."""
LIMITS: Final = LLParserLimits(verbose_errors=False)

Mask = NDArray[np.int32]
"""Packed bits: bit i % 32 of word i // 32 is 1 if token i may come next."""


class GrammarError(Exception):
    """The grammar cannot be compiled, or an answer cannot match it any more. The message is for the client."""


class Grammar:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        """Consume a token. Returns the tokens that the grammar forces after it, which are consumed too.

        Without `forces`, returns no tokens. Raises GrammarError if the grammar does not accept the token.
        """
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
        """Whether no further token may follow."""
        return self.matcher.is_stopped()


def _reason(matcher: LLMatcher) -> str:
    """Returns llguidance's error without its quote of the grammar, which may be long and not written by the client."""
    return " ".join(re.split(r"^ +\d+ \| ", matcher.get_error(), maxsplit=1, flags=re.MULTILINE)[0].split())


class Masks:
    """Computes the masks of allowed next tokens in a thread, while the model computes the logits."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._bits = allocate_token_bitmask(num_rows, vocab_size)
        self._executor = LLExecutor(num_threads=1)
        self._thread = ThreadPoolExecutor(1, "masks")

    def start(self, grammars: Sequence[Grammar | None]) -> "Future[None] | None":
        """Start to compute the masks of these rows. Returns None if no row has a grammar."""
        matchers = [(grammar.matcher, row) for row, grammar in enumerate(grammars) if grammar is not None]
        if not matchers:
            return None
        return self._thread.submit(fill_next_token_bitmask_par, self._executor, matchers, self._bits)

    def finish(self, filled: "Future[None] | None", grammars: Sequence[Grammar | None]) -> Sequence[Mask | None]:
        """Wait for the masks that `start` began. Returns one per row, None for rows without a grammar."""
        if filled is None:
            return ()
        filled.result()
        return [None if grammar is None else self._bits[row] for row, grammar in enumerate(grammars)]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request and its compiled grammar, or the error of the compilation."""

    submit: Submit
    grammar: Grammar | GrammarError


class GrammarCompiler:
    """Compiles grammars in a thread, and keeps the last CACHE_SIZE of them."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        """`make_tokenizer` takes about a second. It is called for the first grammar."""
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "grammars")

    def compile(
        self,
        submit: Submit,
        report: Callable[[Compiled], None],
        compiling: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> "Future[None]":
        """Compile the request's grammar in another thread, which calls `report`.

        The thread calls `compiling` before and after it, with the ids of the requests whose grammars it compiles.
        """

        def work() -> None:
            compiling([submit.request_id])
            compiled = Compiled(submit, self._compile(submit.grammar, submit.answer))
            compiling(())
            report(compiled)

        return self._thread.submit(work)

    def _compile(self, source: str, answer: list[int]) -> Grammar | GrammarError:
        """Returns the grammar in the state after the tokens of `answer`."""
        matcher = self._matchers.get(source)
        if matcher is None:
            started = time.perf_counter()
            try:
                if self._tokenizer is None:
                    self._tokenizer = self._make_tokenizer()
                matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
            except Exception as error:  # reported to the request, so that it does not wait for ever
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
