"""Values that say by their `type` what they are."""


def type_of(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else None


def tag(value: object) -> str:
    """Unlike the name of any field, so that an error names fields only."""
    return f"<{type_of(value)}>"


def check_type(value: object, what: str, served: tuple[str, ...]) -> object:
    """Raises ValueError for what has none of the types that are served."""
    kind = type_of(value)
    if not isinstance(kind, str):
        raise ValueError(f"{what} is an object with a type")
    if kind not in served:
        raise ValueError(f"{what} of type {kind!r} is not served; what is: {', '.join(map(repr, served))}")
    return value
