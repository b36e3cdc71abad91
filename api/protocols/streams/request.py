"""The wire type of requests for the rest of a stream."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from api.protocols.fields import Query

LAST_EVENT_ID: Final = "Last-Event-ID"
"""The standard header of clients that connect again."""


class StreamQuery(Query):
    headers: ClassVar[frozenset[str]] = frozenset({LAST_EVENT_ID})

    after: Annotated[int, Field(ge=0)] = 0
    """The id of the last event that the client has got; 0 for none."""
    last_event_id: Annotated[int | None, Field(ge=0, alias=LAST_EVENT_ID)] = None
    """The same as `after`. It precedes `after`, because a browser that connects again keeps the URL."""

    @property
    def last_seen(self) -> int:
        return self.after if self.last_event_id is None else self.last_event_id
