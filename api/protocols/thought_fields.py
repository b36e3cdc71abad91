"""The request fields about reasoning that chats and responses share, with the names of other servers."""

from typing import Annotated, Final, Literal

from pydantic import Field

from api.errors import ApiError
from api.protocols.fields import Strict

Budget = Annotated[int, Field(ge=-1)]
"""Tokens of reasoning; -1 for no limit."""
BUDGETS: Final = ("reasoning_budget", "reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
"""The fields of a request that set the budget."""


class BudgetFields(Strict):
    """The fields that set the budget."""

    reasoning_budget: Budget | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None

    def budget(self, inner: int | None = None) -> int | None:
        """Maximum number of reasoning tokens; None for no limit. `inner`: the value of `reasoning.max_tokens`.

        Raises ApiError 400 if it is given twice with different values.
        """
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        if inner is not None:
            given["reasoning.max_tokens"] = inner
        if len(set(given.values())) > 1:
            first = next(iter(given))
            other = next(name for name in given if given[name] != given[first])
            raise contradiction(first, other)
        value = next(iter(given.values()), -1)
        return None if value < 0 else value


class ThoughtFields(BudgetFields):
    """All of these fields."""

    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    """`none` leaves the reasoning in the text, `deepseek` does not, `auto` is the same as null."""
    separate_reasoning: bool | None = None
    """False is the same as `reasoning_format` none, true the same as `deepseek`."""
    include_reasoning: bool | None = None
    """Whether the answer has the reasoning."""

    @property
    def keeps_reasoning(self) -> bool:
        """Whether the reasoning stays in the text, with its marks."""
        return self.reasoning_format == "none" or self.separate_reasoning is False

    def hides_reasoning(self, excludes: bool | None = None) -> bool:
        """Whether the answer leaves the reasoning out. `excludes`: the value of `reasoning.exclude`.

        Raises ApiError 400 if it must stay in the text, too, or if fields contradict each other.
        """
        if (self.reasoning_format, self.separate_reasoning) in (("none", True), ("deepseek", False)):
            raise contradiction("reasoning_format", "separate_reasoning")
        if excludes is not None and excludes == self.include_reasoning:
            raise contradiction("include_reasoning", "reasoning.exclude")
        hides = excludes or self.include_reasoning is False
        if hides and self.keeps_reasoning:
            name = "reasoning_format" if self.reasoning_format == "none" else "separate_reasoning"
            message = f"{name!r} keeps the reasoning in the text, so it cannot be left out of the answer."
            raise ApiError(400, message, param=name, code="invalid_value")
        return hides


def contradiction(first: str, other: str, *, param: str = "") -> ApiError:
    """The error for two fields with values that exclude each other. `param`: the field to name; else the other one."""
    message = f"{first!r} and {other!r} contradict each other."
    return ApiError(400, message, param=param or other, code="invalid_value")
