"""Requests that count toward limits."""

from collections.abc import Callable

import trio

from api.errors import ApiError
from api.serving.accounts import Account, refuse
from api.serving.observer import RequestRecord


class Ticket:
    """Counts one request from its arrival until it is closed. Each sequence begins and ends once, however it ends."""

    def __init__(
        self,
        accounts: tuple[Account, ...] = (),
        num_sequences: int = 1,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Without accounts, nothing is counted."""
        self._accounts = accounts
        self._clock = clock
        self._waiting = set(range(num_sequences))
        self._open = set(range(num_sequences))
        now = clock() if accounts else 0.0
        for account in accounts:
            account.enter(num_sequences, now)

    def reserve(self, num_tokens: int) -> None:
        """Charge the tokens of the prompts.

        Raises ApiError 429 if there are fewer left in this minute, 400 if a minute never has so many. The request then
        counts for nothing.
        """
        now = self._clock() if self._accounts else 0.0
        try:
            for account in self._accounts:
                account.check_tokens(num_tokens)
            refuse([(each, why) for each in self._accounts for why in each.token_refusals(num_tokens, now)])
        except ApiError:
            for account in self._accounts:
                account.give_request_back()
            self.close()
            raise
        for account in self._accounts:
            account.charge(num_tokens, now)

    def advanced(self, index: int, num_tokens: int) -> None:
        """A sequence has a new output with this many tokens of the answer."""
        if not self._accounts or index not in self._open:
            return
        now = self._clock()
        if index in self._waiting:
            self._begin(index, now)
        if num_tokens:
            for account in self._accounts:
                account.charge(num_tokens, now)

    def ended(self, index: int) -> None:
        """A sequence has ended, with or without output."""
        if index not in self._open:
            return
        now = self._clock() if self._accounts else 0.0
        if index in self._waiting:
            self._begin(index, now)
        self._open.discard(index)
        for account in self._accounts:
            account.end(now)

    def close(self) -> None:
        """End the sequences that have not ended. May be called again."""
        for index in tuple(self._open):
            self.ended(index)

    def _begin(self, index: int, now: float) -> None:
        self._waiting.discard(index)
        for account in self._accounts:
            account.begin(now)


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
