"""The engine's main loop: messages are handled between steps, and the engine waits only without work."""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from llguidance import LLTokenizer

from kvcache.pool import PoolLayout
from kvcache.tree import PAGE_TOKENS
from scheduler.elastic import Elastic
from scheduler.embedder import Embedder
from scheduler.engine import Engine
from scheduler.failures import GrammarError, RequestError
from scheduler.grammar import Compiled, GrammarCompiler
from scheduler.messages import Cancel, Embed, Embedded, Failed, Inspect, Message, Output, Queue, Report, Stop, Submit
from scheduler.outbox import Outbox
from scheduler.plan import Plan, Result, StepError
from scheduler.texts import Batch, Limits, Pooled
from tests.scheduler.fakes import (
    EOG,
    GREEDY,
    FakeReader,
    FakeRunner,
    System,
    expected,
    expected_embedding,
    prompt,
    unwire,
)

Turn = Sequence[Message | Compiled] | Callable[[], Sequence[Message | Compiled]]
"""The messages of one call of `receive`."""


class FakeWire:
    """Delivers the test's turns, then Stop. Records the engine's messages."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = deque(turns)
        self.waits: list[bool] = []
        self.sent: list[Message] = []
        self.steps: list[list[Output]] = []
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, Output] = {}

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]:
        self.waits.append(wait)
        while self._turns:
            turn = self._turns.popleft()
            messages = list(turn() if callable(turn) else turn)
            if messages or not wait:
                return messages
        return [Stop()]

    def post(self, compiled: Compiled) -> None:
        self._turns.append([compiled])

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def send_outputs(self, outputs: list[Output]) -> None:
        self.steps.append(outputs)
        for output in outputs:
            assert output.request_id not in self.ends, "nothing follows an end"
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish_reason is not None:
                self.ends[output.request_id] = output


def no_tokenizer() -> LLTokenizer:
    raise RuntimeError("no vocabulary here")


def serve(system: System, *turns: Turn, outbox: Outbox | None = None) -> FakeWire:
    """Run an engine over these turns to its end."""
    wire = FakeWire(turns)
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, outbox=outbox).run()
    return wire


class Both:
    """An engine that generates and makes embeddings. Records the order of its work."""

    def __init__(self, **options: Any) -> None:
        self.system = System(**options)
        self.reader = FakeReader("mean")
        self.embedder = Embedder(lambda: self.reader, Limits(1000, 512, 64, cuts=True), "mean", 0.001)
        self.work: list[tuple[str, float]] = []
        """"answers", "prompts" or "texts", with the seconds that each took."""

    def run(self, plan: Plan) -> Result:
        result = FakeRunner.run(self.system.runner, plan)
        self.work.append(("answers" if plan.num_decode else "prompts", result.seconds))
        return result

    def read(self, batch: Batch) -> Pooled:
        pooled = FakeReader.read(self.reader, batch)
        self.work.append(("texts", pooled.seconds))
        return pooled

    def serve(self, *turns: Turn, outbox: Outbox | None = None) -> FakeWire:
        self.system.runner.run = self.run  # type: ignore[method-assign]
        self.reader.read = self.read  # type: ignore[method-assign]
        wire = FakeWire(turns)
        system = self.system
        compiler = GrammarCompiler(no_tokenizer)
        Engine(system.scheduler, system.runner, compiler, wire, self.embedder, outbox=outbox).run()
        return wire

    def longest_gap(self) -> float:
        """Returns the longest time between the ends of two steps that continue answers."""
        times = np.cumsum([seconds for _, seconds in self.work])
        steps = [time for time, (what, _) in zip(times, self.work, strict=True) if what == "answers"]
        return float(np.diff(steps).max())


def embed(request_id: int, num_texts: int, length: int = 20) -> Embed:
    return Embed(request_id, [prompt(1000 * number, length) for number in range(num_texts)])


def submit(request_id: int, tokens: list[int], max_tokens: int = 4) -> Submit:
    return Submit(request_id, tokens, max_tokens, GREEDY)


QUIET: list[Turn] = [[]] * 50
"""Enough turns to finish all work."""


def test_requests_run_to_their_end() -> None:
    system = System()
    wire = serve(system, [submit(1, prompt(0, 20)), submit(2, prompt(900, 33), 6)], *QUIET)
    assert wire.tokens == {1: expected(prompt(0, 20), 4), 2: expected(prompt(900, 33), 6)}
    assert {request: end.finish_reason for request, end in wire.ends.items()} == {1: "length", 2: "length"}
    assert system.cache.num_held == 0


def test_each_token_is_sent_by_the_step_that_sampled_it() -> None:
    wire = serve(System(), [submit(1, prompt(0, 20), 3)], *QUIET)
    assert [len(outputs) for outputs in wire.steps] == [1, 1, 1]


def test_fast_tokens_are_sent_together_until_a_prompt_comes_between() -> None:
    wire = serve(
        System(),
        [submit(1, prompt(0, 20), 9)],
        *[[]] * 5,
        [submit(2, prompt(900, 33), 2)],
        *QUIET,
        outbox=Outbox(3600.0),
    )
    assert wire.tokens == {1: expected(prompt(0, 20), 9), 2: expected(prompt(900, 33), 2)}
    sent = [[(output.request_id, len(output.tokens)) for output in outputs] for outputs in wire.steps if outputs]
    assert sent == [[(1, 1)], [(1, 5)], [(2, 1)], [(2, 1)], [(1, 3)]]


def test_what_is_held_is_sent_before_the_engine_stops() -> None:
    wire = serve(System(), [submit(1, prompt(0, 20), 100)], [], [], [], [Stop()], outbox=Outbox(3600.0))
    assert wire.tokens == {1: expected(prompt(0, 20), 4)}


def test_what_is_held_is_sent_after_a_failed_step() -> None:
    system = System()
    system.runner.step_error = lambda _: StepError("injected") if len(system.runner.plans) == 3 else None
    wire = serve(system, [submit(1, prompt(0, 20), 100)], *[[]] * 3, [Cancel(1)], outbox=Outbox(3600.0))
    assert [len(outputs[0].tokens) for outputs in wire.steps if outputs] == [1, 1]


def test_what_is_held_is_sent_before_texts_are_read() -> None:
    wire = Both().serve([submit(1, prompt(0, 20), 9)], [], [], [embed(2, 1)], *QUIET, outbox=Outbox(3600.0))
    sent = [len(output.tokens) for outputs in wire.steps for output in outputs]
    assert sum(sent) == 9
    assert len(sent) > 2, "not only the first token, and the others at the end"


def test_what_is_held_is_sent_before_the_sequences_move_to_another_memory() -> None:
    system, held, wire = System(), [], FakeWire([[submit(1, prompt(0, 20), 9)], *[[]] * 12])

    class Moving:
        state, patience = "growing", None

        def step(self) -> None:
            held.append(outbox.flush())

    outbox, elastic = Outbox(3600.0), cast(Elastic, Moving())
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, elastic=elastic, outbox=outbox).run()
    assert wire.tokens == {1: expected(prompt(0, 20), 9)}
    assert not any(held)


def test_the_engine_waits_only_without_work() -> None:
    wire = serve(System(), [submit(1, prompt(0, 20), 3)], [], [], [submit(2, prompt(0, 20), 1)])
    assert wire.waits == [True, False, False, True, True]
    assert set(wire.ends) == {1, 2}


def test_an_idle_engine_checks_the_cache_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages for others, and looks at the memory, wake an idle engine many times."""
    system = System()
    checks: list[None] = []
    check = system.cache.check_integrity
    monkeypatch.setattr(system.cache, "check_integrity", lambda: checks.append(check()))
    serve(system, *[[Inspect()]] * 5, [submit(1, prompt(0, 20))], *QUIET, *[[Inspect()]] * 5)
    assert len(checks) == 1


