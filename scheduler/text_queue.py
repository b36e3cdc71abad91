"""The queue of texts to embed. Requests take turns, and a long text is computed in several batches."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from scheduler.messages import Embed
from scheduler.texts import Batch, Limits, Piece, Text

Owner = tuple[int, str]
"""The class of a request and its tenant."""


@dataclass(eq=False, slots=True)
class Request:
    embed: Embed
    waiting: deque[Text]
    """Texts that no batch has started."""
    num_left: int
    """Number of texts without an embedding."""

    @property
    def id(self) -> int:
        return self.embed.request_id

    @property
    def owner(self) -> Owner:
        return self.embed.priority, self.embed.tenant


class TextQueue:
    """Plans batches of texts. Tenants take turns by the tokens that they got, higher classes first.

    The requests of a tenant take turns with one text each. The texts of a request stay in order.

    Only one text at a time is cut, so a context has to hold one long text and one batch. The cut text gets half of each
    batch and the room that the others leave. Texts of up to half a batch are never cut.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests: dict[int, Request] = {}
        """All requests that have not ended, by id."""
        self._line: deque[Request] = deque()
        """Requests with waiting texts, in the order of their turns, without the request of the cut text."""
        self._served: dict[Owner, float] = {}
        """Tokens that each tenant with requests got, divided by its weight."""
        self.cut: Text | None = None
        """The text of which some batches have computed a part."""
        self._free_ids = list(range(limits.max_texts - 1, -1, -1))

    @property
    def num_computed(self) -> int:
        """Number of computed tokens of the cut text; 0 if there is none."""
        return self.cut.num_computed if self.cut is not None else 0

    def add(self, embed: Embed, texts: list[Text]) -> None:
        """Queue a request of at least one text."""
        request = Request(embed, deque(texts), len(texts))
        if request.owner not in self._served:
            others = [served for (priority, _), served in self._served.items() if priority == embed.priority]
            self._served[request.owner] = min(others, default=0.0)
        self.requests[embed.request_id] = request
        self._line.append(request)

    def remove(self, request_id: int) -> Text | None:
        """Remove a request. Returns its cut text, if any; the caller must free the text and call `return_id`."""
        request = self.requests.pop(request_id)
        if all(other.owner != request.owner for other in self.requests.values()):
            del self._served[request.owner]
        if request in self._line:
            self._line.remove(request)
        cut = self.cut
        if cut is None or cut.request_id != request_id:
            return None
        self.cut = None
        return cut

    def return_id(self, text: Text) -> None:
        """Free the text's sequence id. Its KV must be freed already."""
        self._free_ids.append(text.sequence_id)
        text.sequence_id = -1

    def put_back(self, text: Text) -> None:
        """Start a text again, before the other texts of its request. Its id must be returned already."""
        if text is self.cut:
            self.cut = None
        text.num_computed, text.embedding = 0, None
        request = self.requests[text.request_id]
        if request not in self._line:
            self._line.appendleft(request)
        request.waiting.appendleft(text)

    def plan(self, budget: int, chosen: Collection[int] | None = None) -> Batch:
        """Plan the next batch: at most `budget` tokens if texts can be cut.

        The batch has only texts of the requests `chosen`; None for all. A text that is cut must be of one of them.
        """
        if chosen is None:
            return self._plan(budget)
        line = list(self._line)
        self._line = deque(request for request in line if request.id in chosen)
        batch = self._plan(budget)
        self._line.extendleft(request for request in reversed(line) if request.id not in chosen)
        return batch

    def _plan(self, budget: int) -> Batch:
        batch, left = Batch(), budget
        while left > 0:
            if self.cut is None and self._limits.cuts:
                self.cut = self._next_to_cut(budget // 2)
            cut = self.cut
            reserved = 0 if cut is None else min(len(cut.tokens) - cut.num_computed, left - left // 2)
            left -= self._pack(batch, left - reserved)
            if cut is None:
                break
            piece = Piece(cut, cut.num_computed, min(len(cut.tokens) - cut.num_computed, left))
            batch.pieces.append(piece)
            left -= piece.num_tokens
            if not piece.is_last:
                break
            self.cut = None
            self._line_up(self.requests[cut.request_id])
        return batch

    def _next_to_cut(self, longest_whole: int) -> Text | None:
        """Start the first text of more than `longest_whole` tokens, and take its request out of the line."""
        long = [request for request in self._line if len(request.waiting[0].tokens) > longest_whole]
        if not long or not self._free_ids:
            return None
        request = min(long, key=self._turn)
        self._line.remove(request)
        return self._begin(request)

    def _turn(self, request: Request) -> tuple[int, float]:
        """The order of turns of tenants. Among equals, the line decides."""
        return request.embed.priority, self._served[request.owner]

    def _begin(self, request: Request) -> Text:
        text = request.waiting.popleft()
        text.sequence_id = self._free_ids.pop()
        self._served[request.owner] += len(text.tokens) / request.embed.weight
        return text

    def _pack(self, batch: Batch, room: int) -> int:
        """Add whole texts of at most `room` tokens to the batch. Returns the number of tokens.

        A request whose text does not fit stays in front. If texts cannot be cut, a text that is longer than a batch
        gets a batch of its own.
        """
        left, too_long = room, []
        while self._line and self._free_ids and left > 0:
            request = min(self._line, key=self._turn)
            self._line.remove(request)
            length = len(request.waiting[0].tokens)
            if length > left and (self._limits.cuts or batch.pieces):
                too_long.append(request)
                continue
            batch.pieces.append(Piece(self._begin(request), 0, length))
            left -= length
            self._line_up(request)
        self._line.extendleft(reversed(too_long))
        return room - left

    def _line_up(self, request: Request) -> None:
        if request.waiting:
            self._line.append(request)

    def check_integrity(self) -> None:
        """Recount the ids. Raises AssertionError if the accounting is wrong."""
        held = [self.cut.sequence_id] if self.cut is not None else []
        assert sorted(self._free_ids + held) == list(range(self._limits.max_texts)), "ids"
