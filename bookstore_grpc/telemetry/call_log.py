"""The call log: one line per call, at a level that depends on its outcome, with sizes but never with contents."""

import logging

import structlog

from bookstore_grpc.calls.call import HEALTH_PREFIX, Call, Outcome
from bookstore_grpc.errors import CallInterrupted, ResourceExhausted, ServerDraining
from bookstore_grpc.telemetry.logs import write_line

_log = structlog.stdlib.get_logger("bookstore_grpc.telemetry.call_log")

_OWN_METHODS_PREFIX = "/bookstore."


class CallLog:
    """Writes one line per call, and adds the call's request id and method to every other line logged during it.

    Calls of this service that took `slow_call_seconds` or longer are marked `slow`, at level warning or above.
    """

    def __init__(self, *, slow_call_seconds: float) -> None:
        self._slow_call_seconds = slow_call_seconds

    def call_began(self, call: Call) -> None:
        """Bind the request id and the method to the log context."""
        structlog.contextvars.bind_contextvars(request_id=call.request_id, method=call.method)

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """Write the line of the call."""
        level, event = _level_and_event(call, outcome)
        is_slow = outcome.seconds >= self._slow_call_seconds and _is_to_be_short(call)
        if is_slow:
            level = max(level, logging.WARNING)
        if not _log.is_enabled_for(level):
            return
        fields: dict[str, object] = {
            "request_id": call.request_id,
            "method": call.method,
            "status": outcome.status,
            "duration_ms": round(outcome.seconds * 1_000, 3),
            "request_bytes": call.request_bytes,
            "response_bytes": call.response_bytes,
        }
        if call.caller:
            fields["caller"] = call.caller
        else:
            fields["peer"] = call.peer or call.context.peer()
        if call.trace_id:
            fields["trace_id"] = call.trace_id
        if outcome.reason:
            fields["reason"] = outcome.reason
        if isinstance(outcome.error, ResourceExhausted):
            fields |= outcome.error.metadata  # which limit
        if is_slow:
            fields["slow"] = True
        if outcome.status == "UNAVAILABLE" and outcome.error:
            fields["cause"] = repr(outcome.error.__cause__ or outcome.error)
        if outcome.status == "INTERNAL":
            fields["exc_info"] = outcome.error
        write_line(_log, level, event, fields)


def _is_to_be_short(call: Call) -> bool:
    """Return whether a call should not take long: neither a watch nor a stream of another service, as reflection's."""
    return call.method.startswith(_OWN_METHODS_PREFIX) and not call.is_watch


def _level_and_event(call: Call, outcome: Outcome) -> tuple[int, str]:
    if outcome.status == "OK":
        # Orchestrators check health every few seconds.
        return (logging.DEBUG if call.method.startswith(HEALTH_PREFIX) else logging.INFO), "call finished"
    if outcome.status == "CANCELLED":
        return logging.INFO, "call cancelled"
    if outcome.reason == CallInterrupted.reason:
        return logging.INFO, "call cancelled by shutdown"
    if outcome.status == "INTERNAL":
        return logging.ERROR, "call failed"
    if outcome.status == "UNAVAILABLE" and outcome.reason != ServerDraining.reason:
        return logging.WARNING, "call failed"
    return logging.INFO, "call rejected"
