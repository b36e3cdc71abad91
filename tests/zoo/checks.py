"""The checks of one model in one layout: every answer must be that of a fresh engine that serves it alone."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scheduler.errors import ModelError
from tests.zoo.likeness import Scale, difference, distances, scale_of
from tests.zoo.served import Answer, Phase, Served

FIRST_TOKEN, NUM_TOKENS = 5, 115
"""Tokens of the prompts. Every vocabulary has them."""
DISK_BYTES = 1 << 28
CHUNK_TOKENS = 64
"""Token budget of the engines in which a prompt of LONG tokens is cancelled or a step of it fails."""
LONG = 200
OWN = 20
"""Tokens of a next prompt after those that the cache may have."""


@dataclass
class Report:
    """The results of one model in one layout."""

    refused: str = ""
    """The reason, if the engine refuses to load the model."""
    generates: bool = True
    layout: str = ""
    reason: str = ""
    """The reason for the layout."""
    tier: str = ""
    """What the tiers move: pages, sequences, or none."""
    cached: dict[str, int] = field(default_factory=dict)
    """Prompt tokens that a check found in the cache, by the check's name."""
    wrong: dict[str, str] = field(default_factory=dict)
    """The checks that fail, by their names."""
    quantized: str = ""
    """`right`, or the reason why the model is refused with a KV cache of type q8_0."""
    notices: str = ""
    """The smallest fault in a prompt that the checks notice."""

    def as_row(self) -> dict[str, Any]:
        """The values that are set."""
        plain = asdict(Report())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


