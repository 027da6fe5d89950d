"""The condition under which a stream stores a message."""

import asyncio

import pytest

from bookstore_grpc.relay.events import event_from_change
from bookstore_grpc.relay.jetstream import JetStream, StreamMoved, StreamOptions, message_id, open_jetstream
from bookstore_grpc.relay.nats_connection import NatsOptions
from tests.client.watched_service import a_change
from tests.relay.conftest import Stream


async def publish(jetstream: JetStream, number: int, *, sequence: int, after_id: str = "") -> "asyncio.Future[bool]":
    change = a_change(number)
    event = event_from_change(change, source="/", event_format="json")
    return await jetstream.publish(event, message_id(change, epoch=0), after_sequence=sequence, after_id=after_id)


async def test_a_position_is_not_moved_back_by_a_relay_that_is_behind(nats_url: str, stream: Stream) -> None:
    options = StreamOptions(stream.name, stream.prefix, max_age_seconds=60, replicas=1)
    async with open_jetstream(NatsOptions(nats_url), options, report=pytest.fail) as jetstream:
        begun = await jetstream.begin(is_reset=False)
        among_existing = begun._replace(sequence=9, number=5, resume_token="a")
        among_changes = begun._replace(sequence=8, number=6, resume_token="b", existing_sent=True)
        stored = []
        # A checkpoint has a token of its own, and the number of the last change.
        for each in (
            among_existing,
            begun,
            among_changes,
            among_existing,
            among_changes._replace(resume_token="c"),
            among_changes._replace(number=5),
        ):
            await jetstream.save(each)
            stored.append((await jetstream.begin(is_reset=False)).resume_token)

    assert stored == ["a", "a", "b", "b", "c", "c"]


async def test_a_message_is_not_stored_after_one_of_another_relay_in_the_place_of_its_predecessor(
    nats_url: str, stream: Stream
) -> None:
    options = StreamOptions(stream.name, stream.prefix, max_age_seconds=60, replicas=1)
    async with open_jetstream(NatsOptions(nats_url), options, report=pytest.fail) as jetstream:
        assert await (await publish(jetstream, 1, sequence=0))
        assert await (await publish(jetstream, 9, sequence=1))  # of another relay
        first = await publish(jetstream, 2, sequence=1, after_id="0/change/1")
        second = await publish(jetstream, 3, sequence=2, after_id="0/change/2")
        for each in (first, second):
            with pytest.raises(StreamMoved):
                await each

    assert await stream.numbers() == [1, 9]
