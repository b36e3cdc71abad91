"""Whether an answer is the one that the peer expects."""

import json
from typing import Final

from tests.families.cases import LEFT_IN_CONTENT, Answer, Case
from tests.families.product import Family, RefusedError
from tests.families.results import Result
from tests.families.written import OPENS_THOUGHT

SIZES: Final = (0, 1, 3)
"""Characters of a token; 0: the whole output is one token."""


def judge(family: Family, case: Case) -> Result:
    """The model's output is read three times, in tokens of different sizes. All must give the expected answer."""
    if case.skip:
        return Result(case, "skipped", case.skip)
    try:
        prompt, answers = family.answers(case, SIZES)
    except RefusedError as refusal:
        return Result(case, "failed", "request refused", str(refusal))
    except Exception as error:  # an exception of a parser is a wrong answer
        return Result(case, "failed", "exception", f"{type(error).__name__}: {error}")
    said = case.expected.content.strip()
    if case.format == "none" and said and OPENS_THOUGHT.search(prompt) and case.raw.startswith(said):
        # The prompt begins a thought that the output does not end. With this format, the peer calls that content.
        return Result(case, "skipped", LEFT_IN_CONTENT)
    if len(set(answers)) > 1:
        return Result(case, "failed", "pieces add up to something else", got=answers[0])
    got = answers[0]
    why = difference(case, got, prompt)
    trimmed = (got.content, got.reasoning) != (case.expected.content, case.expected.reasoning)
    detail = f"got {got}" if why else ""
    return Result(case, "failed" if why else "passed", why, detail, got, trimmed and not why)


def judge_under_controls(family: Family, case: Case) -> str:
    """Why the answer is wrong with a vocabulary in which marks are tokens; empty if it is right."""
    try:
        prompt, answers = family.answers(case, SIZES)
    except RefusedError:
        return "request refused"
    except Exception as error:
        return f"exception: {type(error).__name__}"
    return next(filter(None, (difference(case, got, prompt) for got in answers)), "")


def difference(case: Case, got: Answer, prompt: str) -> str:
    """How the answer differs from the expected one, in a few words; empty if it does not.

    White space at the ends of content and thoughts does not count.
    """
    expected = case.expected
    whys = [_difference_of_calls(expected, got), _difference_of_thoughts(expected, got, prompt)]
    if got.content.strip() != expected.content.strip() and not any(whys):
        is_inside = expected.content.strip() and expected.content.strip() in got.content
        whys.append("markup left in content" if is_inside else "content differs")
    return ", ".join(filter(None, whys))


def _difference_of_calls(expected: Answer, got: Answer) -> str:
    if len(got.calls) != len(expected.calls):
        if not got.calls:
            return "call not seen"
        if not expected.calls:
            return "call where there is none"
        return f"{len(got.calls)} of {len(expected.calls)} calls"
    if [call.name for call in got.calls] != [call.name for call in expected.calls]:
        return "other function called"
    pairs = zip(got.calls, expected.calls, strict=True)
    return "" if all(_is_same_json(a.arguments, b.arguments) for a, b in pairs) else "arguments differ"


def _difference_of_thoughts(expected: Answer, got: Answer, prompt: str) -> str:
    # The peer repeats the beginning of the thoughts that is in the prompt. It may be missing here.
    begun = next((n for n in range(len(expected.reasoning), 0, -1) if prompt.endswith(expected.reasoning[:n])), 0)
    thoughts = got.reasoning.strip()
    if thoughts in {expected.reasoning.strip(), expected.reasoning[begun:].strip()}:
        return ""
    if not thoughts:
        return "thoughts not seen"
    return "thoughts differ" if expected.reasoning.strip() else "answer taken for thoughts"


def _is_same_json(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one == other