class Checks:
    """Runs all checks of a model. Each opens engines of its own."""

    def __init__(self, path: str, layout: str, folder: Path, **options: Any) -> None:
        """`folder` is empty, for the disk tier. `options` are of EngineConfig, for every engine."""
        self._path, self._layout, self._options = path, layout, options
        self._disk = {"disk_cache": DISK_BYTES, "disk_folder": str(folder)}
        self._random = random.Random(1)
        self.report = Report()
        self._prompts = [self._text(length) for length in (86, 33, 110, LONG)]

    def run(self) -> Report:
        report = self.report
        try:
            with self._open() as engine:
                info = engine.info
        except ModelError as error:
            report.refused = str(error)
            return report
        report.tier = info.tier
        report.layout, report.reason, report.generates = info.kv_layout, info.kv_layout_reason, info.generates
        if info.generates:
            self._alone = [self._fresh(prompt)[0] for prompt in self._prompts]
            self._controls = self._measured_controls()
            self._scale = scale_of(self._noise(self._prompts, self._alone), self._controls)
            report.notices = self._scale.notices
            for check in (self._conversation, self._shared, self._cancelled, self._failed, self._quantized):
                check()
        return report

    def _noise(self, prompts: list[list[int]], alone: list[Answer], **options: Any) -> float:
        """How far other shapes of batches move the logits, and other kernels, which single tokens use too."""
        others = [self._fresh(*prompts, **options), self._fresh(*prompts, batch_tokens=CHUNK_TOKENS, **options)]
        if not options:  # a quantized cache needs flash attention
            others.append(self._fresh(*prompts, flash_attn="off"))
        return max(max(distances(*pair)) for other in others for pair in zip(alone, other, strict=True))

    def _measured_controls(self) -> dict[str, float]:
        """How far wrong tokens before the last OWN tokens of a prompt move the logits."""
        prompt, right = self._prompts[0], self._alone[0]
        stop, controls = len(prompt) - OWN, {}
        for count, name in ((1, "one token"), (8, "8 tokens"), (stop, "another prefix")):
            wrong = [*prompt[: stop - count], *map(_other, prompt[stop - count : stop]), *prompt[stop:]]
            controls[name] = distances(right, self._fresh(wrong)[0])[0]
        return controls

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _open(self, **options: Any) -> Served:
        return Served(self._path, self._layout, **self._options, **options)

    def _text(self, length: int) -> list[int]:
        return [FIRST_TOKEN + self._random.randrange(NUM_TOKENS) for _ in range(length)]

    def _fresh(self, *prompts: list[int], **options: Any) -> list[Answer]:
        """The answers of an engine that has served nothing and has no tiers, but the same layout."""
        with Served(self._path, self.report.layout, **self._options, **options, host_cache=0) as engine:
            return engine.ask(*prompts)

    def _compare(self, name: str, expected: list[Answer], answers: list[Answer], scale: Scale | None = None) -> None:
        for pair in zip(expected, answers, strict=True):
            if wrong := difference(*pair, scale or self._scale):
                self.report.wrong.setdefault(name, wrong)
        if num_cached := answers[-1].num_cached:
            self.report.cached[name] = num_cached

    # -- checks ------------------------------------------------------------------------------------------------------

    def _conversation(self) -> None:
        """A conversation goes on: at once, after its memory was needed, and in an engine that starts again."""
        prompt, *others = (self._text(length) for length in (60, 33, 90, 5))
        with self._open(**self._disk) as engine:
            cold = engine.ask(prompt)
            self._compare("batch", cold, self._fresh(prompt, *others)[:1])

            next_prompt = prompt + cold[0].tokens + self._text(OWN)
            expected = self._fresh(next_prompt)
            answers = engine.ask(next_prompt)
            self._compare("hit", expected, answers)

            for _ in range(2):  # these fill the memory
                engine.ask(*(self._text(LONG) for _ in range(4)))
            self._compare("tier", expected, engine.ask(next_prompt))

        last_prompt = next_prompt + answers[0].tokens + self._text(OWN)
        with self._open(**self._disk) as engine:
            answers = engine.ask(last_prompt)
            has_disk = engine.info.disk_cache > 0
        self._compare("restart", self._fresh(last_prompt), answers)
        if has_disk and not answers[0].num_cached:
            self.report.wrong.setdefault("restart", "the disk tier has nothing of the conversation")

    def _shared(self) -> None:
        """Two prompts with the same beginning: at once, and one after the other."""
        prefix = self._text(40)
        one, two = prefix + self._text(15), prefix + self._text(15)
        expected = [*self._fresh(one), *self._fresh(two)]
        self._compare("shared", expected, self._fresh(one, two))
        with self._open() as engine:
            engine.ask(one)
            self._compare("shared later", expected[1:], engine.ask(two))

    def _cancelled(self) -> None:
        """A prompt is cancelled when a part of it is computed. The others go on, and the prompt comes again."""
        *others, last = self._prompts
        *expected, expected_last = self._alone
        with self._open(batch_tokens=CHUNK_TOKENS) as engine:
            answers = engine.ask(last, *others, cancel=0)
            self._compare("cancel", expected, answers[1:])
            self._compare("cancelled again", [expected_last], engine.ask(last))

    def _failed(self) -> None:
        """A step fails after it was computed: one of the prompts, or one of the answers."""
        phases: tuple[Phase, ...] = ("prompt", "answer")
        for phase in phases:
            with self._open(batch_tokens=CHUNK_TOKENS) as engine:
                self._compare(f"failed {phase}", self._alone, engine.ask(*self._prompts, fail=phase))
                if not engine.num_failed:
                    self.report.wrong[f"failed {phase}"] = "no step failed"
                self._compare(f"after a failed {phase}", self._alone[-1:], engine.ask(self._prompts[-1]))

    def _quantized(self) -> None:
        """With a quantized KV cache, a conversation and a batch are right, or the model is refused."""
        quantized = {"kv_type": "q8_0"}
        try:
            engine = self._open(**quantized)
        except ModelError as error:
            self.report.quantized = str(error)
            return
        prompts = [self._prompts[0], self._prompts[-1]]
        alone = [self._fresh(prompt, **quantized)[0] for prompt in prompts]
        scale = scale_of(self._noise(prompts, alone, **quantized), self._controls)
        next_prompt = prompts[0] + alone[0].tokens + self._text(OWN)
        with engine:
            self._compare("quantized batch", alone, engine.ask(*prompts), scale)
            self._compare("quantized hit", self._fresh(next_prompt, **quantized), engine.ask(next_prompt), scale)
        if not any(name.startswith("quantized") for name in self.report.wrong):
            self.report.quantized = "right"


def _other(token: int) -> int:
    return FIRST_TOKEN + (token - FIRST_TOKEN + 1) % NUM_TOKENS