def test_a_request_between_two_steps_joins_the_next_step() -> None:
    system = System()
    serve(system, [submit(1, prompt(0, 20), 10)], [], [submit(2, prompt(900, 20), 5)], *QUIET)
    assert system.runner.plans[2].num_decode == 1
    assert [chunk.sequence.request_id for chunk in system.runner.plans[2].chunks] == [1, 2]


def test_a_cancel_between_two_steps_ends_the_request_there() -> None:
    system = System()
    wire = serve(
        system,
        [submit(1, prompt(0, 20), 100), submit(2, prompt(900, 20), 6)],
        [],
        [Cancel(1)],
        [],
        [],
        [],
        [],
    )
    assert wire.tokens[1] == expected(prompt(0, 20), 2)
    assert 1 not in wire.ends
    assert wire.tokens[2] == expected(prompt(900, 20), 6)
    assert system.scheduler.statistics().cancelled == 1
    assert system.cache.num_held == 0


def test_a_request_cancelled_before_its_first_step_costs_nothing() -> None:
    system = System()
    wire = serve(system, [submit(1, prompt(0, 20)), Cancel(1)], [Cancel(1), Cancel(99)])
    assert wire.steps == []
    assert system.runner.plans == []
    assert wire.waits == [True, True, True]


def test_a_cancel_after_the_end_of_its_request_is_ignored() -> None:
    system = System()
    wire = serve(system, [submit(1, prompt(0, 20), 1)], [Cancel(1), submit(2, prompt(0, 20), 1)])
    assert set(wire.ends) == {1, 2}
    assert system.scheduler.statistics().cancelled == 0


