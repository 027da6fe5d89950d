"""Up to where a relay has published, which a bucket of JetStream keeps for the relays of all streams."""

import json
from typing import Any, NamedTuple

from nats.js import JetStreamContext
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from bookstore_grpc.relay.nats_connection import RelayError

BUCKET = "BOOKSTORE_RELAY"


class Position(NamedTuple):
    """Up to where changes are published.

    `epoch` is the last sequence of the stream when the relay began, at first or after `--reset`: numbers of changes
    are compared only with those of messages of the same epoch. `resume_token` is empty before the first response, and
    all messages that follow from it are after `sequence` in the stream. Once `existing_sent`, only changes follow from
    it, and no existing books.
    """

    epoch: int
    sequence: int
    number: int = 0
    resume_token: str = ""
    existing_sent: bool = False

    def is_ahead_of(self, other: "Position") -> bool:
        """Return whether less follows from it than from another position."""
        if self.epoch != other.epoch:
            return self.epoch > other.epoch
        if self.existing_sent != other.existing_sent:
            return self.existing_sent
        return self.number > other.number if self.existing_sent else self.sequence > other.sequence


class Positions:
    """The position of one relay, under its key. Methods raise the errors of NATS; `open` has to be called first."""

    _bucket: KeyValue

    def __init__(self, js: JetStreamContext, *, key: str, replicas: int) -> None:
        self._js = js
        self._key = key
        self._replicas = replicas

    async def open(self) -> None:
        """Open the bucket, and create it if it is missing."""
        try:
            self._bucket = await self._js.key_value(BUCKET)
        except BucketNotFoundError:
            self._bucket = await self._js.create_key_value(
                bucket=BUCKET, description="Where each `bookstore relay` continues.", replicas=self._replicas
            )

    async def begin(self, last_sequence: int, *, is_reset: bool) -> Position:
        """Return a new position at the end of a stream, or unless `is_reset` that of a relay that was faster."""
        position = Position(epoch=last_sequence, sequence=last_sequence)
        if is_reset:
            await self._write(position)
            return position
        try:
            await self._bucket.create(self._key, _encoded(position))
        except KeyWrongLastSequenceError:
            return await self.read() or position
        return position

    async def read(self) -> Position | None:
        """Return the stored position, or None if there is none. Raises `RelayError` if it cannot be read."""
        try:
            entry = await self._bucket.get(self._key)
        except KeyNotFoundError:
            return None
        try:
            fields: dict[str, Any] = json.loads(entry.value or b"{}")
            return Position(
                fields["epoch"], fields["sequence"], fields["number"], fields["resumeToken"], fields["existingSent"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RelayError(
                f"{self._key} in the bucket {BUCKET} is not a position of a relay. Start over with --reset."
            ) from error

    async def advance(self, position: Position) -> None:
        """Store a position, unless another relay has stored one that is ahead of it."""
        stored = await self.read()
        if stored is None or not stored.is_ahead_of(position):
            await self._write(position)

    async def _write(self, position: Position) -> None:
        await self._bucket.put(self._key, _encoded(position))


def _encoded(position: Position) -> bytes:
    fields = {
        "epoch": position.epoch,
        "sequence": position.sequence,
        "number": position.number,
        "resumeToken": position.resume_token,
        "existingSent": position.existing_sent,
    }
    return json.dumps(fields).encode()
