"""The request in log lines, and the log's line for each request that has ended. Neither has prompts or answers."""

import logging

from api.serving.observer import CURRENT, RequestRecord

_log = logging.getLogger("cortex.requests")


class RequestContext(logging.Filter):
    """Adds the request and its tenant to the lines of the task that serves it, for the JSON format."""

    def filter(self, record: logging.LogRecord) -> bool:
        request = CURRENT.get()
        if request is not None and request.request_id:
            known = {"request_id": request.request_id}
            if request.tenant:
                known["tenant"] = request.tenant
            record.fields = known | getattr(record, "fields", {})
        return True


class RequestLog:
    """Writes a line when a request has ended, as an observer."""

    def began(self, record: RequestRecord) -> None:
        """Writes nothing: the line of the end has all stations."""

    def ended(self, record: RequestRecord) -> None:
        ended = record.arrival if record.ended is None else record.ended
        waited = record.time_to_first_token
        fields = {
            "request_id": record.request_id,
            "tenant": record.tenant or None,
            "operation": record.operation,
            "model": record.model or None,
            "status": record.status,
            "finish": record.finish,
            "error": record.error or None,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "answer_tokens": record.answer_tokens,
            "accepted_drafts": record.accepted_drafts,
            "rejected_drafts": record.rejected_drafts,
            "seconds": round(ended - record.arrival, 4),
            "queue_seconds": round(record.queue_seconds, 4),
            "first_token_seconds": None if waited is None else round(waited, 4),
        }
        _log.info(
            "request %s of %s: %s, status %d, %s, %d prompt tokens (%d cached), %d answer tokens, %.3f s, queue %.3f s",
            record.request_id,
            record.tenant.encode("unicode_escape").decode() or "nobody",  # a client may have chosen it
            f"{record.operation} with {record.model}" if record.model else record.operation,
            record.status,
            f"{record.finish}: {record.error}" if record.error else record.finish,
            record.prompt_tokens,
            record.cached_tokens,
            record.answer_tokens,
            fields["seconds"],
            record.queue_seconds,
            extra={"fields": fields},
        )
