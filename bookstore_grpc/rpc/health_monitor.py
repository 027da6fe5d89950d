"""The health monitor: probes the database periodically, and decides readiness and the status of the health service."""

from collections.abc import Awaitable, Callable

import structlog

from bookstore_grpc.errors import Unavailable
from bookstore_grpc.net.file_descriptors import DescriptorsExhausted
from bookstore_grpc.net.periodic import PeriodicTask
from bookstore_grpc.rpc.health import Health

_log = structlog.stdlib.get_logger("bookstore_grpc.rpc.health_monitor")

# The maximum number of causes logged for one outage, because some contain text that differs at each attempt.
_LOGGED_CAUSES_MAX = 10

Probe = Callable[[], Awaitable[None]]


class HealthMonitor:
    """Sets the status of the health service to SERVING while the probe succeeds, and to NOT_SERVING while it raises.

    `probe` raises `Unavailable` if the database is, `probe_writes` if it responds but takes no writes. That is
    NOT_SERVING only with `requires_writes` (docs/decisions/0022-health-and-writes.md). `why_not_ready` is the reason
    for NOT_SERVING, or empty; `why_no_writes` is that of an outage of writes, whether it is required or not.
    """

    def __init__(
        self, health: Health, *, probe: Probe, probe_writes: Probe, requires_writes: bool, interval_seconds: float
    ) -> None:
        self.why_not_ready = "starting"
        self.why_no_writes = ""
        self._health = health
        self._probe = probe
        self._probe_writes = probe_writes
        self._requires_writes = requires_writes
        self._outage = _OutageLog("not serving: ", end="serving again: database available")
        self._write_outage = _OutageLog("", end="writes available again")
        self._probing = PeriodicTask("health", self._check, every_seconds=interval_seconds)

    async def start(self) -> None:
        """Report SERVING, and start probing."""
        self._set(why_not_ready="")
        await self._probing.start()

    async def stop(self, *, why_not_ready: str) -> None:
        """Stop probing, and report NOT_SERVING."""
        await self._probing.stop()
        self._set(why_not_ready=why_not_ready)

    async def _check(self) -> None:
        try:
            await self._probe()
        except Exception as error:
            self.why_no_writes = self._outage.log(error, "database unavailable")
            self._set(why_not_ready=self.why_no_writes)
            return
        await self._check_writes()
        if self.why_no_writes and self._requires_writes:
            self._set(why_not_ready=self.why_no_writes)
        else:
            self._outage.log_end()
            self._set(why_not_ready="")

    async def _check_writes(self) -> None:
        outage = self._outage if self._requires_writes else self._write_outage
        try:
            await self._probe_writes()
        except Exception as error:
            self.why_no_writes = outage.log(error, "writes unavailable")
        else:
            self.why_no_writes = ""
            self._write_outage.log_end()

    def _set(self, *, why_not_ready: str) -> None:
        self.why_not_ready = why_not_ready
        self._health.set(is_serving=not why_not_ready)


class _OutageLog:
    """Logs each cause of an outage once, because the first may be only a symptom, and the end of the outage."""

    def __init__(self, prefix: str, *, end: str) -> None:
        self._prefix = prefix
        self._end = end
        self._logged_causes: set[str] = set()  # empty while there is no outage

    def log(self, error: Exception, reason: str) -> str:
        """Log an error unless its cause has been logged. Return `reason`, or a more specific one."""
        if isinstance(error.__cause__, DescriptorsExhausted):
            reason = "no file descriptors left"
        elif not isinstance(error, Unavailable):
            reason = "health probe failed"
        cause = repr(error.__cause__ or error)
        if cause not in self._logged_causes and len(self._logged_causes) < _LOGGED_CAUSES_MAX:
            self._logged_causes.add(cause)
            if isinstance(error, Unavailable):
                _log.error(f"{self._prefix}{reason}", cause=cause)
            else:
                _log.exception(f"{self._prefix}{reason}")
        return reason

    def log_end(self) -> None:
        """Log the end of the outage, if there was one."""
        if self._logged_causes:
            _log.info(self._end)
        self._logged_causes.clear()
