"""Conversations of several users, with Cortex's scheduler and with the order of llama-server, in virtual time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import numpy as np

from bench.simulation.machine import CPU, MICRO_BATCH, Machine, Part
from bench.simulation.simulator import LATENCY, Prompt, Request, Simulator, Tenant
from bench.stats import Measures

SPREAD = 0.003
"""Requests that belong together arrive within this many seconds."""
GATHERED = 0.004
"""llama-server computes together what arrives within this many seconds while it is idle."""
PEER_BATCH = 4 * MICRO_BATCH
"""Tokens of a step of llama-server: its default."""

_EVERYBODY = Tenant("everybody")
_MAX_STEPS = 200_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The workload `multiturn` of `bench load`. Lengths are tokens."""

    users: int = 8
    turns: int = 4
    first: int = 174
    question: int = 72
    """Tokens that each further turn adds to the conversation, without the answer."""
    answer: int = 48
    variation: float = 0.0
    """Each length differs from the given one by up to this share of it."""


@dataclass(frozen=True, slots=True)
class Turn:
    words: list[int]
    max_tokens: int
    delay: float
    """From the end of the last answer to the arrival of this turn."""


@dataclass(slots=True)
class Played:
    """A turn that was played."""

    submitted: float
    times: list[float] = field(default_factory=list)
    """When each token of the answer arrived."""


def scripts(shape: Shape, seed: int) -> list[list[Turn]]:
    """The turns of each user."""
    rng = Random(f"turns {seed}")

    def around(length: int) -> int:
        return max(2, round(length * rng.uniform(1 - shape.variation, 1 + shape.variation)) + rng.randint(-1, 1))

    return [
        [
            Turn(
                [rng.randrange(1000, 49_000) for _ in range(around(shape.question if number else shape.first))],
                around(shape.answer) if shape.variation else shape.answer,
                rng.uniform(0, SPREAD) + (LATENCY if number else 0.0),
            )
            for number in range(shape.turns)
        ]
        for _ in range(shape.users)
    ]


def play(simulator: Simulator, users: Sequence[Sequence[Turn]]) -> list[Played]:
    """Plays the conversations to their end."""
    played: list[Played] = []

    def say(turns: Sequence[Turn], history: list[int], now: float) -> None:
        due = now + turns[0].delay
        prompt = [*history, *turns[0].words]

        def submit() -> None:
            request = simulator.submit(_EVERYBODY, Prompt(prompt, turns[0].max_tokens), due, lambda: ended(request))
            played.append(Played(due, request.times))

        def ended(request: Request) -> None:
            if len(turns) > 1:
                say(turns[1:], prompt + request.answer, simulator.now)

        simulator.at(due, submit)

    for turns in users:
        say(turns, [], 0.0)
    simulator.drain(_MAX_STEPS)
    return played


@dataclass(slots=True)
class _Slot:
    """A slot of llama-server: one user's conversation."""

    turns: list[Turn]
    due: float
    computed: int = 0
    unread: int = 0
    """Tokens of the prompt that are not computed."""
    unsaid: int = 0
    """Tokens of the answer that are not sampled."""
    played: list[Played] = field(default_factory=list)


def play_whole(users: Sequence[Sequence[Turn]], machine: Machine = CPU) -> list[Played]:
    """Plays the conversations in the order of llama-server, with a slot and a lane for each user.

    Each step computes one token of every answer, and all waiting prompts whole.
    """
    slots = [_Slot(list(turns), turns[0].delay) for turns in users]
    now = 0.0
    while any(slot.turns or slot.unsaid for slot in slots):
        if not any(slot.unsaid for slot in slots):
            now = max(now, min(slot.due for slot in slots if slot.turns) + GATHERED)
        for slot in slots:
            if slot.turns and not slot.unsaid and slot.due <= now:
                turn = slot.turns.pop(0)
                slot.unread, slot.unsaid = len(turn.words) + bool(slot.played), turn.max_tokens
                slot.played.append(Played(slot.due))
        answers: list[Part] = []
        prompts: list[Part] = []
        for number, slot in enumerate(slots):
            if slot.unread:
                room = PEER_BATCH - sum(num_tokens for _, _, num_tokens in prompts)
                prompts.append((number, slot.computed, min(slot.unread, room)))
            elif slot.unsaid:
                answers.append((number, slot.computed, 1))
        now += machine.seconds(answers + prompts)
        for number, _, num_tokens in answers + prompts:
            slot = slots[number]
            slot.computed += num_tokens
            slot.unread -= min(slot.unread, num_tokens)
            if not slot.unread:
                slot.played[-1].times.append(now)
                slot.unsaid -= 1
                if slot.turns and not slot.unsaid:
                    slot.due = now + slot.turns[0].delay
    return [played for slot in slots for played in slot.played]


def measures(played: Sequence[Played]) -> Measures:
    """What `bench load` reports of the same requests."""
    waits = [each.times[0] - each.submitted for each in played]
    gaps = [later - earlier for each in played for earlier, later in pairwise(each.times)]
    wall = max(each.times[-1] for each in played) - min(each.submitted for each in played)
    p50, p99 = map(float, np.percentile(gaps, (50, 99)))
    return {
        "tokens_per_s": sum(len(each.times) for each in played) / wall,
        "ttft_p50_s": float(np.median(waits)),
        "ttft_max_s": max(waits),
        "itl_p50_s": p50,
        "itl_p99_s": p99,
        "itl_max_s": max(gaps),
    }
