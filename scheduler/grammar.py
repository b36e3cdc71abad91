"""Grammars that constrain answers, with llguidance. They are compiled in a thread, outside of the step."""

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)
from numpy.typing import NDArray

from scheduler.failures import GrammarError, RequestError, attempt
from scheduler.messages import Submit

_log = logging.getLogger("cortex.engine")

CACHE_SIZE: Final = 64
"""Number of compiled grammars that are kept."""
CACHE_CHARS: Final = 8 << 20
"""Characters that the sources of the kept grammars have together. The size of a compiled grammar is unknown."""
MAX_ITEMS: Final = 8000
"""An object with 2,000 optional properties takes as many. With llguidance's default, 500 break in mid-answer."""
LIMITS: Final = LLParserLimits(verbose_errors=False, max_items_in_row=MAX_ITEMS)
REASONS: Final = {
    "NoExtension": "no token can follow",
    "NoExtensionBias": "no token can follow",
    "ParserTooComplex": "the grammar is too complex",
    "LexerTooComplex": "the grammar is too complex",
}
"""llguidance's names of some errors, in plain words."""

Mask = NDArray[np.int32]
"""Packed bits: bit i % 32 of word i // 32 is 1 if token i may come next."""


class Grammar:
    """The state of one answer in its grammar.

    llguidance reports failures only by an error state, which every later call keeps. In that state it reports that the
    answer is complete, and its mask allows only the end. So each method here reads the state.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        """Consume a token. Returns the tokens that the grammar forces after it, which are consumed too.

        Without `forces`, returns no tokens. Raises GrammarError if the grammar does not accept the token, or if it
        cannot continue after it.
        """
        matcher = self.matcher
        forced: list[int] = []
        if matcher.consume_token(token) and forces and not matcher.is_stopped():
            forced = matcher.compute_ff_tokens()
            if forced:
                matcher.consume_tokens(forced)
        self.check()
        return forced

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """Returns how many of these tokens may come next, one after another. The state stays the same.

        This works on a copy of the state, which takes 5 us: an invalid token id leads to the error state.
        """
        return self.matcher.deep_copy().validate_tokens(list(tokens))

    def end(self, token: int) -> None:
        """Consume an end-of-generation token. Raises GrammarError if the answer is not complete before it."""
        matcher = self.matcher
        if not (matcher.consume_token(token) and matcher.is_stopped()):
            raise GrammarError("the answer ended before it was complete according to its grammar")
        self.check()

    def check(self) -> None:
        """Raises GrammarError if the grammar is in its error state."""
        if self.matcher.is_error():
            raise GrammarError(f"the answer cannot follow its grammar any further: {_reason(self.matcher)}")

    @property
    def is_complete(self) -> bool:
        """Whether no further token may follow."""
        return self.matcher.is_stopped()


def _reason(matcher: LLMatcher) -> str:
    """Returns llguidance's error without its quote of the grammar, which may be long and not written by the client."""
    reason = matcher.get_error().removesuffix("<non-verbose/>")
    reason = " ".join(re.split(r"^ +\d+ \| ", reason, maxsplit=1, flags=re.MULTILINE)[0].split())
    return REASONS.get(reason, reason)


@dataclass(slots=True)
class Filling:
    """Masks that are being computed."""

    grammars: Sequence[Grammar | None]
    drafts: Sequence[Sequence[int]]
    """The drafted tokens after each grammar. A grammar has a row for its state and one for each of its drafts."""
    rows: list[int]
    """The first row of each grammar."""
    ahead: dict[int, LLMatcher] = field(default_factory=dict)
    """Copies of the states of grammars with drafts, by first row."""
    future: "Future[None] | None" = None


