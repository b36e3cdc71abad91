"""The sequences that have KV memory: admits them, reserves pages for their tokens, preempts and moves them."""

import bisect
import time
from collections.abc import Callable
from operator import attrgetter

from kvcache.cache import KVCache
from kvcache.layout import Layout
from kvcache.memory import Memory
from kvcache.tree import TOKEN_BYTES, Hit
from scheduler.queue import Policy
from scheduler.sequence import Sequence, Status

_by_arrival = attrgetter("arrival")


class Residents:
    """The running sequences of one KV cache. The policy has the waiting ones."""

    def __init__(
        self,
        cache: KVCache,
        policy: Policy,
        max_seqs: int,
        *,
        preempted: Callable[[Sequence], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`preempted` is called with each sequence that loses its memory and waits again."""
        self.running: list[Sequence] = []
        """In order of arrival."""
        self.num_preemptions = 0
        self.awaits_memory = False
        """Whether larger KV memory is being opened. Then a sequence without room waits, and preempts no other one."""
        self.holds = False
        """Whether no sequence may be admitted, because the KV memory is about to be moved."""
        self._cache = cache
        self._policy = policy
        self._max_seqs = self._limit = max_seqs
        """`_limit` is lower after a step found no room in the KV memory."""
        self._preempted = preempted
        self._clock = clock

    # -- admission ---------------------------------------------------------------------------------------------------

    def admit(self, num_waiting: int) -> None:
        """Admit waiting sequences, if there are any. Waits for the disk only if nothing runs."""
        if num_waiting and not self.holds:
            while self._admit_ready() and not self.running:
                self._cache.wait()

    def _admit_ready(self) -> bool:
        """Admit in the policy's order while there are pages and ids. Returns whether a sequence waits for the disk."""
        is_arriving = False
        if self._is_full and not self._policy.contends():
            return False
        for sequence in self._policy.candidates(self._num_cached):
            if sequence.num_known > self._cache.max_tokens:  # it waits until the memory has grown
                continue
            hit = self._lookup(sequence)
            if hit.stored.arriving:
                is_arriving = True
                continue
            if sequence.max_hit is None and self._is_being_computed(sequence, hit):
                continue
            if not self._acquire(sequence, hit):
                break
            sequence.status = Status.RUNNING
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.num_computed
                sequence.queue_seconds = self._clock() - sequence.submitted_at
            bisect.insort(self.running, sequence, key=_by_arrival)
            self._policy.admitted(sequence)
        return is_arriving

    @property
    def _is_full(self) -> bool:
        return len(self.running) >= min(self._limit, self._cache.num_ids)

    def _acquire(self, sequence: Sequence, hit: Hit) -> bool:
        """Give the sequence memory, and preempt others as far as the policy wants. Returns whether there is enough."""
        while True:
            if not self._is_full:
                sequence.handle = self._cache.acquire(bytes(sequence.known), hit, len(self.running))
            if sequence.handle is not None:
                sequence.handle.owner = sequence.tenant
                return True
            if self.awaits_memory:
                return False
            victim = self._policy.gives_way(sequence, self.running)
            if victim is None:
                return False
            self.preempt(victim)
            hit = self._lookup(sequence)

    def _lookup(self, sequence: Sequence) -> Hit:
        return self._cache.lookup(bytes(sequence.known), sequence.max_hit, sequence.cache_salt)

    def _num_cached(self, sequence: Sequence) -> int:
        return self._lookup(sequence).num_known

    def _is_being_computed(self, sequence: Sequence, hit: Hit) -> bool:
        """Whether a running sequence will compute the first token after the hit. It is better to wait and share it.

        This is checked again in every plan. So if the running sequence is cancelled or preempted, the waiting ones can
        be admitted at once.
        """
        if not self._cache.sharing:
            return False
        if hit.num_known + 1 >= sequence.num_known:  # each sequence computes its last token itself
            return False
        prefix = bytes(sequence.known[: (hit.num_known + 1) * TOKEN_BYTES])
        return any(
            other.num_computed <= hit.num_known
            and other.known.startswith(prefix)
            and other.cache_salt == sequence.cache_salt
            for other in self.running
        )

    # -- pages of running sequences ----------------------------------------------------------------------------------

    def reserve(self) -> list[Sequence]:
        """Reserve pages for all known tokens. Returns the sequences that have them, in order of arrival.

        Preempts sequences if pages run out. Others wait without pages until the memory has grown.
        """
        stuck = {sequence.request_id for sequence in tuple(self.running) if not self._reserve(sequence)}
        return [sequence for sequence in self.running if sequence.request_id not in stuck] if stuck else self.running

    def _reserve(self, sequence: Sequence) -> bool:
        """Preempts other sequences, or this one, if necessary. Returns False if it must wait for larger memory."""
        while sequence.handle is not None and not self._cache.reserve(sequence.handle, sequence.num_known):
            if self.awaits_memory or sequence.num_known > self._cache.max_tokens:
                return False
            self.preempt(self._policy.victim(self.running))
        return True

    # -- the end of a residence --------------------------------------------------------------------------------------

    def preempt(self, sequence: Sequence) -> None:
        """Release the sequence's memory and let it wait again. Pages that are evicted meanwhile are computed again."""
        assert sequence.handle is not None, "only running sequences are preempted"
        self._cache.release(sequence.handle)
        sequence.handle = None
        sequence.status = Status.PREEMPTED
        self.running.remove(sequence)
        self.num_preemptions += 1
        self._policy.preempted(sequence)
        self._preempted(sequence)

    def preempt_victim(self) -> bool:
        """Preempt the policy's victim. Returns False, and preempts nobody, if at most one sequence runs."""
        if len(self.running) < 2:
            return False
        self.preempt(self._policy.victim(self.running))
        return True

    def limit(self) -> bool:
        """Run one sequence less until another one ends, because the memory had no room. Returns False if one runs."""
        if not self.preempt_victim():
            return False
        self._limit = len(self.running)
        return True

    def remove(self, sequence: Sequence, *, keeps_kv: bool = True) -> None:
        """Free the memory of a sequence that ends; later sequences can share it with `keeps_kv`. May have none."""
        if sequence.handle is None:
            return
        if keeps_kv:
            self._cache.release(sequence.handle)
        else:
            self._cache.discard(sequence.handle)
        sequence.handle = None
        self.running.remove(sequence)
        self._limit = min(self._limit + 1, self._max_seqs)

    # -- memory of another size --------------------------------------------------------------------------------------

    def move(self, memory: Memory, layout: Layout) -> None:
        """Go on in another memory. Preempts the sequences that do not fit, and those whose KV it refuses."""
        self._cache.trim()
        for sequence in tuple(self.running):
            assert sequence.handle is not None, "running sequences have memory"
            if sequence.handle.num_pages > layout.max_pages:
                self.preempt(sequence)
        while self.running and (len(self.running) > layout.num_ids or self._cache.num_held > layout.num_pages):
            self.preempt(self._policy.victim(self.running))
        lost = self._cache.move(memory, layout)
        for sequence in [sequence for sequence in self.running if sequence.handle in lost]:
            self.preempt(sequence)
        self._limit = self._max_seqs
