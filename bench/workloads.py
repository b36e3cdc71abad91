"""The workloads as scripts: what every user will say, and when. Nothing is sent from here."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal, get_args

from bench.records import Ask, BenchError, Message

# Each is one token of SmolLM2's vocabulary, with and without a space before it.
WORDS = """
    able above after air along always animal apple arm art away back bank bear before best between black
    blue boat book bottom boy bread bright brown building call camp care castle cause center chair
    chapter child circle class clear clock cloud cold come company cost country cover culture dark
    daughter deal design direct dog double dream drop early east effect eight empty energy enough every
    example face fall farm father field figure final fine first five floor flower follow foot forest
    forward free friend fruit game glass good great ground grow hair hand hard head heat help hill hold
    horse hour human ice inside job jump keep king lake language last law learn left level life line
    listen local look low main mark master matter measure memory method mile mind model money moon
    motion move name nature neck news noise nose number office old orange other oven page paper park
    party pattern perfect photo piece plain planet plate point port power press print process public
    push question quiet rain reach reason red rest rice ride ring road room rose round rule salt sand
    scale science sea season second seed sense series shape sharp shirt short sign single size skin
    sleep small snow soft song soup south special spring stage star state stay stick stone store story
    strong sugar sun sweet table talk task team test thing thought time title together tool top touch
    town trade travel trip trust under upper view voice wall warm watch wave week west white wide wind
    winter wise woman word world yard yellow zero
""".split()

# What SmolLM2's chat template adds, in tokens: to a lone user message (it brings its own system message), to
# a system and a user message, and to each further pair of an answer and a question.
BARE_TEMPLATE, SYSTEM_TEMPLATE = 30, 14
QUESTION_TOKENS = 12  # beside a long shared text
TURN_TOKENS = 60  # a question of a conversation
STREAM_TOKENS = 400  # enough for a stream to outlive the long prompt beside it

Workload = Literal["uniform", "shared", "burst", "interference", "multiturn", "trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A workload's numbers. Tokens are about right: `prompt_tokens` is the first prompt, template included."""

    workload: Workload
    users: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    turns: int = 4
    settle_s: float = 1.0  # quiet time between the phases of a repetition
    trace: Path | None = None
    speed: float = 1.0
    max_context: int = 1024
    max_output: int = 64
    limit: int = 64


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user adds to the conversation so far."""

    messages: tuple[Message, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """One user's conversation, beginning `at` seconds after the start of an open-loop run."""

    turns: tuple[Turn, ...]
    at: float = 0.0


# users, requests, tokens of the first prompt, tokens out
_DEFAULTS: dict[Workload, tuple[int, int, int, int]] = {
    "uniform": (8, 8, 130, 48),
    "shared": (16, 48, 730, 32),
    "burst": (16, 16, 730, 24),
    "interference": (6, 7, 2500, 16),
    "multiturn": (8, 32, 174, 48),
    "trace": (0, 0, 0, 0),
}
# What a workload itself decides.
_FIXED: dict[Workload, frozenset[str]] = {
    "burst": frozenset({"requests"}),
    "interference": frozenset({"requests"}),
    "trace": frozenset({"users", "requests", "prompt_tokens", "output_tokens"}),
}


def resolve(
    workload: Workload, given: dict[str, int | None], *, turns: int = 4, **others: float | Path | None
) -> Settings:
    """Settings with the workload's defaults for what was not given."""
    raise NotImplementedError
