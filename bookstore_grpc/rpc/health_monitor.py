"""The health monitor: probes the database at intervals, and reports whether the service can do its work."""

from collections.abc import Awaitable, Callable

import structlog

from bookstore_grpc.errors import Unavailable
from bookstore_grpc.net.file_descriptors import DescriptorsExhausted
from bookstore_grpc.net.periodic import PeriodicTask
from bookstore_grpc.rpc.health import Health

_log = structlog.stdlib.get_logger("bookstore_grpc.server")

# Of one outage, in the log: some causes hold what differs at each try.
_LOGGED_CAUSES_MAX = 10


class HealthMonitor:
    """Sets the status of the health service by whether `probe` succeeds; it raises `Unavailable` while it does not.

    `why_not_ready` is the reason for NOT_SERVING, or empty.
    """

    def __init__(self, health: Health, *, probe: Callable[[], Awaitable[None]], interval_seconds: float) -> None:
        self.why_not_ready = "starting"
        self._health = health
        self._probe = probe
        self._logged_causes: set[str] = set()  # of an outage; empty while the service serves
        self._probing = PeriodicTask("health", self._check, every_seconds=interval_seconds)

    async def start(self) -> None:
        """Report SERVING, and probe from now on."""
        self._set(why_not_ready="")
        await self._probing.start()

    async def stop(self, *, why_not_ready: str) -> None:
        """Report NOT_SERVING, and probe no more."""
        await self._probing.stop()
        self._set(why_not_ready=why_not_ready)

    async def _check(self) -> None:
        try:
            await self._probe()
        except Exception as error:
            self._log_outage(error)
            self._set(why_not_ready=_reason(error))
        else:
            if self._logged_causes:
                _log.info("serving again: the database is back")
            self._logged_causes.clear()
            self._set(why_not_ready="")

    def _log_outage(self, error: Exception) -> None:
        cause = repr(error.__cause__ or error)
        # The first may be a symptom, such as a broken connection, and the next name the cause.
        if cause in self._logged_causes or len(self._logged_causes) >= _LOGGED_CAUSES_MAX:
            return
        self._logged_causes.add(cause)
        if isinstance(error, Unavailable):
            _log.error(f"not serving: {_reason(error)}", cause=cause)
        else:
            _log.exception("not serving: the probe failed")

    def _set(self, *, why_not_ready: str) -> None:
        self.why_not_ready = why_not_ready
        self._health.set(is_serving=not why_not_ready)


def _reason(error: Exception) -> str:
    return (
        "no file descriptors are left" if isinstance(error.__cause__, DescriptorsExhausted) else "the database is away"
    )
