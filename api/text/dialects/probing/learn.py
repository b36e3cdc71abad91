"""Learns the syntax of a model's answers by rendering conversations that differ in one thing."""

import logging
from typing import Any, Final

from api.text.dialects.probing.calls import Way, learn_calls
from api.text.dialects.probing.marks import first_mark
from api.text.dialects.probing.renders import KEYS, NAMES, QUESTION, RESULT, TWO_ARGUMENTS, Renders, results, with_calls
from api.text.dialects.probing.thoughts import Plain, learn_plain
from api.text.dialects.syntax import AnswerSyntax, Calls, Learned, TaggedArguments
from api.text.template import ChatTemplate, PromptEnd

log = logging.getLogger(__name__)
_RULE: Final[dict[str, Any]] = {"role": "system", "content": "zqrule"}


def learn(template: ChatTemplate) -> Learned:
    """What the template shows about a model's answers and about its prompts.

    Nothing is raised: what a template does not show is missing. It takes up to 0.1 s.
    """
    renders = Renders(template)
    plain = Plain(None, None, (), ())
    try:
        plain = learn_plain(renders)
        found = learn_calls(renders, plain)
        way = found.way if found else _rendering_way(renders)
        renders_calls = _renders_calls(renders, way)
        is_miswritten = found is not None and found.is_miswritten
        return Learned(
            AnswerSyntax(
                thoughts=plain.thoughts,
                content=plain.content,
                calls=found.calls if found else None,
                noise=plain.noise,
                ends=(*plain.ends, *(found.ends if found else ())),
            ),
            lists_tools=_lists_tools(renders) or _lists_tools(renders, _RULE),
            lists_tools_in_system=not _lists_tools(renders),
            renders_calls=renders_calls and not is_miswritten,
            renders_results=renders_calls and is_miswritten,
            arguments_as_text=way.as_text,
            switches=plain.switches,
        )
    except Exception:  # a template is a program: what it writes may be anything
        log.warning("the chat template could not be probed for calls", exc_info=True)
        return Learned(AnswerSyntax(plain.thoughts, plain.content, ends=plain.ends), switches=plain.switches)


def _lists_tools(renders: Renders, *before: dict[str, Any]) -> bool:
    prompt = renders.text([*before, QUESTION], tools=True, end=PromptEnd.NEW_TURN) or ""
    return NAMES[0] in prompt and KEYS[0] in prompt


def _rendering_way(renders: Renders) -> Way:
    """A way of giving calls in which the template writes them."""
    ways = [Way(as_text, content, is_followed=True) for as_text in (False, True) for content in ("", None)]
    return next((way for way in ways if _renders_calls(renders, way)), ways[0])


def _renders_calls(renders: Renders, way: Way) -> bool:
    call = TWO_ARGUMENTS[:1]
    message = with_calls(call, way.content, as_text=way.as_text)
    prompt = renders.text([QUESTION, message, *results(call)], tools=True, end=PromptEnd.NEW_TURN) or ""
    behind = prompt.rpartition(str(QUESTION["content"]))[2]
    return all(text in behind for text in (NAMES[0], *call[0][1].values(), RESULT))


def describe(learned: Learned) -> str:
    """One line about calls and thoughts: `tool calls: <tool_call> JSON, thoughts: <think>`."""
    thoughts = learned.syntax.thoughts
    mark = (*thoughts.begins, *thoughts.ends)[0].strip() if thoughts else "none"
    return f"tool calls: {_described(learned.syntax.calls)}, thoughts: {mark}"


def _described(calls: Calls | None) -> str:
    if calls is None:
        return "in words"
    head = calls.forms[0][0]
    begin = (calls.begin or (head if isinstance(head, str) else "")).strip()
    mark = "" if calls.bare else first_mark(begin) or begin.partition("\n")[0]
    if not isinstance(calls.arguments, TaggedArguments):
        style = "JSON"
    else:
        style = {"python": "Python", "json": "JSON values"}.get(calls.arguments.encoding, "tags")
    return f"{mark} {style}".lstrip()
