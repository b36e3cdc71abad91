"""The number of threads follows the machine: fewer while that is faster, all again afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.llama.threads import MAX_PAUSE, CoreUse, ThreadController, core_use

FULL = 4


class Machine:
    """A machine in virtual time, on which other programs occupy `busy` cores."""

    def __init__(self, seconds: dict[int, float], waiting_cores: float = 0.0) -> None:
        """`seconds`: the duration of a decode step by the number of threads."""
        self.seconds = seconds
        self.waiting_cores = waiting_cores
        self.now = self.waited = self.idle = 0.0
        use = lambda: CoreUse(self.waited, self.idle)  # noqa: E731
        self.controller = ThreadController(FULL, clock=lambda: self.now, core_use=use)
        self.used: list[int] = []

    def run(self, seconds: float) -> float:
        """Runs steps of answers and prompts in turn for a time. Returns how many steps it computed per second."""
        end, count = self.now + seconds, 0
        started = self.now
        while self.now < end:
            threads = self.controller.num_threads
            factor, num_tokens = (4.0, 100) if count % 2 else (1.0, 8)
            took = factor * self.seconds[threads]
            self.now += took
            self.waited += took * self.waiting_cores
            self.idle += took * (0 if self.waiting_cores >= 0.25 else FULL - threads)
            self.used.append(threads)
            assert self.controller.observe(num_tokens, took) == (self.controller.num_threads != threads)
            count += 1
        return count / (self.now - started)


ALONE = {1: 0.08, 2: 0.04, 3: 0.028, 4: 0.022}
BESIDE_ONE = {1: 0.08, 2: 0.042, 3: 0.03, 4: 0.05}


def test_a_machine_of_its_own_uses_all_threads() -> None:
    machine = Machine(ALONE, waiting_cores=0.1)
    machine.run(60)
    assert set(machine.used) == {FULL}


def test_beside_a_busy_program_one_thread_less_runs_and_afterwards_all_again() -> None:
    machine = Machine(ALONE)
    machine.run(10)
    machine.seconds, machine.waiting_cores = BESIDE_ONE, 0.5
    machine.run(10)
    machine.used.clear()
    machine.run(60)
    assert machine.used.count(3) > 0.8 * len(machine.used)
    machine.seconds, machine.waiting_cores = ALONE, 0.0
    machine.run(2)
    machine.used.clear()
    machine.run(60)
    assert set(machine.used) == {FULL}


def test_fewer_threads_that_are_no_faster_are_hardly_ever_tried() -> None:
    crowded = {1: 0.2, 2: 0.11, 3: 0.09, 4: 0.08}
    machine = Machine(crowded, waiting_cores=2.0)
    fixed = 2 / (5 * crowded[FULL])
    assert machine.run(600) > 0.97 * fixed
    assert machine.used.count(FULL) > 0.9 * len(machine.used)


@given(
    st.lists(
        st.tuples(st.sampled_from([ALONE, BESIDE_ONE, {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1}]), st.floats(0, FULL)),
        min_size=1,
        max_size=6,
    )
)
def test_the_number_is_always_possible_and_never_much_slower(phases: list[tuple[dict[int, float], float]]) -> None:
    machine = Machine(ALONE)
    for seconds, waiting in phases:
        machine.seconds, machine.waiting_cores = seconds, waiting
        machine.run(2 * MAX_PAUSE)  # the last choice may have been for another phase
        speed = machine.run(200)
        assert speed > 0.9 * 2 / (5 * seconds[FULL])
    assert set(machine.used) <= set(range(1, FULL + 1))


def test_own_work_beside_the_steps_does_not_change_the_number() -> None:
    """A thread that opens KV memory slows the steps, but is over soon. Fewer threads would stay for seconds."""
    machine = Machine(BESIDE_ONE, waiting_cores=0.5)
    with machine.controller.paused():
        machine.run(10)
    machine.seconds, machine.waiting_cores = ALONE, 0.0
    machine.run(30)
    assert set(machine.used) == {FULL}


def test_a_trial_ends_when_own_work_begins() -> None:
    machine = Machine(ALONE, waiting_cores=0.5)
    while machine.controller.num_threads == FULL:
        machine.run(0.1)
    with machine.controller.paused():
        machine.run(0.1)
        assert machine.controller.num_threads == FULL


@pytest.mark.parametrize("num_tokens", [1, 8, 512])
def test_one_thread_stays_one(num_tokens: int) -> None:
    controller = ThreadController(1, clock=iter(range(10**6)).__next__, core_use=lambda: CoreUse(0, 0))
    assert not any(controller.observe(num_tokens, 0.1) for _ in range(100))
    assert controller.num_threads == 1


def test_the_use_of_the_cores_is_read_from_the_system() -> None:
    before, after = core_use(), core_use()
    assert after.idle >= before.idle > 0
    assert before.waited >= 0  # not every kernel counts it
