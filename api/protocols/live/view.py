"""Renders a scene for one caller: an ordinary tenant sees its own name, and all others as one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from api.serving.live import Latencies, Latency, ModelScene, Scene
from api.tenants.tenant import OTHERS, Priority
from scheduler.messages import Row

Shown = Callable[[str], str]
"""The name under which a caller sees a tenant."""


def rendered(scene: Scene, latencies: Latencies, viewer: str | None) -> dict[str, Any]:
    """A LiveEvent. `viewer`: the tenant that sees its own; None for a caller that sees all."""

    def shown(tenant: str) -> str:
        return tenant if viewer is None or tenant == viewer else OTHERS

    models = [_model(each, latencies.of(each.name, viewer), viewer, shown) for each in scene.models]
    return {"at": round(scene.at, 3), "sees_all": viewer is None, "models": models}


def _model(scene: ModelScene, latency: Latency, viewer: str | None, shown: Shown) -> dict[str, Any]:
    snapshot = scene.snapshot
    memory = None if snapshot is None else snapshot.memory | {"resident_bytes": scene.resident_bytes}
    return {
        "name": scene.name,
        "state": scene.status,
        "steps": [{"seconds": seconds, "rows": _rows(rows, shown)} for seconds, rows in scene.steps],
        "pages": None if snapshot is None else _pages(snapshot.pages, shown),
        "queue": None if snapshot is None else _queue(snapshot.queue, shown),
        "memory": memory,
        "error": scene.error or None,
        "latency": {"ttft": _percentiles(latency.ttft), "itl": _percentiles(latency.itl)},
        "tokens_per_s": _rates(scene, viewer),
    }


def _rows(rows: Iterable[Row], shown: Shown) -> list[list[Any]]:
    merged: dict[str, list[int]] = {}
    for tenant, *numbers in rows:
        name = shown(tenant)
        before = merged.get(name)
        merged[name] = numbers if before is None else [have + more for have, more in zip(before, numbers, strict=True)]
    return [[name, *numbers] for name, numbers in merged.items()]


def _pages(pages: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Pages that several of the others share count for them as often as they have them, but not more than there are."""
    tenants: dict[str, dict[str, int]] = {}
    for tenant, (held, shared) in pages["tenants"].items():
        each = tenants.setdefault(shown(tenant), {"held": 0, "shared": 0})
        each["held"] += held
        each["shared"] = min(each["shared"] + shared, pages["shared"])
    cells = [{"state": state, "tenant": shown(owner) if owner else None} for state, owner in pages["map"]]
    return {**pages, "tenants": tenants, "map": cells}


def _queue(queue: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    accounts: dict[tuple[str, int], dict[str, Any]] = {}
    for account in queue["tenants"]:
        name, weight = shown(account["tenant"]), account["weight"]
        each = accounts.setdefault(
            (name, account["priority"]),
            {
                "name": name,
                "priority": Priority(account["priority"]).name.lower(),
                "running": 0,
                "waiting": 0,
                "weight": 0.0,
                "service": 0.0,
                "credit": None,
            },
        )
        share = weight / (each["weight"] + weight)  # service is a cost divided by a weight
        before = 0.0 if each["credit"] is None else each["credit"]
        each["running"] += account["running"]
        each["waiting"] += account["waiting"]
        each["weight"] += weight
        each["service"] = round(each["service"] + share * (account["service"] - each["service"]), 1)
        if account["credit"] is not None:
            each["credit"] = round(before + share * (account["credit"] - before), 1)
    return {"running": queue["running"], "waiting": queue["waiting"], "tenants": list(accounts.values())}


def _percentiles(found: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if found is None else dict(zip(("p50", "p95", "p99"), found, strict=True))


def _rates(scene: ModelScene, viewer: str | None) -> dict[str, float]:
    rates = scene.rates.values() if viewer is None else [scene.rates.get(viewer, (0.0, 0.0))]
    return {
        "prompt": round(sum(prompt for prompt, _ in rates), 1),
        "answer": round(sum(answer for _, answer in rates), 1),
    }
