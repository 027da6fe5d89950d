"""The stream that the relay publishes to.

Each message is published on condition of the stream's last sequence and last message id. So while many wait for their
acknowledgements, none is stored unless the one before it was, also if other relays publish at the same time
(docs/decisions/0030-relay.md).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import nats.errors
from bookstore.v1.books_pb2 import BookChange
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import APIError, NotFoundError

from bookstore_grpc.relay.events import SUBJECT_TOKENS, Event
from bookstore_grpc.relay.nats_connection import NatsOptions, RelayError, Report, nats_connection
from bookstore_grpc.relay.positions import Position, Positions

_REQUEST_SECONDS = 5
_SUBJECTS_OVERLAP = 10065
_WRONG_LAST = (10070, 10071)  # message id, sequence
_NO_RESPONDERS = "503"


class PublishFailed(Exception):
    """A message was not acknowledged. Whether it was stored is for `JetStream.published` to say."""


class StreamMoved(PublishFailed):
    """A message was rejected because the last message of the stream is not the one that was expected."""


class StreamOptions(NamedTuple):
    """The stream, the first tokens of its subjects, and what it is created with if it is missing."""

    name: str
    subject_prefix: str
    max_age_seconds: float
    replicas: int

    @property
    def subjects(self) -> list[str]:
        """One subject for each type of change."""
        return [f"{self.subject_prefix}.{token}" for token in SUBJECT_TOKENS.values()]


class Published(NamedTuple):
    """What the stream has: its last sequence, the last change, and the ids of existing books since a position."""

    sequence: int
    number: int
    existing: frozenset[str]

    def includes(self, change: BookChange, identifier: str) -> bool:
        """Return whether a change, or an existing book in the same state, is among the messages."""
        if change.type == BookChange.EXISTING:
            return identifier in self.existing
        return change.number <= self.number


@dataclass
class _Acks:
    """The acknowledgements that are awaited, by the last token of their inbox."""

    inbox: str
    numbers: "count[int]"
    awaited: dict[str, "asyncio.Future[bool]"]


class JetStream:
    """The stream and the position of one relay."""

    def __init__(self, client: Client, options: StreamOptions) -> None:
        self._client = client
        self._options = options
        self._js = client.jetstream(timeout=_REQUEST_SECONDS)
        self._acks = _Acks(client.new_inbox(), count(), {})
        self._positions = Positions(self._js, key=f"{options.name}.{options.subject_prefix}", replicas=options.replicas)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to NATS at this moment."""
        return self._client.is_connected

    async def open(self) -> None:
        """Create what is missing. Raises `RelayError` if the stream cannot be used."""
        with self._relay_errors():
            await self._open_stream()
            await self._positions.open()
            await self._client.subscribe(f"{self._acks.inbox}.*", cb=self._note_ack)

    async def begin(self, *, is_reset: bool) -> Position:
        """Return the stored position, or a new one if there is none or it `is_reset`. Raises `RelayError`."""
        with self._relay_errors():
            if not is_reset and (stored := await self._positions.read()):
                return stored
            last_sequence = (await self._js.stream_info(self._options.name)).state.last_seq
            return await self._positions.begin(last_sequence, is_reset=is_reset)

    async def save(self, position: Position) -> None:
        """Store a position, unless another relay has stored one that is ahead of it. Raises `PublishFailed`."""
        try:
            await self._positions.advance(position)
        except nats.errors.Error as error:
            raise PublishFailed(str(error)) from error

    async def progress(self) -> tuple[Position | None, int]:
        """Return the stored position and the last sequence of the stream. Raises `PublishFailed` and `RelayError`."""
        with self._read_errors():
            sequence = (await self._js.stream_info(self._options.name)).state.last_seq
            return await self._positions.read(), sequence

    async def published(self, position: Position) -> Published:
        """Return what the stream has. Raises `PublishFailed`, and `RelayError` if it has messages of others."""
        with self._read_errors():
            sequence = (await self._js.stream_info(self._options.name)).state.last_seq
            number, existing = position.number, frozenset[str]()
            for subject in self._options.subjects:
                try:
                    message = await self._js.get_last_msg(self._options.name, subject)
                except NotFoundError:
                    continue
                sequence = max(sequence, message.seq or 0)
                identifier = self._parsed_id(message)
                if identifier.epoch == position.epoch and identifier.number:
                    number = max(number, identifier.number)
                elif identifier.epoch == position.epoch:
                    existing = await self._existing_between(position.sequence, message.seq or 0)
            return Published(sequence, number, existing)

    async def publish(
        self, event: Event, message_id: str, *, after_sequence: int, after_id: str = ""
    ) -> "asyncio.Future[bool]":
        """Send a message, and return a future that is done once it is stored; false if it had been stored before.

        It is stored only if the last sequence of the stream is `after_sequence`, and unless empty the id of that
        message is `after_id`: the sequence alone may be that of another relay. The future may fail with
        `PublishFailed`. Raises `PublishFailed` too, and `RelayError` for a message that is too large for NATS.
        """
        token = str(next(self._acks.numbers))
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        headers = {
            **event.headers,
            api.Header.MSG_ID: message_id,
            api.Header.EXPECTED_STREAM: self._options.name,
            api.Header.EXPECTED_LAST_SEQUENCE: str(after_sequence),
        }
        if after_id:
            headers[api.Header.EXPECTED_LAST_MSG_ID] = after_id
        self._acks.awaited[token] = future
        subject = f"{self._options.subject_prefix}.{event.subject_token}"
        try:
            await self._client.publish(subject, event.payload, reply=f"{self._acks.inbox}.{token}", headers=headers)
        except nats.errors.MaxPayloadError as error:
            raise RelayError(f"A change of {len(event.payload):,} bytes exceeds NATS's max_payload.") from error
        except nats.errors.Error as error:
            self._acks.awaited.pop(token, None)
            raise PublishFailed(str(error)) from error
        return future

    def forget_acks(self, reason: str) -> None:
        """Let all messages whose acknowledgement is awaited fail."""
        awaited, self._acks.awaited = self._acks.awaited, {}
        for future in awaited.values():
            if not future.done():
                _fail(future, PublishFailed(reason))

    @contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            raise RelayError(f"The stream {self._options.name} has been deleted.") from error
        except nats.errors.Error as error:
            if self._client.is_closed:
                raise RelayError(f"NATS has closed the connection: {self._client.last_error}.") from error
            raise PublishFailed(str(error)) from error

    @contextmanager
    def _relay_errors(self) -> Iterator[None]:
        try:
            yield
        except APIError as error:
            reason = error.description or "it is not enabled"
            raise RelayError(f"JetStream rejects the stream {self._options.name}: {reason}.") from error
        except nats.errors.Error as error:
            reason = str(error).removeprefix("nats: ")
            raise RelayError(f"JetStream does not respond: {reason}. Does the user have the rights to it?") from error

    async def _note_ack(self, message: Msg) -> None:
        # nats-py's own publish_async never resolves the future of a message that is rejected.
        # https://github.com/nats-io/nats.py/issues/985
        future = self._acks.awaited.pop(message.subject.rpartition(".")[2], None)
        if future is None or future.done():
            return
        if failure := _rejection(message):
            _fail(future, failure)
        else:
            future.set_result(not json.loads(message.data).get("duplicate", False))

    async def _open_stream(self) -> None:
        options = self._options
        try:
            info = await self._js.stream_info(options.name)
        except NotFoundError:
            await self._create_stream()
            return
        subjects = info.config.subjects or []
        if missing := [each for each in options.subjects if not any(_matches(pattern, each) for pattern in subjects)]:
            raise RelayError(
                f"The stream {options.name} exists and does not store {', '.join(missing)}: add "
                f"{options.subject_prefix}.* to its subjects, or name another with --stream."
            )
        others = [each for each in subjects if not each.startswith(f"{options.subject_prefix}.")]
        if others or info.config.sources:
            raise RelayError(
                f"The stream {options.name} stores {', '.join(others) or 'other streams'} too. The relay needs a "
                "stream of its own, because it publishes on condition of the last sequence: name one with --stream."
            )

    async def _create_stream(self) -> None:
        options = self._options
        try:
            await self._js.add_stream(
                api.StreamConfig(
                    name=options.name,
                    description="Changes of books, published by `bookstore relay`.",
                    subjects=[f"{options.subject_prefix}.*"],
                    max_age=options.max_age_seconds,
                    num_replicas=options.replicas,
                )
            )
        except APIError as error:
            if error.err_code != _SUBJECTS_OVERLAP:
                raise
            other = await self._js.find_stream_name_by_subject(options.subjects[0])
            raise RelayError(
                f"The subjects {options.subject_prefix}.* are those of the stream {other}: name it with --stream, or "
                "others with --subject-prefix."
            ) from error

    async def _existing_between(self, sequence: int, last: int) -> frozenset[str]:
        """Return the ids of the messages about existing books after a sequence: those of about a second."""
        found = set()
        for each in range(sequence + 1, last + 1):
            with suppress(NotFoundError):  # deleted
                message = await self._js.get_msg(self._options.name, each)
                found.add((message.headers or {}).get(api.Header.MSG_ID, ""))
        return frozenset(found)

    def _parsed_id(self, message: api.RawStreamMsg) -> "_MessageId":
        try:
            epoch, kind, value = (message.headers or {})[api.Header.MSG_ID].split("/", 2)
            return _MessageId(int(epoch), int(value) if kind == "change" else 0)
        except (KeyError, ValueError):
            raise RelayError(
                f"The stream {self._options.name} has a message, {message.seq}, that no relay published. The relay "
                "needs a stream of its own: name one with --stream."
            ) from None


