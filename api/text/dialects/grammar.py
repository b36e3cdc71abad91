"""The grammar that an answer must match, made from the syntax of the model's answers."""

from dataclasses import replace
from typing import Final

from api.text.dialects.collector import Rules
from api.text.dialects.lark import ANY_TEXT, TokenId
from api.text.dialects.rules import call_rule
from api.text.dialects.syntax import AnswerSyntax, Calls, Thoughts, Wrapper
from api.text.dialects.tools import ToolUse

MAX_CALLS: Final = 16
"""Maximum number of calls in an answer that consists of calls."""
_SPACE: Final = r"/[ \n]*/"


def answer_grammar(
    syntax: AnswerSyntax, use: ToolUse | None, *, content: str | None, token_id: TokenId, is_thinking: bool = False
) -> str:
    """The llguidance grammar that an answer must match.

    `content` is the right-hand side of a rule for text answers; None allows any text. A reasoning model may reason
    before its text or its calls. `is_thinking`: the answer starts inside the reasoning.
    """
    rules = Rules(token_id)
    body = _body(rules, syntax, use, content)
    thoughts = _thoughts(rules, syntax.thoughts, is_thinking=is_thinking)
    lines = ["%llguidance {}", f"start: {thoughts} ({body}) {_ending(rules, syntax)}", *rules.lines]
    return "\n".join(lines)


def _body(rules: Rules, syntax: AnswerSyntax, use: ToolUse | None, content: str | None) -> str:
    """The answer after the reasoning."""
    words = _words(rules, content, _plain_limit(syntax.calls, use, content))
    wrapped, preamble = words, ""
    if syntax.content is not None:
        wrapped, preamble = _wrapped(rules, syntax.content, content, words)
    if use is None or syntax.calls is None:
        return f"{preamble} {wrapped}" if not content else wrapped
    calls = _calls(rules, syntax.calls, use)
    if use.choice == "required":
        return f"{preamble} {calls}"
    if content is not None or syntax.content is not None:
        return f"{preamble} ({wrapped} | {calls})" if content is None else f"{wrapped} | {calls}"
    trigger = _trigger(syntax.calls)
    if not trigger:
        return f"{words} | {calls}"
    triggered = _triggered(rules, syntax.calls, use, trigger)
    return f"{triggered}* {words}" if use.parallel else f"{words} | {triggered}"


def _words(rules: Rules, content: str | None, limit: str) -> str:
    rules.lines.append(f"words: {content or 'WORDS'}" + ("" if content else f"\nWORDS: {limit}"))
    return "words"


def _plain_limit(calls: Calls | None, use: ToolUse | None, content: str | None) -> str:
    """Text that starts like a bare call must be a call."""
    if calls is None or use is None or use.choice == "required" or content is not None or not calls.bare:
        return ANY_TEXT
    first = calls.forms[0][0]
    return rf"/([^{first[0]} \n](.|\n)*)?/" if isinstance(first, str) and first[0] in "{[<" else ANY_TEXT


def _wrapped(rules: Rules, wrapper: Wrapper, content: str | None, words: str) -> tuple[str, str]:
    """The last text of an answer, and the texts before it or before calls."""
    begin = f"({' | '.join(map(rules.mark, wrapper.begins))})"
    end = f"({rules.mark(wrapper.ends[0])})?" if wrapper.ends else ""
    if not wrapper.ends:
        return f"{begin} {words}", ""
    preamble = f"({begin} {rules.until(wrapper.ends[0], 'text')})*"
    return f"({begin} {words} {end})", preamble if content is None else ""


def _thoughts(rules: Rules, thoughts: Thoughts | None, *, is_thinking: bool) -> str:
    if thoughts is None:
        return ""
    ended = f"{rules.until(thoughts.ends[0], 'thought')} {_SPACE}"
    if is_thinking:
        return ended
    ways = [f"({' | '.join(map(rules.mark, thoughts.begins))}) {ended}"] if any(thoughts.begins) else []
    if thoughts.unopened:
        ways.append(f"{rules.mark(thoughts.ends[0])} {_SPACE}")
    return f"({' | '.join(ways)})?" if ways else ""


def _ending(rules: Rules, syntax: AnswerSyntax) -> str:
    """The mark of a turn's end where the vocabulary has no token that ends an answer."""
    marks = [mark for mark in syntax.ends if rules.token_id(mark) is None]
    return f"({' | '.join(map(rules.mark, marks))})?" if marks else ""


def _calls(rules: Rules, calls: Calls, use: ToolUse) -> str:
    """One or more calls."""
    if calls.bare and calls.begin:
        first = call_rule(rules, calls, use.tools)
        begin = f"({rules.mark(calls.begin)})?" if rules.token_id(calls.begin) is not None else ""
    else:
        first, begin = call_rule(rules, calls, use.tools, before=calls.begin), ""
    return f"{begin} {first}{_more(rules, calls, use)} {rules.mark(calls.end)}"


def _more(rules: Rules, calls: Calls, use: ToolUse) -> str:
    if not use.parallel:
        return ""
    return f" ({call_rule(rules, calls, use.tools, before=calls.separator)}){{0,{MAX_CALLS - 1}}}"


def _trigger(calls: Calls) -> str:
    """The mark at which text becomes a call; empty if calls have none."""
    first = calls.begin or calls.forms[0][0]
    if calls.bare or not isinstance(first, str) or not first.strip():
        return ""
    return first.lstrip()[: _first_mark_size(first.lstrip())]


def _first_mark_size(text: str) -> int:
    """The size of the text up to the first white space or the end of its first tag."""
    space = next((i for i, char in enumerate(text) if char.isspace()), len(text))
    tag = text.find(">") + 1 if text[0] == "<" else 0
    return tag if 0 < tag <= space else space


def _triggered(rules: Rules, calls: Calls, use: ToolUse, trigger: str) -> str:
    """Any text, then a call; all calls of a section, if they share one."""
    text = rules.until(trigger, "trigger")
    if calls.begin:
        first = call_rule(rules, calls, use.tools, before=calls.begin.lstrip().removeprefix(trigger))
        return f"({text} {first}{_more(rules, calls, use)} {rules.mark(calls.end)})"
    return f"({text} {call_rule(rules, _stripped(calls), use.tools, without=trigger)})"


def _stripped(calls: Calls) -> Calls:
    """White space before the first mark of a call is text."""
    forms = [(form[0].lstrip(), *form[1:]) if isinstance(form[0], str) else form for form in calls.forms]
    return replace(calls, forms=tuple(forms))
