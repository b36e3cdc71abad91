"""Serve's request router for nodes. Serve's interface for routers is alpha; its own prefix-aware router needs vLLM."""

from asyncio import gather, wait_for
from typing import Final

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.ray.node import Call
from deploy.ray.prefixes import MAX_BLOCKS, MAX_LEAD, Prefix, PrefixTable

PROBE_SECONDS: Final = 0.5
UNKNOWN_LOAD: Final = 1_000_000
"""Of a replica that does not answer. It is chosen last."""


class PrefixRouter(RequestRouter):
    """Runs in each ingress. Serve calls its methods in the event loop of the router."""

    def initialize_state(self, max_blocks: int = MAX_BLOCKS, max_lead: int = MAX_LEAD) -> None:
        self._table = PrefixTable(max_blocks=max_blocks, max_lead=max_lead)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each. Serve takes the next one if a replica is full."""
        replicas = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        loads = dict(zip(replicas, await gather(*map(self._load, replicas.values())), strict=True))
        ranked = self._table.rank(_prefix(pending_request), loads)
        if ranked:
            # More requests may be routed before this one is sent. Serve corrects the number when the replica answers.
            self.on_send_request(replicas[ranked[0]].replica_id)
        return [[replicas[name]] for name in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, *_: object) -> None:
        self._table.record(_prefix(pending_request), replica_id.to_full_id_str())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._table.keep_only([replica.replica_id.to_full_id_str() for replica in replicas])

    async def _load(self, replica: RunningReplica) -> int:
        """The number of requests at a replica. Serve forgets it after some seconds without news."""
        known: int | None = self.replica_queue_len_cache.get(replica.replica_id)
        if known is not None:
            return known
        try:
            load: int = await wait_for(replica.get_queue_len(deadline_s=PROBE_SECONDS), PROBE_SECONDS)
        except Exception:  # whatever is wrong with it, Serve will find out
            return UNKNOWN_LOAD
        self.on_new_queue_len_info(replica.replica_id, load)
        return load


def _prefix(request: PendingRequest | None) -> Prefix:
    call = request.args[0] if request is not None and request.args else None
    return call.prefix if isinstance(call, Call) else Prefix()
