"""Learns the marks of thoughts, the wrapper of the text, the end of a turn and the switches of thinking."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.text.dialects.probing.marks import behind, first_mark, is_mark, num_marks, shared_words, squeezed, units, words
from api.text.dialects.probing.renders import (
    CONTENT,
    NEXT,
    PROBE,
    QUESTION,
    REASON,
    TWO_ARGUMENTS,
    Message,
    Renders,
    assistant,
    results,
    with_calls,
)
from api.text.dialects.syntax import Thoughts, Wrapper
from api.text.template import PromptEnd

_FIELDS: Final = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
"""The members of a message in which templates look for its reasoning."""
_CLOSING: Final = re.compile(
    r"(</|\[/|<\|/|<\|END_|<\|end_)([\w:]*(?:think|thought|reason)\w*)(\|?[>\]])", re.IGNORECASE
)
"""A mark that ends thoughts, in a template that drops the thoughts of earlier turns."""
_OPENING: Final = {"</": "<", "[/": "[", "<|/": "<|", "<|END_": "<|START_", "<|end_": "<|start_"}
_MAX_UNITS: Final = 12
"""Units of a mark at most."""
_EXTRA: Final = "zqextra"
"""A text that only a template shows which writes the parts of a message as they are given."""
_SIDE: Final = re.compile(r"start|begin|open|end|close|[^a-z]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plain:
    """What surrounds the text of an answer."""

    thoughts: Thoughts | None
    content: Wrapper | None
    ends: tuple[str, ...]
    switches: tuple[str, ...]
    noise: tuple[str, ...] = ()


def learn_plain(renders: Renders) -> Plain:
    """Learn everything but calls."""
    changing = _changing(renders)
    on = {name: True for name in changing if _names_thinking(name)}
    plain = _plain_turn(renders)
    before, after = plain.split(CONTENT, 1) if plain else ("", "")
    reasoned = next(_reasoned(renders, on), None)
    starts = [before, renders.generation(), reasoned and reasoned.partition(REASON)[0]]
    header = shared_words(*filter(None, starts))
    thoughts = _thoughts(reasoned, header) if reasoned else None
    thoughts = thoughts or _from_source(renders.source) or _from_prompt(renders, header, on)
    rest = behind(before, header) if header else ""
    if thoughts:
        is_open = any("".join(header).endswith(squeezed(mark)) for mark in thoughts.begins)
        bare = rest.startswith(thoughts.ends) and not is_open
        thoughts = Thoughts(thoughts.begins, thoughts.ends, unopened=bare)
        rest = _without_thought(rest, thoughts)
    content, ends = _wrapper(rest, after.strip())
    ends = ends or _end_before_next(renders, content)
    noise = _noise(reasoned, thoughts, content)
    marks = (*thoughts.begins, *thoughts.ends) if thoughts else ()
    switches = tuple(name for name in changing if _names_thinking(name) or _moves_mark(renders, name, marks))
    return Plain(thoughts, content, (ends,) if ends else (), switches, noise)


def _end_before_next(renders: Renders, content: Wrapper | None) -> str:
    """The mark that ends the turn, in templates that write it only if another turn follows."""
    turn = renders.turn(assistant(CONTENT), [{"role": "user", "content": NEXT}]) or ""
    between = turn.partition(CONTENT)[2].partition(NEXT)[0].strip() if NEXT in turn else ""
    if content:
        between = between.removeprefix(content.ends[0]).lstrip()
    mark = first_mark(between)
    return mark if num_marks(between) > 1 and mark != between else ""


def _noise(reasoned: str | None, thoughts: Thoughts | None, content: Wrapper | None) -> tuple[str, ...]:
    """What stands between thoughts and the wrapper of the text: the header of another message."""
    if reasoned is None or thoughts is None or content is None or CONTENT not in reasoned:
        return ()
    between = reasoned.partition(REASON)[2].partition(CONTENT)[0].strip()
    between = between.removeprefix(thoughts.ends[0]).removesuffix(content.begins[0]).strip()
    return (between,) if is_mark(between) and PROBE not in between else ()


def _plain_turn(renders: Renders) -> str | None:
    message = assistant(CONTENT)
    for following in ([], [{"role": "user", "content": NEXT}]):
        turn = renders.turn(message, following)
        if turn and CONTENT in turn:
            return turn.partition(NEXT)[0] if following else turn
    return None


def _reasoned(renders: Renders, on: Mapping[str, Any]) -> Iterator[str]:
    """The turns that show their reasoning."""
    fields = [name for name in _FIELDS if re.search(rf"\b{name}\b", renders.source)]
    members = dict.fromkeys(fields, REASON)
    call = TWO_ARGUMENTS[:1]
    parts: Any = [{"type": "thinking", "thinking": REASON, "extra": _EXTRA}, {"type": "text", "text": CONTENT}]
    with_members: list[tuple[Message, list[Message]]] = [
        (assistant(CONTENT, **members), []),
        (with_calls(call, CONTENT, as_text=False) | members, results(call)),
        (with_calls(call, CONTENT, as_text=True) | members, results(call)),
    ]
    ways = [(way, variables) for variables in ([{}, on] if on else [{}]) for way in with_members] if members else []
    ways += [((assistant(parts), []), variables) for variables in ([{}, on] if on else [{}])]
    for (message, following), variables in ways:
        turn = renders.turn(message, following, tools=bool(following), variables=variables)
        if turn and turn.count(REASON) == 1 and _EXTRA not in turn:
            yield turn


def _thoughts(turn: str, header: list[str]) -> Thoughts | None:
    before, _, after = turn.partition(REASON)
    begin = behind(before, header) if header else ""
    end = first_mark(after.partition(CONTENT)[0])
    if not is_mark(end) or PROBE in begin + end:
        return None
    if not is_mark(begin):
        begin = _pair(header or words(before), end)
    if not begin and not num_marks(end):
        return None  # such as a line in Markdown
    return Thoughts((begin,) if begin else (), (end,))


def _pair(header: list[str], end: str) -> str:
    """The mark at the end of the header that makes a pair with this one."""
    for size in range(1, min(len(header), _MAX_UNITS) + 1):
        begin = "".join(header[-size:])
        if is_mark(begin) and _side_less(begin) and _side_less(begin) == _side_less(end):
            return begin
    return ""


def _from_source(source: str) -> Thoughts | None:
    found = _CLOSING.search(source)
    if found is None:
        return None
    opening, name, closing = found.groups()
    return Thoughts((_OPENING[opening] + name + closing,), (found.group(),))


def _from_prompt(renders: Renders, header: list[str], on: Mapping[str, Any]) -> Thoughts | None:
    """The two marks of an empty thought, with which the prompt ends if thinking is switched off."""
    off = renders.generation(dict.fromkeys(on, False)) or ""
    rest = behind(off, header)
    begin = first_mark(rest)
    end = rest.removeprefix(begin).strip()
    if not on or not begin or not is_mark(end) or first_mark(end) != end or rest in (renders.generation(on) or ""):
        return None
    return Thoughts((begin,), (end,))


def _side_less(mark: str) -> str:
    """What the two marks of a pair have in common."""
    return _SIDE.sub("", mark)


def _without_thought(text: str, thoughts: Thoughts) -> str:
    """The text behind an empty thought."""
    for mark in (*thoughts.begins, *thoughts.ends):
        text = text.removeprefix(mark).lstrip()
    return text


def _wrapper(begin: str, after: str) -> tuple[Wrapper | None, str]:
    """The wrapper of the text and the mark that ends the turn."""
    if not is_mark(begin):
        return None, first_mark(after)
    wanted, end = num_marks(begin), ""
    for unit in units(after):
        if num_marks(end) >= wanted:
            break
        end += unit
    rest = after[len(end) :].strip()
    if not is_mark(end) or num_marks(end) < wanted or PROBE in begin:
        return None, first_mark(after)
    return Wrapper((begin,), (end.strip(),)), first_mark(rest)


def _names_thinking(name: str) -> bool:
    return "think" in name.lower() or "reason" in name.lower()


def _changing(renders: Renders) -> list[str]:
    """The boolean variables that change the prompt."""
    return [name for name in renders.variables() if _prompts(renders, name) is not None]


def _prompts(renders: Renders, name: str) -> tuple[str, str] | None:
    """The prompts without and with a boolean variable, if they differ in more than its own text."""
    off, on = (renders.text([QUESTION], variables={name: value}, end=PromptEnd.NEW_TURN) for value in (False, True))
    if off is None or on is None or off == on or on.count(str(True)) > off.count(str(True)):
        return None
    return off, on


def _moves_mark(renders: Renders, name: str, marks: tuple[str, ...]) -> bool:
    """Whether a boolean variable changes marks of thoughts behind the question."""
    off, on = (renders.generation({name: value}) or "" for value in (False, True))
    return any(off.count(mark) != on.count(mark) for mark in marks)