class Masks:
    """Computes the masks of allowed next tokens in a thread, while the model computes the logits."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self._bits = allocate_token_bitmask(num_rows, vocab_size)
        self._executor = LLExecutor(num_threads=1)
        self._thread = ThreadPoolExecutor(1, "masks")

    def start(self, grammars: Sequence[Grammar | None], drafts: Sequence[Sequence[int]] = ()) -> Filling | None:
        """Start to compute the masks of these rows. Returns None if no row has a grammar.

        `drafts`: for each grammar, drafted tokens that it allows one after another; empty if there are none at all.
        """
        if grammars.count(None) == len(grammars):
            return None
        drafts = drafts or [()] * len(grammars)
        rows = list(accumulate((1 + len(each) for each in drafts[:-1]), initial=0))
        filling = Filling(grammars, drafts, rows)
        filling.future = self._thread.submit(self._fill, filling)
        return filling

    def finish(self, filling: Filling | None) -> Sequence[Mask | RequestError | None]:
        """Wait for the masks that `start` began. Returns one per row, None for rows without a grammar.

        A grammar that fails gets an error in place of its mask. Its failure after a draft does not affect its own row.
        """
        if filling is None or filling.future is None:
            return ()
        has_filled = True
        try:
            filling.future.result()
        except BaseException:  # one grammar can make the call fail for all, so each is tried alone
            _log.exception("the masks of %d grammars failed", len(filling.grammars) - filling.grammars.count(None))
            has_filled = False
        masks: list[Mask | RequestError | None] = []
        for grammar, drafts, row in zip(filling.grammars, filling.drafts, filling.rows, strict=True):
            if grammar is None:
                masks += [None] * (1 + len(drafts))
            elif has_filled and not (drafts and filling.ahead[row].is_error()):
                masks.append(attempt(self._checked, grammar, row))
                masks.extend(self._bits[row + 1 : row + 1 + len(drafts)])
            else:
                masks.append(attempt(self._fill_alone, grammar, row))
                masks += [GrammarError("the grammar failed after a draft")] * len(drafts)
        return masks

    def _fill(self, filling: Filling) -> None:
        """Compute all masks. The states after drafts are computed on copies, because an error state cannot be left."""
        matchers, drafted = [], []
        for grammar, drafts, row in zip(filling.grammars, filling.drafts, filling.rows, strict=True):
            if grammar is not None and drafts:
                filling.ahead[row] = grammar.matcher.deep_copy()
                drafted.append((filling.ahead[row], row, list(drafts)))
            elif grammar is not None:
                matchers.append((grammar.matcher, row))
        if matchers:
            fill_next_token_bitmask_par(self._executor, matchers, self._bits)
        if drafted:
            fill_next_token_bitmask_par_with_draft_tokens(self._executor, drafted, self._bits)

    def _fill_alone(self, grammar: Grammar, row: int) -> Mask:
        fill_next_token_bitmask_par(self._executor, [(grammar.matcher, row)], self._bits)
        return self._checked(grammar, row)

    def _checked(self, grammar: Grammar, row: int) -> Mask:
        grammar.check()
        mask: Mask = self._bits[row]
        return mask


@dataclass(frozen=True, slots=True)
class Compiled:
    """A request and its compiled grammar, or the error of the compilation."""

    submit: Submit
    grammar: Grammar | RequestError


class GrammarCompiler:
    """Compiles grammars in a thread, and keeps the last CACHE_SIZE of them, with at most `max_chars` of source."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer], *, max_chars: int = CACHE_CHARS) -> None:
        """`make_tokenizer` takes about a second. It is called for the first grammar."""
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._max_chars = max_chars
        self.num_chars = 0
        """Characters of the sources of the grammars that are kept."""
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
            compiled = Compiled(submit, attempt(self._compile, submit.grammar, submit.answer))
            compiling(())
            report(compiled)

        return self._thread.submit(work)

    def _compile(self, source: str, answer: list[int]) -> Grammar:
        """Returns the grammar in the state after the tokens of `answer`. Raises GrammarError."""
        matcher = self._matchers.get(source)
        if matcher is None:
            started = time.perf_counter()
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
            matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
            if matcher.is_error():
                raise GrammarError(_reason(matcher))
            _log.debug("compiled a grammar of %d characters in %.3f s", len(source), time.perf_counter() - started)
            self._keep(source, matcher)
        else:
            self._matchers.move_to_end(source)
        grammar = Grammar(matcher.deep_copy())
        if answer:
            grammar.matcher.consume_tokens(answer)
            grammar.check()
        return grammar

    def _keep(self, source: str, matcher: LLMatcher) -> None:
        self._matchers[source] = matcher
        self.num_chars += len(source)
        while len(self._matchers) > CACHE_SIZE or self.num_chars > self._max_chars:
            oldest, _ = self._matchers.popitem(last=False)
            self.num_chars -= len(oldest)
