"""Wire values whose `type` field determines their other fields."""


def type_of(value: object) -> object:
    """The type of a wire value, or of a validated one, for serialization. None if it has none."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def tag(value: object) -> str:
    """A tag for pydantic's unions. It differs from all field names, so that error messages can leave it out."""
    return f"<{type_of(value)}>"


def check_type(value: object, what: str, served: tuple[str, ...]) -> object:
    """Returns the value. Raises ValueError if its type is not one of `served`."""
    kind = type_of(value)
    if not isinstance(kind, str):
        raise ValueError(f"{what} must be an object with a type")
    if kind not in served:
        raise ValueError(not_supported(what, kind, served))
    return value


def not_supported(what: str, kind: str, served: tuple[str, ...]) -> str:
    return f"{what} of type {kind!r} is not supported; supported types: {', '.join(map(repr, served))}"
