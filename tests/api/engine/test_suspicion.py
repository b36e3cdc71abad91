"""Which request is guilty of crashes."""

import signal

import pytest

from api.engine.embeds import Embeds
from api.engine.ending import ending_of
from api.engine.suspicion import FIRST_ALONE, Suspicion
from scheduler.crash_record import EXIT_CRASHED, CrashRecord


def crash(suspicion: Suspicion, *computed: int, open_ids: tuple[int, ...] = (1, 2, 3)) -> int | None:
    return suspicion.crashed(frozenset(computed), open_ids)


def test_a_request_is_guilty_after_two_crashes_alone() -> None:
    suspicion = Suspicion()
    assert crash(suspicion, 1, 2) is None
    assert (1 in suspicion, 2 in suspicion, 3 in suspicion) == (True, True, False)
    assert crash(suspicion, 1) is None
    assert crash(suspicion, 1, 2) is None
    assert crash(suspicion, 2) is None
    assert crash(suspicion, 1) == 1


def test_a_cleared_request_keeps_its_strike() -> None:
    suspicion = Suspicion()
    crash(suspicion, 1)
    suspicion.advance(1, FIRST_ALONE)
    assert not suspicion
    assert crash(suspicion, 1) == 1


def test_a_suspect_is_alone_for_longer_after_each_crash() -> None:
    suspicion = Suspicion()
    crash(suspicion, 1, 2)
    suspicion.advance(1, 1)
    assert (suspicion.num_alone(1), suspicion.num_alone(2), suspicion.num_alone(3)) == (7, 8, 0)
    suspicion.advance(2, 100)
    crash(suspicion, 2, 3)
    assert (suspicion.num_alone(1), suspicion.num_alone(2), suspicion.num_alone(3)) == (7, 32, 8)
    suspicion.forget(2)
    crash(suspicion, 2, 3, open_ids=(2, 3))
    assert suspicion.num_alone(2) == 8


def test_an_ended_request_is_no_suspect_and_those_computed_with_it_were_not_alone() -> None:
    suspicion = Suspicion()
    crash(suspicion, 1)
    suspicion.forget(1)
    assert not suspicion
    for _ in range(2):
        assert crash(suspicion, 1, open_ids=(2, 3)) is None
        assert crash(suspicion, 1, 2, open_ids=(2, 3)) is None
    assert 1 not in suspicion


def test_a_crash_with_nobody_counts_against_nobody() -> None:
    suspicion = Suspicion()
    assert crash(suspicion) is None
    assert not suspicion


def test_embeds_are_posted_one_at_a_time_while_one_is_a_suspect() -> None:
    suspicion, posted = Suspicion(), list[int]()
    embeds = Embeds(posted.append, suspicion)
    for number in (1, 2, 3):
        embeds.add(number)
    assert posted == [1, 2, 3]
    embeds.clear()
    crash(suspicion, 1, 2)
    for number in (1, 2, 3, 4):
        embeds.add(number)
    assert posted[3:] == [1]
    suspicion.forget(1)
    embeds.end(1)
    assert posted[4:] == [2]
    embeds.end(3)  # cancelled while it waits
    embeds.add(5)
    assert posted[5:] == []
    suspicion.forget(2)
    embeds.end(2)
    assert posted[5:] == [4, 5]


@pytest.mark.parametrize(
    ("returncode", "reason", "crashed"),
    [
        (0, "exited: it says why", False),
        (3, "exited with code 3: it says why", False),
        (EXIT_CRASHED, "crashed: it says why", True),
        (-signal.SIGABRT, "crashed (SIGABRT): it says why", True),
        (-signal.SIGSEGV, "crashed (SIGSEGV): it says why", True),
        (-signal.SIGBUS, "crashed (SIGBUS): it says why", True),
        (-signal.SIGILL, "crashed (SIGILL): it says why", True),
        (-signal.SIGFPE, "crashed (SIGFPE): it says why", True),
        (-signal.SIGKILL, "was killed (SIGKILL), perhaps because memory ran out", False),
        (-signal.SIGTERM, "was ended by SIGTERM", False),
        (-40, "was ended by signal 40", False),
    ],
)
def test_how_an_engine_ended_is_one_line(returncode: int, reason: str, crashed: bool) -> None:
    record = CrashRecord()
    record.explain("it says\n why")
    record.computing([7, 8])
    ending = ending_of(returncode, record)
    assert (ending.reason, ending.crashed) == (reason, crashed)
    assert not crashed or ending.suspects == {7, 8}


def test_the_tokens_alone_stay_a_number_that_messages_can_hold() -> None:
    suspicion = Suspicion()
    for _ in range(100):
        crash(suspicion, 1, 2)
    assert suspicion.num_alone(1) < 1 << 31
