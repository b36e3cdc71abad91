"""`python poisoned_engine.py FD CONFIG`: the real engine, in which requests with certain seeds fail after some tokens.

The seed of a request chooses its fault, so a client chooses it over HTTP. All other requests are served as always.
"""

import os
import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.failures import GrammarError
from scheduler.plan import Chunk, Plan, Result, StepError

GOOD_TOKENS = 3
"""Tokens that a request with a fault gets before."""


class Fault(IntEnum):
    """Seeds of requests, and what fails because of them."""

    STEP = 66_600_001
    """Each step with the request fails, after it has written KV."""
    RUNNER = 66_600_002
    """Each step with the request raises an unexpected exception."""
    NAN = 66_600_003
    """The request's row of logits has a NaN."""
    SAMPLER = 66_600_004
    """Sampling raises an unexpected exception. The request must not be greedy."""
    GRAMMAR = 66_600_005
    """The grammar raises an unexpected exception when it takes a token."""
    MASK = 66_600_006
    """The grammar has an error when its mask is computed."""
    ABORT = 66_600_007
    """The process aborts in each step with the request."""
    KILL = 66_600_008
    """SIGKILL ends the process in each step with the request."""


def fault_of(chunk: Chunk) -> Fault | None:
    sampler = chunk.sequence.sampler
    is_due = sampler.params.seed in set(Fault) and sampler.index >= GOOD_TOKENS
    return Fault(sampler.params.seed) if is_due else None


def faults_of(plan: Plan) -> Iterable[Fault]:
    return {fault for chunk in plan.chunks if (fault := fault_of(chunk)) is not None}


def poison() -> None:
    """Patch the modules of the engine."""
    from scheduler import grammar, sampling, scheduler
    from scheduler.llama.runner import LlamaRunner

    run, logits, draw, submit = (
        LlamaRunner.run,
        LlamaRunner.logits,
        sampling.SamplerState.draw,
        scheduler.Scheduler.submit,
    )
    plans: list[Plan] = []

    def poisoned_run(self: LlamaRunner, plan: Plan) -> Result:
        plans[:] = [plan]
        faults = faults_of(plan)
        if Fault.ABORT in faults:
            os.abort()
        if Fault.KILL in faults:
            os.kill(os.getpid(), 9)
        result = run(self, plan)
        if Fault.STEP in faults:
            raise StepError("a poisoned step")
        if Fault.RUNNER in faults:
            raise ZeroDivisionError("a poisoned runner")
        return result

    def poisoned_logits(self: LlamaRunner, num_rows: int) -> NDArray[np.float32]:
        rows, end = logits(self, num_rows), 0
        for chunk in plans[0].chunks if plans else ():
            end += chunk.num_outputs
            if chunk.num_outputs and fault_of(chunk) is Fault.NAN:
                rows[end - chunk.num_outputs : end, 1000] = np.nan
        return rows

    def poisoned_draw(self: sampling.SamplerState, *args: Any) -> float:
        if self.params.seed == Fault.SAMPLER and self.index >= GOOD_TOKENS:
            raise KeyError("a poisoned sampler")
        return draw(self, *args)

    def poisoned_submit(self: scheduler.Scheduler, message: Any, compiled: grammar.Grammar | None = None) -> Any:
        if compiled is not None and message.params.seed == Fault.GRAMMAR:
            compiled = RaisingGrammar(compiled.matcher)
        if compiled is not None and message.params.seed == Fault.MASK:
            compiled = MasklessGrammar(compiled.matcher)
        return submit(self, message, compiled)

    class RaisingGrammar(grammar.Grammar):
        count = 0

        def advance(self, token: int, *, forces: bool = True) -> list[int]:
            self.count += 1
            if self.count > GOOD_TOKENS:
                raise RuntimeError("a poisoned grammar")
            return super().advance(token, forces=forces)

    class MasklessGrammar(grammar.Grammar):
        count = 0

        def check(self) -> None:
            self.count += 1
            if self.count > 2 * GOOD_TOKENS:  # each token has two checks
                raise GrammarError("a poisoned mask")
            super().check()

    patched: list[tuple[Any, str, Any]] = [
        (LlamaRunner, "run", poisoned_run),
        (LlamaRunner, "logits", poisoned_logits),
        (sampling.SamplerState, "draw", poisoned_draw),
        (scheduler.Scheduler, "submit", poisoned_submit),
    ]
    for owner, name, function in patched:
        setattr(owner, name, function)


if __name__ == "__main__":
    from scheduler.__main__ import main

    poison()
    sys.exit(main())
