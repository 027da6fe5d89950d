"""The log of calls: one line for each, at a level by its outcome."""

import structlog

from bookstore_grpc.rpc.calls import Call, Outcome

_log = structlog.stdlib.get_logger("bookstore_grpc.calls")


class CallLog:
    """Writes one line for each call, and lets every other line of the call bear its request id and method."""

    def call_began(self, call: Call) -> None:
        """Bind what finds the call's lines."""
        structlog.contextvars.bind_contextvars(request_id=call.request_id, method=call.method)

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Write the line."""
        duration_ms = round(outcome.seconds * 1_000, 3)
        if outcome.status == "OK":
            _log.debug("call answered", duration_ms=duration_ms)
            return
        if outcome.status == "CANCELLED":
            _log.info("call cancelled", duration_ms=duration_ms)
            return
        fields = {"status": outcome.status, "reason": outcome.reason, "duration_ms": duration_ms}
        if outcome.reason == "SERVER_DRAINING":
            _log.info("call cut off by the drain", **fields)
        elif outcome.status == "INTERNAL":
            _log.error("call failed", **fields, exc_info=outcome.error)
        elif outcome.status == "UNAVAILABLE":
            error = outcome.error
            _log.warning("call failed", **fields, cause=repr((error and error.__cause__) or error))
        else:
            _log.info("call refused", **fields)
