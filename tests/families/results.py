"""What was measured, by template and by case."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from tests.families.cases import Answer, Case
from tests.families.extraction import Extracted

CONVERSATIONS: Final = ("plain", "system", "tools", "call")
"""Kinds of conversations that every template should render."""
Verdict = Literal["passed", "failed", "skipped"]


@dataclass
class Result:
    """Of a case."""

    case: Case
    verdict: Verdict
    why: str = ""
    """In a few words, unless it passed."""
    detail: str = ""
    got: Answer | None = None
    trimmed: bool = False
    """Whether white space at the ends differs, which counts as right."""
    under_controls: str | None = None
    """Why the answer is wrong if all marks are tokens; empty if it is right; None if the case is skipped."""


@dataclass
class Grammar:
    """Whether grammars allow the calls that the template itself writes. In each: empty if so, else why not."""

    call: str = ""
    """One call, as the template writes it; empty if it writes none."""
    one: str | None = None
    """For `tool_choice: required`; None if it was not measured."""
    two: str | None = None
    """For two calls."""
    under_controls: str | None = None
    """For one call, if all marks are tokens, which grammars must name by their ids."""
    auto: Literal["", "bent", "lost"] = ""
    """If `one` is refused, what happens under `tool_choice: auto`: `bent`: the grammar forces another form of call on
    the model. `lost`: the call stays in the content."""


@dataclass
class Report:
    """Of a template."""

    template: str
    """File name."""
    compiles: str = ""
    """Why it does not compile; empty if it does."""
    dialect: str = ""
    thinks: bool = False
    learned: str = ""
    renders: dict[str, str] = field(default_factory=dict)
    """By kind of conversation: empty if it is rendered, else why not, or which part is missing."""
    two_calls: str = ""
    """The same for two calls in one answer. It counts for nothing."""
    results: list[Result] = field(default_factory=list)
    grammar: Grammar = field(default_factory=Grammar)
    native: str = ""
    """Why the template by itself cannot render a call and its result, if it has calls."""
    missing_markers: list[str] = field(default_factory=list)
    """Marks of calls that look like control tokens, and that the dialect does not list as part of an answer."""

    @property
    def name(self) -> str:
        return self.template.removesuffix(".jinja")

    def count(self, verdict: Verdict) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.results if result.verdict != "skipped"]

    @property
    def num_under_controls(self) -> int:
        return sum(result.under_controls == "" for result in self.measured)

    @property
    def is_right(self) -> bool:
        """Notes (two calls, control tokens) do not count."""
        is_wrong = self.compiles or any(self.renders.values()) or self.count("failed") or self.grammar.one
        return not is_wrong


@dataclass
class Run:
    """Of the tool."""

    reports: Sequence[Report]
    """Templates of the peer."""
    extracted: Extracted | None = None
    """None without the peer's sources."""
    others: Sequence[Report] = ()
    """Other templates, for which there are no cases."""

    @property
    def results(self) -> list[Result]:
        return [result for report in self.reports for result in report.results]

    @property
    def summary(self) -> str:
        measured = [result for report in self.reports for result in report.measured]
        passed = sum(result.verdict == "passed" for result in measured)
        right = sum(report.is_right for report in self.reports)
        return f"{passed} of {len(measured)} cases, {right} of {len(self.reports)} templates fully right"