def test_a_request_that_can_never_fit_fails_alone() -> None:
    system = System(ctx_len=64)
    wire = serve(system, [submit(1, prompt(0, 60), 5), submit(2, prompt(0, 60), 4)], *QUIET)
    assert wire.ends[1].finish_reason == "error"
    assert wire.ends[1].error is not None
    assert "60" in wire.ends[1].error
    assert wire.tokens[2] == expected(prompt(0, 60), 4)


def test_the_end_of_generation_is_reported() -> None:
    system = System()
    system.runner.sample = lambda tokens: EOG if len(tokens) == 22 else 5
    wire = serve(system, [submit(1, prompt(0, 20), 50)], *QUIET)
    assert wire.tokens[1] == [5, 5, EOG]
    assert wire.ends[1].finish_reason == "stop"


def test_a_failed_step_is_logged_without_tokens_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    system = System()
    system.runner.failures = 1
    wire = serve(system, [submit(1, prompt(1000, 20), 5), submit(2, prompt(7000, 20), 5)], *QUIET)
    assert wire.tokens == {1: expected(prompt(1000, 20), 5), 2: expected(prompt(7000, 20), 5)}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "injected failure" in record.message
    assert "1:0+20 2:0+20" in record.message
    assert "1003" not in record.message


def test_after_two_failed_steps_alone_the_request_fails_and_the_engine_continues() -> None:
    system = System()
    system.runner.failures = 2
    wire = serve(system, [submit(1, prompt(0, 20), 5)], [], [], [submit(2, prompt(900, 20), 2)], *QUIET)
    assert wire.ends[1] == Output(1, [], "error", error="the model failed on this request: injected failure")
    assert wire.tokens[2] == expected(prompt(900, 20), 2)
    assert system.cache.num_held == 0
    assert system.scheduler.statistics().failed_steps == 2


def test_a_report_shows_the_current_numbers() -> None:
    system = System(max_seqs=1, num_pages=8)
    wire = serve(
        system,
        [Inspect(), submit(1, prompt(0, 40), 3), submit(2, prompt(900, 20), 3)],
        [Inspect()],
        *QUIET,
        [Inspect()],
    )
    first, second, last = [message for message in wire.sent if isinstance(message, Report)]
    assert (first.scheduler["running"], first.scheduler["waiting"], first.scheduler["steps"]) == (0, 0, 0)
    assert (second.scheduler["running"], second.scheduler["waiting"], second.scheduler["steps"]) == (1, 1, 1)
    assert second.scheduler["prefill_tokens"] == 40
    assert second.cache["page_tokens"] == PAGE_TOKENS
    assert (second.cache["pages"], second.cache["held_pages"], second.cache["running_ids"]) == (8, 2, 1)
    assert (last.scheduler["running"], last.scheduler["waiting"], last.scheduler["finished"]) == (0, 0, 2)
    assert last.cache["held_pages"] == 0
    assert last.cache["free_pages"] + last.cache["cached_pages"] == 8