@asynccontextmanager
async def open_jetstream(
    nats_options: NatsOptions, options: StreamOptions, *, report: Report
) -> AsyncIterator[JetStream]:
    """Connect to the stream while a block runs. Raises `RelayError`."""
    opened: list[JetStream] = []

    def forget_acks() -> None:
        for each in opened:
            each.forget_acks("the connection was lost")

    async with nats_connection(nats_options, report=report, on_lost=forget_acks) as client:
        jetstream = JetStream(client, options)
        opened.append(jetstream)
        await jetstream.open()
        yield jetstream


class _MessageId(NamedTuple):
    """What the id of a message says: the number of the change, 0 for an existing book."""

    epoch: int
    number: int


def message_id(change: BookChange, *, epoch: int) -> str:
    """Return the id by which a stream removes doubles, and a relay finds what it published."""
    if change.type == BookChange.EXISTING:
        return f"{epoch}/existing/{change.book.id}/{change.book.etag}"
    return f"{epoch}/change/{change.number}"


def _fail(future: "asyncio.Future[bool]", failure: PublishFailed) -> None:
    future.set_exception(failure)
    future.exception()  # of many that fail together only the first is awaited


def _rejection(message: Msg) -> PublishFailed | None:
    """Return why a message was not stored, or None if it was."""
    if message.headers and message.headers.get(api.Header.STATUS) == _NO_RESPONDERS:
        return PublishFailed("no stream responds")
    error: dict[str, Any] | None = json.loads(message.data).get("error")
    if error is None:
        return None
    kind = StreamMoved if error.get("err_code") in _WRONG_LAST else PublishFailed
    return kind(str(error.get("description", "rejected")))


def _matches(pattern: str, subject: str) -> bool:
    """Return whether a subject matches a pattern with the wildcards `*` and `>`."""
    patterns, tokens = pattern.split("."), subject.split(".")
    for index, each in enumerate(patterns):
        if each == ">":
            return len(tokens) > index
        if index >= len(tokens) or each not in ("*", tokens[index]):
            return False
    return len(patterns) == len(tokens)
