"""A watched engine sends Snapshots of its steps, pages, queue and memory; one that nobody watches sends none."""

from collections.abc import Callable, Sequence

import pytest

from kvcache.page_map import PageMap
from kvcache.tree import PAGE_TOKENS
from scheduler.engine import BLIND, Engine
from scheduler.fair import QUANTUM, FairShares
from scheduler.grammar import Compiled, GrammarCompiler
from scheduler.live import INTERVAL, MAX_STEPS, Live
from scheduler.messages import Cancel, Embedded, Message, Snapshot, Submit, Watch
from scheduler.pacing import Pacer
from tests.scheduler.fakes import GREEDY, System, expected, prompt
from tests.scheduler.test_engine import QUIET, Both, FakeWire, Turn, embed, no_tokenizer


def fair(clock: Callable[[], float]) -> FairShares:
    return FairShares(512, Pacer(0.001, None), clock)


class Watched:
    """A scheduler that is watched, on the clock of its steps."""

    def __init__(self, *, seconds: float = 0.01) -> None:
        self.system = System(seconds=lambda _: seconds, policy=fair, max_seqs=4)
        self.sent: list[Snapshot] = []
        self.live = Live(self.system.scheduler, None, None, self.sent.append, self.system.clock)

    def step(self) -> None:
        scheduler = self.system.scheduler
        plan = scheduler.plan()
        result = self.system.runner.run(plan)
        scheduler.commit(plan, result)
        self.live.computed(plan, result.seconds)
        self.live.look()

    def wait(self, seconds: float) -> None:
        self.system.runner.now += seconds
        self.live.look()


def test_rows_are_summed_by_tenant() -> None:
    watched = Watched()
    system = watched.system
    for number, tenant in enumerate(("ann", "ann", "bob")):
        system.submit(number, prompt(1000 * number, 20 + number), 10, tenant=tenant)
    watched.step()
    watched.step()
    watched.wait(INTERVAL)
    _, last = watched.sent
    first_step, second_step = watched.sent[0].steps + last.steps
    assert first_step == (0.01, [("ann", 41, 0, 0, 0), ("bob", 22, 0, 0, 0)])
    assert second_step == (0.01, [("ann", 0, 2, 0, 0), ("bob", 0, 1, 0, 0)])
    assert watched.sent[0].tokens == {"ann": (41, 0), "bob": (22, 0)}
    assert last.tokens == {"ann": (0, 2), "bob": (0, 1)}


def test_drafts_are_counted_and_accepted_ones_are_tokens() -> None:
    watched = Watched()
    watched.wait(0.0)
    watched.system.submit(1, prompt(0, 20), 10, tenant="ann")
    watched.step()
    plan = watched.system.scheduler.plan()
    plan.chunks[0].drafts, plan.chunks[0].num_accepted = [1, 2, 3], 2
    watched.live.computed(plan, 0.02)
    watched.wait(INTERVAL)
    assert watched.sent[-1].steps[-1] == (0.02, [("ann", 0, 1, 3, 2)])
    assert watched.sent[-1].tokens == {"ann": (20, 3)}


def test_at_most_four_snapshots_a_second_with_at_most_32_steps_each() -> None:
    watched = Watched(seconds=0.001)
    watched.system.submit(1, prompt(0, 20), 1200, tenant="ann")
    for _ in range(1000):
        watched.step()
    assert len(watched.sent) == 4
    assert [len(each.steps) for each in watched.sent] == [1, *[MAX_STEPS] * 3]
    assert sum(each.tokens["ann"][1] for each in watched.sent[1:]) == pytest.approx(750, abs=3), "no token is lost"


def test_nothing_is_sent_while_nothing_changes() -> None:
    watched = Watched()
    watched.wait(0.0)
    assert watched.live.patience is None
    watched.wait(10.0)
    watched.wait(10.0)
    assert len(watched.sent) == 1
    watched.system.submit(1, prompt(0, 20), 10, tenant="ann")
    watched.wait(0.0)
    watched.wait(10.0)
    assert len(watched.sent) == 2
    assert watched.sent[-1].queue["waiting"] == 1


def test_a_change_that_comes_too_soon_is_sent_later() -> None:
    watched = Watched()
    watched.wait(0.0)
    watched.system.submit(1, prompt(0, 20), 10, tenant="ann")
    watched.wait(0.1)
    assert len(watched.sent) == 1
    assert watched.live.patience == pytest.approx(INTERVAL - 0.1)
    watched.wait(0.2)
    assert len(watched.sent) == 2


def test_a_map_that_takes_long_comes_less_often() -> None:
    watched = Watched()
    pages = watched.system.cache.page_map

    def slow() -> object:
        watched.system.runner.now += 0.01
        return pages()

    watched.system.cache.page_map = slow  # type: ignore[method-assign, assignment]
    watched.wait(0.0)
    watched.system.submit(1, prompt(0, 20), 10)
    watched.wait(0.5)
    assert len(watched.sent) == 1
    watched.wait(0.6)
    assert len(watched.sent) == 2