def test_the_queue_is_reported_while_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.engine.QUEUE_SECONDS", math.inf)
    system = System(max_seqs=1)
    wire = serve(system, [submit(1, prompt(0, 40), 3), submit(2, prompt(900, 20), 3)], *QUIET)
    reports = [message for message in wire.sent if isinstance(message, Queue)]
    assert [report.request_ids for report in reports] == [[2]], "the next report would come after QUEUE_SECONDS"


def test_stop_ends_the_engine_with_work_left() -> None:
    system = System()
    wire = serve(system, [submit(1, prompt(0, 20), 100)], [], [Stop()], *QUIET)
    assert len(wire.steps) == 2
    assert wire.waits == [True, False, False]
    assert 1 not in wire.ends


def test_no_step_runs_after_stop() -> None:
    system = System()
    serve(system, [submit(1, prompt(0, 20)), Stop()])
    assert system.runner.plans == []


def test_an_unexpected_message_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    wire = serve(System(), [Failed("what?"), submit(1, prompt(0, 20), 2)], *QUIET)
    assert len(wire.tokens[1]) == 2
    assert ["Failed" in record.message for record in caplog.records] == [True]


def test_wrong_accounting_is_detected_when_idle() -> None:
    system = System()

    def lose_a_page() -> list[Message]:
        assert isinstance(system.layout, PoolLayout)
        system.layout.num_free -= 1
        return []

    with pytest.raises(AssertionError, match="pages"):
        serve(system, [submit(1, prompt(0, 20), 2)], lose_a_page, *QUIET, [submit(2, prompt(0, 20))])


