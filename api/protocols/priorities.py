"""The fields with which a request asks for a class of the scheduler."""

from typing import Final, Literal

from api.tenants.tenant import Priority

PriorityField = Literal["interactive", "default", "batch"] | int
"""A class by its name, or an integer as vLLM has it: a request with a larger one is served later."""
ServedTier = Literal["default", "flex", "priority"]

_CLASSES: Final = {each.name.lower(): each for each in Priority}
_TIERS: Final = {
    "flex": Priority.BATCH,
    "priority": Priority.INTERACTIVE,
    "fast": Priority.INTERACTIVE,
    "ultrafast": Priority.INTERACTIVE,
}
"""OpenAI's service tiers that differ from its default."""


def wished_class(priority: PriorityField | None, service_tier: str | None) -> Priority | None:
    """The class that a request asks for; None if it asks for none. `priority` decides if both fields are given.

    vLLM's integers have no names: negative ones ask for `interactive`, positive ones for `batch`, 0 for nothing.
    """
    match priority:
        case str(name):
            return _CLASSES[name]
        case int(number) if number:
            return Priority.INTERACTIVE if number < 0 else Priority.BATCH
    return _TIERS.get(service_tier or "")


def served_tier(service_tier: str | None, served: int) -> ServedTier:
    """OpenAI's name of the tier with which a request was served. `served`: the class of its sequences."""
    if _TIERS.get(service_tier or "") != served:
        return "default"
    return "flex" if served == Priority.BATCH else "priority"
