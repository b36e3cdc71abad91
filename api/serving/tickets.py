"""Requests that count toward limits."""

from collections.abc import Callable

import trio

from api.errors import ApiError
from api.serving.allowance import Allowance, refuse
from api.serving.observer import RequestRecord


class Ticket:
    """Counts one request from its arrival until it is closed. Each sequence begins and ends once, however it ends."""

    def __init__(
        self,
        allowances: tuple[Allowance, ...] = (),
        num_sequences: int = 1,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Without allowances, nothing is counted."""
        self._allowances = allowances
        self._clock = clock
        self._waiting = set(range(num_sequences))
        self._open = set(range(num_sequences))
        now = clock() if allowances else 0.0
        for allowance in allowances:
            allowance.enter(num_sequences, now)

    def reserve(self, num_tokens: int) -> None:
        """Charge the tokens of the prompts.

        Raises ApiError 429 if there are fewer left in this minute, 400 if a minute never has so many. The request then
        counts for nothing.
        """
        now = self._clock() if self._allowances else 0.0
        try:
            for allowance in self._allowances:
                allowance.check_tokens(num_tokens)
            refuse([(each, why) for each in self._allowances for why in each.token_refusals(num_tokens, now)])
        except ApiError:
            for allowance in self._allowances:
                allowance.give_request_back()
            self.close()
            raise
        for allowance in self._allowances:
            allowance.charge(num_tokens, now)

    def advanced(self, index: int, num_tokens: int) -> None:
        """A sequence has a new output with this many tokens of the answer."""
        if not self._allowances or index not in self._open:
            return
        now = self._clock()
        if index in self._waiting:
            self._begin(index, now)
        if num_tokens:
            for allowance in self._allowances:
                allowance.charge(num_tokens, now)

    def ended(self, index: int) -> None:
        """A sequence has ended, with or without output."""
        if index not in self._open:
            return
        now = self._clock() if self._allowances else 0.0
        if index in self._waiting:
            self._begin(index, now)
        self._open.discard(index)
        for allowance in self._allowances:
            allowance.end(now)

    def close(self) -> None:
        """End the sequences that have not ended. May be called again."""
        for index in tuple(self._open):
            self.ended(index)

    def _begin(self, index: int, now: float) -> None:
        self._waiting.discard(index)
        for allowance in self._allowances:
            allowance.begin(now)


class OpenTickets:
    """Closes the ticket of each request at its end, however it ends. An observer."""

    def __init__(self) -> None:
        self._tickets: dict[RequestRecord, Ticket] = {}

    def add(self, record: RequestRecord, ticket: Ticket) -> None:
        self._tickets[record] = ticket

    def began(self, record: RequestRecord) -> None:
        """See Observer. The request has no ticket yet."""

    def ended(self, record: RequestRecord) -> None:
        """See Observer."""
        if (ticket := self._tickets.pop(record, None)) is not None:
            ticket.close()
