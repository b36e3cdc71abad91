"""The grammar that an answer must match, made from the syntax of the model's answers."""

import re
from dataclasses import replace
from typing import Final

from api.text.dialects.grammars.calls import call_rule
from api.text.dialects.grammars.lark import ANY_TEXT, TokenId
from api.text.dialects.grammars.rules import Rules
from api.text.dialects.syntax import AnswerSyntax, Calls, Slot, Thoughts, Wrapper
from api.text.dialects.tools import Tool, ToolUse

MAX_CALLS: Final = 16
"""Maximum number of calls in an answer that consists of calls."""
_TAG: Final = re.compile(r"<[^<>\s]*>|<[^<>\s]+|\[[^\[\]\s]+\]")
_SPACE: Final = r"/[ \n]{0,8}/"
"""After reasoning. Without a limit, a model that wants no call could write white space for ever."""

_LEAD: Final = r"/\n{1,2}/"
"""Line breaks that some templates write before calls."""


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
        return _after(preamble, wrapped)
    calls = _calls(rules, syntax.calls, use)
    if use.choice == "required":
        return f"{_LEAD}? {_empty(rules, syntax.content)} {calls}"
    if content is not None or syntax.content is not None:
        return _after(preamble, f"({wrapped} | {calls})")
    triggered = _triggered(rules, syntax.calls, use)
    if not triggered:
        return f"{words} | {calls}"
    return f"{triggered}* {words}" if use.parallel else f"{words} | {triggered}"


def _after(preamble: str, last: str) -> str:
    """A text with its end mark may also be the last one."""
    return f"{preamble} {last}?" if preamble else last


def _words(rules: Rules, content: str | None, limit: str) -> str:
    rules.lines.append(f"words: {content or 'WORDS'}" + ("" if content else f"\nWORDS: {limit}"))
    return "words"


def _plain_limit(calls: Calls | None, use: ToolUse | None, content: str | None) -> str:
    """Text that starts like a bare call must be a call."""
    if calls is None or use is None or use.choice == "required" or content is not None or not calls.bare:
        return ANY_TEXT
    first = calls.forms[0][0]
    if not isinstance(first, str) or first[0] not in "{[<":
        return ANY_TEXT
    if calls.end:  # a list of calls: other lists are text
        return rf"/([^\[ \n](.|\n)*|\[([^{re.escape(first[0])} \n](.|\n)*)?)?/" if calls.begin == "[" else ANY_TEXT
    return rf"/([^{first[0]} \n](.|\n)*)?/"


def _wrapped(rules: Rules, wrapper: Wrapper, content: str | None, words: str) -> tuple[str, str]:
    """The last text of an answer, and the texts before it or before calls."""
    begin = f"({' | '.join(map(rules.mark, wrapper.begins))})"
    end = f"({rules.mark(wrapper.ends[0])})?" if wrapper.ends else ""
    if not wrapper.ends:
        return f"{begin} {words}", ""
    preamble = f"({begin} {rules.until(wrapper.ends[0], 'text')})*"
    return f"({begin} {words} {end})", preamble if content is None else ""


def _empty(rules: Rules, wrapper: Wrapper | None) -> str:
    """The marks of a text without any text, which some families write before calls.

    A text could go on until the answer is full, so that there would be no call.
    """
    if wrapper is None or not wrapper.ends:
        return ""
    return f"(({' | '.join(map(rules.mark, wrapper.begins))}) {rules.mark(wrapper.ends[0])})?"


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
    marks = [mark if mark[0] in "<[" else f"\n{mark}" for mark in marks]  # a value without an end mark may be before it
    return f"({' | '.join(map(rules.mark, marks))})?" if marks else ""


def _calls(rules: Rules, calls: Calls, use: ToolUse) -> str:
    """One or more calls."""
    if calls.bare and calls.begin and not calls.end:
        first = call_rule(rules, calls, use.tools)
        begin = f"({rules.mark(calls.begin)})?" if rules.token_id(calls.begin) is not None else ""
    else:
        first, begin = call_rule(rules, calls, use.tools, before=calls.begin), ""
    return f"{begin} {first}{_more(rules, calls, use)} {rules.mark(calls.end)}"


def _more(rules: Rules, calls: Calls, use: ToolUse) -> str:
    if not use.parallel:
        return ""
    return f" ({call_rule(rules, calls, use.tools, before=calls.separator)}){{0,{MAX_CALLS - 1}}}"


def _triggered(rules: Rules, calls: Calls, use: ToolUse) -> str:
    """Any text, then a call; all calls of a section, if they share one. Empty if no mark shows where a call begins."""
    first = calls.begin or calls.forms[0][0]
    if calls.bare or not isinstance(first, str) or not first.strip():
        return ""
    trigger = _trigger(first.lstrip())
    if not trigger:
        return f"({' | '.join(_named(rules, calls, tool) for tool in use.tools)})"
    text = rules.until(trigger, "trigger")
    if calls.begin:
        first_call = call_rule(rules, calls, use.tools, before=calls.begin.lstrip().removeprefix(trigger))
        return f"({text} {first_call}{_more(rules, calls, use)} {rules.mark(calls.end)})"
    return f"({text} {call_rule(rules, _stripped(calls), use.tools, without=trigger)})"


def _trigger(text: str) -> str:
    """The mark that a text begins with: a tag, or else its first line. Empty if text often has it."""
    tag = _TAG.match(text)
    mark = tag[0] if tag else text.partition("\n")[0].rstrip()
    return mark if len(mark) > 2 else ""


def _named(rules: Rules, calls: Calls, tool: Tool) -> str:
    """Any text, then a call of this tool, whose name belongs to the mark."""
    stripped = _stripped(calls)
    form = stripped.forms[0]
    if calls.begin or form[1:2] != (Slot.NAME,):
        return call_rule(rules, calls, (tool,))
    mark = f"{form[0]}{tool.name}{form[2] if isinstance(form[2], str) else ''}"
    named = replace(stripped, forms=((mark, *form[3:]),))
    return f"{rules.until(mark, 'trigger')} {call_rule(rules, named, (tool,), without=mark)}"


def _stripped(calls: Calls) -> Calls:
    """White space before the first mark of a call is text."""
    forms = [(form[0].lstrip(), *form[1:]) if isinstance(form[0], str) else form for form in calls.forms]
    return replace(calls, forms=tuple(forms))