class Panic(BaseException):
    """Like the exceptions of llguidance's panics, which are no subclasses of Exception."""


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), Panic("at src/lib.rs:1\n  a bug")], ids=repr)
def test_an_unexpected_exception_in_a_step_ends_only_its_request(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    system = System()
    system.runner.step_error = lambda plan: error if 1 in system.chunks(plan) else None
    wire = serve(system, [submit(number, prompt(1000 * number, 20), 5) for number in range(4)], *QUIET)
    reason = f"the model failed on this request: {type(error).__name__}: {' '.join(str(error).split())}"
    assert wire.ends[1] == Output(1, [], "error", error=reason)
    for number in (0, 2, 3):
        assert wire.tokens[number] == expected(prompt(1000 * number, 20), 5)
    assert all(record.exc_info for record in caplog.records if "step failed" in record.message)
    assert system.cache.num_held == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception_that_must_end_the_process_does(error: type[BaseException]) -> None:
    system = System()
    system.runner.step_error = lambda _: error()
    with pytest.raises(error):
        serve(system, [submit(1, prompt(0, 20))], *QUIET)


def test_a_broken_scheduler_ends_the_engine() -> None:
    """The API starts another engine. To continue with a memory in an unknown state would give wrong answers."""
    system = System()
    system.scheduler.plan = lambda: Plan(num_answers=1 // 0)  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        serve(system, [submit(1, prompt(0, 20))])


def test_requests_that_cannot_be_represented_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The tokens do not fit into 32 bits."""
    both = Both()
    wire = both.serve(
        [submit(1, [1 << 40]), Submit(2, [1], 9, answer=[-1]), Embed(3, [[1 << 40]])],
        [submit(4, prompt(0, 20)), embed(5, 1)],
        *QUIET,
    )
    for number in (1, 2):
        end = wire.ends[number]
        assert end.finish_reason == "error"
        assert end.error is not None
        assert end.error.startswith("the model failed on this request: OverflowError: ")
    assert wire.tokens[4] == expected(prompt(0, 20), 4)
    [refusal] = [each for each in wire.sent if isinstance(each, Embedded) and each.request_id == 3]
    assert refusal.error is not None
    assert_embedded(wire, embed(5, 1))
    assert [bool(record.exc_info) for record in caplog.records] == [True] * 3


@pytest.mark.parametrize(("error", "reason"), [(GrammarError("no"), "refused"), (RequestError("bug"), "error")])
def test_a_grammar_that_cannot_be_compiled_fails_alone(error: RequestError, reason: str) -> None:
    system = System()
    asked = Submit(2, [1], 9, grammar="start: /a/")
    wire = serve(system, [asked, submit(1, prompt(0, 20))], [Compiled(asked, error)], *QUIET)
    assert (wire.ends[2].finish_reason, wire.ends[2].error) == (reason, str(error))
    assert wire.tokens[1] == expected(prompt(0, 20), 4)


# Embeddings of texts


def assert_embedded(wire: FakeWire, asked: Embed) -> None:
    sent = [each for each in wire.sent if isinstance(each, Embedded) and each.request_id == asked.request_id]
    embeddings = [unwire(embedding) for each in sent for embedding in each.embeddings]
    assert [each.error for each in sent] == [None] * len(sent)
    np.testing.assert_allclose(embeddings, [expected_embedding(text, "mean") for text in asked.texts], atol=1e-5)


def test_embeddings_are_computed_while_nothing_else_runs() -> None:
    both = Both()
    wire = both.serve([embed(1, 100)], *QUIET, [embed(2, 1)])
    assert_embedded(wire, embed(1, 100))
    assert_embedded(wire, embed(2, 1))
    assert wire.waits == [True, False, False, False, True, True]
    assert [batch.num_tokens for batch in both.reader.batches] == [500, 500, 500, 500, 20]


def test_answers_and_embeddings_take_turns() -> None:
    both = Both()
    asked = embed(9, 400)
    wire = both.serve([submit(1, prompt(0, 20), 40), submit(2, prompt(900, 20), 40), asked], *QUIET * 10)
    assert wire.tokens == {1: expected(prompt(0, 20), 40), 2: expected(prompt(900, 20), 40)}
    assert_embedded(wire, asked)
    names = [name for name, _ in both.work]
    begun = names.index("answers")
    assert names[begun : begun + 40] == ["answers", "texts"] * 20
    assert both.longest_gap() <= 0.128 + 0.002  # the pacer's target, and a step of two answers


def test_prompts_and_embeddings_share_the_time_between_answers() -> None:
    both = Both(lanes=True, max_seqs=4)
    wire = both.serve(
        [submit(1, prompt(0, 20), 100)], [], [submit(2, prompt(3000, 1900), 2), embed(9, 400)], *QUIET * 10
    )
    assert_embedded(wire, embed(9, 400))
    assert set(wire.ends) == {1, 2}
    names = [name for name, _ in both.work]
    begun = names.index("texts")
    assert names[begun : begun + 30] == ["texts", "prompts", "answers"] * 10
    assert both.longest_gap() <= 0.128 + 0.064 + 0.002  # a step of prompts, half of its time for texts, and the answers


def test_a_cancel_ends_an_embedding_request() -> None:
    both = Both()
    wire = both.serve([embed(1, 200), embed(2, 3)], [Cancel(1)], *QUIET)
    assert_embedded(wire, embed(2, 3))
    assert len([each for each in wire.sent if isinstance(each, Embedded) and each.request_id == 1]) == 1
    assert both.reader.memory == {}
    assert both.embedder.statistics().cancelled == 1


def test_a_report_includes_the_embedder() -> None:
    wire = Both().serve([embed(1, 30)], [Inspect()], *QUIET)
    [report] = [each for each in wire.sent if isinstance(each, Report)]
    assert (report.embedder["requests"], report.embedder["texts"], report.embedder["batches"]) == (1, 25, 1)


def test_a_model_without_embeddings_returns_an_error() -> None:
    wire = serve(System(), [embed(1, 2)])
    assert wire.sent == [Embedded(1, error="this model makes no embeddings of texts")]


def test_texts_that_are_too_long_fail_alone() -> None:
    wire = Both().serve([embed(1, 1, 1001), embed(2, 1)], *QUIET)
    assert wire.sent[0] == Embedded(1, error="texts must have 1 to 1000 tokens each")
    assert_embedded(wire, embed(2, 1))


def test_stop_ends_the_engine_with_texts_left() -> None:
    both = Both()
    both.serve([embed(1, 500)], [Stop()])
    assert len(both.reader.batches) == 1
