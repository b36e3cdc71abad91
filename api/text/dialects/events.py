"""The events of an answer, in the order of its text."""

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
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Content | Reasoning | CallBegin | CallArguments


def merged(events: Iterable[Event]) -> list[Event]:
    """The events with consecutive pieces of the same text joined."""
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
