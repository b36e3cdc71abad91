"""What an answer is made of, in the order in which it comes."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the call's arguments, which are the text of a JSON object."""

    index: int
    text: str


Event = Content | Reasoning | CallBegin | CallArguments


def merged(events: Iterable[Event]) -> list[Event]:
    """Pieces of the same text in one."""
    merged: list[Event] = []
    for event in events:
        match merged[-1:], event:
            case [Content(before)], Content(text):
                merged[-1] = Content(before + text)
            case [Reasoning(before)], Reasoning(text):
                merged[-1] = Reasoning(before + text)
            case [CallArguments(index, before)], CallArguments(other, text) if index == other:
                merged[-1] = CallArguments(index, before + text)
            case _:
                merged.append(event)
    return merged