def test_pages_queue_and_memory() -> None:
    watched = Watched()
    system = watched.system
    for number, tenant in enumerate(("ann", "ann", "ann", "bob")):
        system.submit(number, prompt(0, 64) + prompt(1000 * (number + 1), 5), 50, tenant=tenant, weight=2.0)
    system.submit(9, prompt(7000, 30), 50, tenant="eve")
    for _ in range(4):
        watched.step()
    watched.wait(INTERVAL)
    snapshot = watched.sent[-1]
    pages = snapshot.pages
    assert {name: pages[name] for name in ("page_tokens", "total", "shared", "cached", "host", "disk")} == {
        "page_tokens": PAGE_TOKENS,
        "total": 64,
        "shared": 2,
        "cached": 0,
        "host": 0,
        "disk": 0,
    }
    assert pages["tenants"]["ann"][1] == pages["tenants"]["bob"][1] == 2
    assert len(pages["map"]) == 64
    assert snapshot.memory == {"kv_tokens": 64 * PAGE_TOKENS, "kv_max": 64 * PAGE_TOKENS, "state": "fixed"}
    assert (snapshot.queue["running"], snapshot.queue["waiting"]) == (4, 1)
    accounts = {each["tenant"]: each for each in snapshot.queue["tenants"]}
    numbers = {name: (each["running"], each["waiting"], each["weight"]) for name, each in accounts.items()}
    assert numbers == {"ann": (2, 1, 2.0), "bob": (1, 0, 2.0), "eve": (1, 0, 1.0)}
    limit = accounts["ann"]["service"] + QUANTUM  # only ann has a waiting sequence
    for each in accounts.values():
        assert each["credit"] == pytest.approx(limit - each["service"], abs=0.2)


class SlowWire(FakeWire):
    """A second passes whenever the engine looks for messages."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        super().__init__(turns)
        self.now = 0.0
        self.patience: list[float | None] = []

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]:
        self.now += 1.0
        self.patience.append(seconds)
        return super().receive(wait=wait, seconds=seconds)


def serve(system: System, *turns: Turn) -> list[Snapshot]:
    """Run an engine over these turns. Returns its Snapshots."""
    wire = SlowWire(turns)
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, clock=lambda: wire.now).run()
    return [message for message in wire.sent if isinstance(message, Snapshot)]


def test_an_engine_sends_snapshots_only_while_it_is_watched() -> None:
    request = Submit(1, prompt(0, 20), 8, GREEDY, tenant="ann")
    assert serve(System(), [request], *QUIET) == []
    assert serve(System(), [Watch(True)], [Watch(False)], [request], *QUIET)[1:] == []
    snapshots = serve(System(), [Watch(True)], [request], *QUIET)
    rows = [row for each in snapshots for _, rows in each.steps for row in rows]
    assert rows == [("ann", 20, 0, 0, 0), *[("ann", 0, 1, 0, 0)] * 7]


def test_an_engine_that_is_watched_again_tells_everything_again() -> None:
    first, second = serve(System(), [Watch(True)], [Watch(True)])
    assert first == second


def test_failed_steps_are_not_shown() -> None:
    system = System()
    system.runner.failures = 1
    snapshots = serve(system, [Watch(True)], [Submit(1, prompt(0, 20), 3, GREEDY, tenant="ann")], *QUIET)
    assert sum(len(each.steps) for each in snapshots) == 1 + 2


def test_texts_to_embed_are_prompt_tokens() -> None:
    both = Both()
    wire = both.serve([Watch(True), embed(1, 3, length=20)], *QUIET)
    snapshots = [message for message in wire.sent if isinstance(message, Snapshot)]
    steps = [step for each in snapshots for step in each.steps]
    assert [rows for _, rows in steps] == [[("", 60, 0, 0, 0)]]


def test_a_quiet_engine_wakes_up_only_for_what_is_due() -> None:
    system, wire = System(), SlowWire([[Watch(True)], [Cancel(99)]])
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, clock=lambda: 5.0).run()
    assert wire.patience == [None, None, INTERVAL]


def test_a_failure_of_what_is_shown_ends_the_watching_only(caplog: pytest.LogCaptureFixture) -> None:
    system = System()
    page_map = system.cache.page_map

    def fail() -> PageMap:
        raise KeyError("ann\nbob")

    system.cache.page_map = fail  # type: ignore[method-assign]
    wire = SlowWire([[Watch(True)], [Submit(1, prompt(0, 20), 8, GREEDY, tenant="ann")], *QUIET])
    engine = Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, clock=lambda: wire.now)
    engine.run()
    assert wire.tokens[1] == expected(prompt(0, 20), 8)
    (snapshot,) = [message for message in wire.sent if isinstance(message, Snapshot)]
    assert "ann" not in snapshot.error, "a watcher may not see the names of other tenants"
    assert snapshot == Snapshot([], {}, {}, {}, {}, BLIND)
    (record,) = [each for each in caplog.records if "watching ends" in each.message]
    assert "KeyError" in record.message
    assert "\n" not in record.message

    system.cache.page_map = page_map  # type: ignore[method-assign]
    assert [each.error for each in serve(system, [Watch(True)], *QUIET)] == [""], "the next one to watch sees all"


def fail_to_record(*_: object) -> None:
    raise ZeroDivisionError


def test_a_failure_to_record_a_step_does_not_lose_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "computed", fail_to_record)
    system = System()
    wire = SlowWire([[Watch(True)], [Submit(1, prompt(0, 20), 8, GREEDY)], *QUIET])
    Engine(system.scheduler, system.runner, GrammarCompiler(no_tokenizer), wire, clock=lambda: wire.now).run()
    assert wire.tokens[1] == expected(prompt(0, 20), 8)
    assert [each.error for each in wire.sent if isinstance(each, Snapshot)] == ["", BLIND]


def test_a_failure_to_record_texts_does_not_lose_their_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "read", fail_to_record)
    wire = Both().serve([Watch(True), embed(1, 3, length=20)], *QUIET)
    (embedded,) = [message for message in wire.sent if isinstance(message, Embedded)]
    assert len(embedded.embeddings) == 3
    assert [each.error for each in wire.sent if isinstance(each, Snapshot)][-1] == BLIND
