"""`bookstore relay`: each change is stored once and in order, whatever is restarted or killed."""

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import nats
import pytest
from bookstore.v1 import books_pb2
from nats.js import api

from bookstore_grpc.errors import InvalidResumeToken, ResumeTokenExpired, ServerDraining
from bookstore_grpc.relay.positions import BUCKET
from tests.cli.conftest import run_verb
from tests.client.watched_service import (
    DELETED,
    EXISTING,
    UPDATED,
    WatchedService,
    a_book,
    a_change,
    serving_watches,
)
from tests.executable import PATIENCE_SECONDS
from tests.relay.conftest import NatsServer, Relay, Stream


async def send(service: WatchedService, *numbers: int) -> None:
    """Send changes, two in a response."""
    for index in range(0, len(numbers), 2):
        await service.send(*(a_change(number) for number in numbers[index : index + 2]))


def existing(book_id: int) -> books_pb2.BookChange:
    return books_pb2.BookChange(type=EXISTING, book=a_book(book_id))


async def test_changes_are_stored_as_cloudevents_under_a_subject_for_each_type(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await service.send(existing(1), existing_sent=True)
    await service.send(a_change(1), a_change(2, UPDATED), a_change(3, DELETED))
    relay("--start", "existing", "--source", "/shop")
    await stream.until_stored(4)

    messages = await stream.messages()
    events = [json.loads(message.data or b"") for message in messages]
    assert [(message.subject or "").rpartition(".")[2] for message in messages] == [
        "existing",
        "created",
        "updated",
        "deleted",
    ]
    assert [event["id"] for event in events] == ["existing/1/", "1", "2", "3"]
    assert {event["source"] for event in events} == {"/shop"}
    assert messages[1].headers is not None
    assert messages[1].headers["Content-Type"] == "application/cloudevents+json"
    assert messages[1].headers["Nats-Msg-Id"] == "0/change/1"


async def test_the_format_protobuf_stores_serialized_changes(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await send(service, 1)
    relay("--start", "earliest", "--format", "protobuf")
    await stream.until_stored(1)

    (message,) = await stream.messages()
    assert books_pb2.BookChange.FromString(message.data or b"") == a_change(1)
    assert (message.headers or {})["ce-type"] == "bookstore.v1.book.created"


async def test_a_stream_that_is_created_keeps_messages_for_the_given_time(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    running = relay("--max-age-hours", "2")
    await running.until_logged("starting with new ones")

    config = (await stream.js.stream_info(stream.name)).config
    assert (config.subjects, config.max_age, config.num_replicas) == ([f"{stream.prefix}.*"], 7_200, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopped_relay_ends_with_status_0_and_the_next_run_continues(
    service: WatchedService, relay: Relay, stream: Stream, number: signal.Signals
) -> None:
    await send(service, 1, 2, 3)
    stopped = relay("--start", "earliest")
    await stream.until_stored(3)
    stopped.process.send_signal(number)
    assert await stopped.status() == 0
    assert stopped.log.endswith("Stopped. 3 changes published, the last has the number 3.\n")

    await send(service, 4, 5)
    continued = relay("--start", "earliest")
    await stream.until_stored(5)

    assert await stream.numbers() == [1, 2, 3, 4, 5]
    assert "after the change 3" in continued.log
    assert service.requests[-1].resume_token == "t2"


async def test_a_relay_that_is_killed_before_it_stored_its_position_stores_nothing_twice(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    """Even if the stream has forgotten the ids of its messages."""
    await stream.create(duplicate_window=0.1)
    await send(service, *range(1, 41))
    killed = relay("--start", "earliest")
    await stream.until_stored(40)
    killed.kill()
    position = await stream.position()
    await asyncio.sleep(0.2)  # the window of the stream

    await send(service, 41, 42)
    relay("--start", "earliest")
    await stream.until_stored(42)

    assert position["number"] < 40
    assert await stream.numbers() == list(range(1, 43))


async def test_a_relay_that_is_killed_among_existing_books_stores_each_state_once(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await stream.create(duplicate_window=0.1)
    await service.send(existing(1), existing(2), existing_sent=False)
    killed = relay("--start", "existing")
    await stream.until_stored(2)
    killed.kill()
    await asyncio.sleep(0.2)  # the window of the stream

    # The service reads the books again, one of which has changed.
    changed = existing(2)
    changed.book.etag = "changed"
    service.forget()
    await service.send(existing(1), changed, existing(3), existing_sent=True)
    await send(service, 7)
    relay("--start", "existing")
    await stream.until_stored(5)

    assert await stream.numbers() == [1, 2, 2, 3, 7]


async def test_two_relays_store_each_change_once(service: WatchedService, relay: Relay, stream: Stream) -> None:
    first, second = relay("--start", "earliest"), relay("--start", "earliest")
    await service.until(lambda: service.watching == 2)
    for start in range(1, 400, 2):
        await send(service, start, start + 1)
    await stream.until_stored(400)
    for each in (first, second):
        each.process.send_signal(signal.SIGTERM)
    assert [await first.status(), await second.status()] == [0, 0]

    assert await stream.numbers() == list(range(1, 401))
    assert "could not be published" not in first.log + second.log
    counts = [int(found[1]) for each in (first, second) if (found := re.search(r"(\d+) changes published", each.log))]
    assert sum(counts) == 400


async def test_a_relay_that_was_suspended_publishes_no_older_state_of_an_existing_book(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await service.send(existing(1), existing_sent=False)
    suspended = relay("--start", "existing")
    await stream.until_position(lambda position: position["resumeToken"] == "t1")
    suspended.process.send_signal(signal.SIGSTOP)
    await service.send(existing(7))
    await asyncio.sleep(0.1)  # the response is on its way
    # What the service reads for another relay has the next state of the book, which is then deleted.
    service.forget()
    await service.send()
    changed = existing(7)
    changed.book.etag = "changed"
    await service.send(changed)
    await service.send(a_change(100, DELETED, book=a_book(7)), a_change(101))
    other = relay("--start", "existing")
    await stream.until_position(lambda position: position["number"] == 101)
    other.kill()
    suspended.process.send_signal(signal.SIGCONT)
    await service.send(a_change(102))
    await stream.until_position(lambda position: position["number"] == 102)

    assert await stream.numbers() == [1, 7, 100, 101, 102]


async def test_checkpoints_move_the_position_on(service: WatchedService, relay: Relay, stream: Stream) -> None:
    await send(service, 1)
    relay("--start", "earliest")
    await stream.until_stored(1)
    await service.send()
    last = await service.send()

    await stream.until_position(lambda position: position["resumeToken"] == last)
    assert (await stream.position())["number"] == 1


async def test_a_position_that_cannot_be_stored_is_reported_once(
    service: WatchedService, start_relay: Relay, own_nats: NatsServer
) -> None:
    client = await nats.connect(own_nats.url)
    stream = Stream(client, "BOOKS")
    running = start_relay(own_nats.url, stream, "--start", "earliest")
    await send(service, 1)
    await stream.until_position(lambda position: position["number"] == 1)
    await stream.js.delete_key_value(BUCKET)
    await send(service, 2)
    await running.until_logged("The position could not be stored: ")
    await stream.until_stored(2)  # publishing goes on
    await stream.js.create_key_value(bucket=BUCKET)
    await running.until_logged("The position is stored again.")
    await client.close()

    assert running.log.count("could not be stored") == 1


async def test_a_stored_position_of_an_unknown_form_ends_the_relay(
    service: WatchedService, start_relay: Relay, own_nats: NatsServer
) -> None:
    client = await nats.connect(own_nats.url)
    stream = Stream(client, "BOOKS")
    running = start_relay(own_nats.url, stream, "--start", "earliest")
    await send(service, 1)
    await stream.until_position(lambda position: position["number"] == 1)
    await (await stream.js.key_value(BUCKET)).put(f"{stream.name}.{stream.prefix}", b"{}")
    await send(service, 2)

    assert await running.status() == 1
    assert "Error: BOOKS.test.BOOKS in the bucket BOOKSTORE_RELAY is not a position of a relay." in running.log
    assert await stream.numbers() == [1, 2]
    await client.close()


async def test_a_service_that_restarts_is_waited_for(service: WatchedService, relay: Relay, stream: Stream) -> None:
    async with serving_watches(service) as address:
        running = relay("--start", "earliest", server=address)
        await send(service, 1)
        await stream.until_stored(1)
        await service.cut_off(ServerDraining())
    await running.until_logged("The service is not responding; reconnecting.")
    await send(service, 2)
    async with serving_watches(service, address):
        await stream.until_stored(2)

    assert await stream.numbers() == [1, 2]


async def test_after_a_rejected_message_nothing_is_stored_until_it_is(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await stream.create(max_msgs=3, discard=api.DiscardPolicy.NEW)
    await send(service, *range(1, 11))
    running = relay("--start", "earliest")
    await running.until_logged("maximum messages exceeded. Trying again.")
    stored = await stream.numbers()
    await stream.js.update_stream(name=stream.name, subjects=[f"{stream.prefix}.*"], max_msgs=-1)
    await stream.until_stored(10)

    assert stored == [1, 2, 3]
    assert await stream.numbers() == list(range(1, 11))


async def test_existing_books_that_were_rejected_are_read_again(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await stream.create(max_msgs=1, discard=api.DiscardPolicy.NEW)
    await service.send(existing(1), existing_sent=False)
    await service.send(existing(2))
    running = relay("--start", "existing")
    await running.until_logged("maximum messages exceeded. Trying again.")
    await service.until(lambda: service.watching == 0)
    service.forget()
    await service.send(existing(1), existing_sent=False)
    await service.send(existing(3))  # the other has been deleted
    await stream.js.update_stream(name=stream.name, subjects=[f"{stream.prefix}.*"], max_msgs=-1)
    await stream.until_stored(2)

    assert await stream.numbers() == [1, 3]


async def test_a_relay_without_room_for_more_goes_on_when_there_is_some(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    await service.send(*(a_change(number) for number in range(1, 3_001)))
    running = relay("--start", "earliest")
    await stream.until_stored(3_000)
    running.process.send_signal(signal.SIGTERM)

    assert await running.status() == 0
    assert "Stopped. 3,000 changes published" in running.log
    assert (await stream.js.get_last_msg(stream.name, f"{stream.prefix}.created")).headers == {
        "Content-Type": "application/cloudevents+json",
        "Nats-Msg-Id": "0/change/3000",
        "Nats-Expected-Stream": stream.name,
        "Nats-Expected-Last-Sequence": "2999",
        "Nats-Expected-Last-Msg-Id": "0/change/2999",
    }


async def test_nats_may_be_killed_in_the_middle(
    service: WatchedService, start_relay: Relay, own_nats: NatsServer
) -> None:
    client = await nats.connect(own_nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=ignore)
    stream = Stream(client, "BOOKS")
    running = start_relay(own_nats.url, stream, "--start", "earliest")
    for round_start in (1, 101, 201):
        await send(service, *range(round_start, round_start + 50))
        await running.until_logged("Publishing the changes")
        own_nats.kill()
        await send(service, *range(round_start + 50, round_start + 100))
        await asyncio.to_thread(own_nats.start)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not client.is_connected:  # noqa: ASYNC110  the client has no event for it
            await asyncio.sleep(0.05)
    await stream.until_stored(300)
    running.process.send_signal(signal.SIGTERM)

    assert await running.status() == 0
    assert await stream.numbers() == list(range(1, 301))
    await client.close()


async def ignore(error: Exception) -> None:
    """A lost connection is what the test is about."""


@pytest.mark.parametrize("failure", [ResumeTokenExpired(), InvalidResumeToken("is of another database")])
async def test_a_position_that_cannot_be_continued_is_reported_and_reset_starts_over(
    service: WatchedService, relay: Relay, stream: Stream, failure: Exception
) -> None:
    await send(service, 1, 2)
    first = relay("--start", "earliest")
    await stream.until_stored(2)
    first.process.send_signal(signal.SIGTERM)
    await first.status()
    service.failures = [failure]  # type: ignore[list-item]
    ended = relay("--start", "earliest")

    assert await ended.status() == 1
    assert "--reset --start existing" in ended.log
    assert await stream.numbers() == [1, 2]

    # Of another database, perhaps, whose changes have the same numbers.
    again = relay("--start", "earliest", "--reset")
    await stream.until_stored(4)
    again.process.send_signal(signal.SIGTERM)
    assert await again.status() == 0
    assert Counter(await stream.numbers()) == {1: 2, 2: 2}


async def test_an_existing_stream_has_to_store_the_subjects(relay: Relay, stream: Stream) -> None:
    await stream.create(subjects=[f"{stream.prefix}.created"])
    rejected = relay()

    assert await rejected.status() == 1
    assert f"does not store {stream.prefix}.updated, {stream.prefix}.deleted, {stream.prefix}.existing" in rejected.log


async def test_an_existing_stream_may_not_store_what_others_publish(relay: Relay, stream: Stream) -> None:
    await stream.create(subjects=[f"{stream.prefix}.>", f"orders.{stream.name}.*"])
    rejected = relay()

    assert await rejected.status() == 1
    assert f"stores orders.{stream.name}.* too" in rejected.log


async def test_subjects_of_another_stream_are_reported_with_its_name(relay: Relay, stream: Stream) -> None:
    await stream.js.add_stream(name=f"OTHER_{stream.name}", subjects=[f"{stream.prefix}.>"])
    rejected = relay()

    assert await rejected.status() == 1
    assert f"are those of the stream OTHER_{stream.name}" in rejected.log


async def test_messages_of_others_are_reported(relay: Relay, stream: Stream) -> None:
    await stream.create()
    await stream.js.publish(f"{stream.prefix}.created", b"mine")
    rejected = relay()

    assert await rejected.status() == 1
    assert "has a message, 1, that no relay published" in rejected.log


async def test_without_nats_the_cause_is_reported_without_the_password(address: str) -> None:
    url = "nats://relay:hidden@127.0.0.1:1"
    by_flag = await asyncio.to_thread(run_verb, "relay", "--to", url, "--server", address)
    by_variable = await asyncio.to_thread(
        run_verb, "relay", "--server", address, variables={"BOOKSTORE_NATS_URL": f"{url},127.0.0.1:2"}
    )

    assert (by_flag.status, by_variable.status) == (1, 1)
    assert "Warning: `ps` shows the credentials in --to" in by_flag.errors
    assert "Warning" not in by_variable.errors
    assert "Error: Could not connect to NATS at 127.0.0.1:1,127.0.0.1:2: " in by_variable.errors
    assert "hidden" not in by_flag.errors + by_variable.errors


async def test_a_token_is_read_from_a_file(service: WatchedService, start_relay: Relay, tmp_path: Path) -> None:
    folder = tmp_path / "secured"
    folder.mkdir()
    secured = NatsServer(folder, "--auth", "s3cret")
    try:
        (tmp_path / "token").write_text("s3cret\n")
        client = await nats.connect(secured.url, token="s3cret")
        stream = Stream(client, "BOOKS")
        await send(service, 1)
        start_relay(secured.url, stream, "--start", "earliest", "--nats-token-file", str(tmp_path / "token"))
        await stream.until_stored(1)
        rejected = start_relay(secured.url, stream)
        assert await rejected.status() == 1
        await client.close()
    finally:
        secured.kill()

    assert "Authorization Violation" in rejected.log


async def test_the_documented_rights_are_enough_and_a_password_may_be_in_the_variable(
    service: WatchedService, start_relay: Relay, tmp_path: Path
) -> None:
    folder = tmp_path / "secured"
    folder.mkdir()
    (folder / "config").write_text(
        """authorization: {users: [
            {user: admin, password: a},
            {user: relay, password: hidden, permissions: {
                publish: ["test.BOOKS.*", "$JS.API.>", "$KV.BOOKSTORE_RELAY.>"], subscribe: "_INBOX.>"
            }},
        ]}"""
    )
    secured = NatsServer(folder, "-c", str(folder / "config"))
    try:
        client = await nats.connect(secured.url, user="admin", password="a")
        stream = Stream(client, "BOOKS")
        await send(service, 1, 2)
        url = secured.url.replace("//", "//relay:hidden@")
        running = start_relay("", stream, "--start", "earliest", BOOKSTORE_NATS_URL=url)
        await stream.until_stored(2)
        running.process.send_signal(signal.SIGTERM)
        assert await running.status() == 0
        position = await stream.position()
        await client.close()
    finally:
        secured.kill()

    assert position["number"] == 2
    assert "hidden" not in running.log
    assert "NATS:" not in running.log  # as of a missing right


async def test_a_nats_without_jetstream_is_reported(start_relay: Relay, stream: Stream, tmp_path: Path) -> None:
    plain = NatsServer(tmp_path, has_jetstream=False)
    try:
        rejected = start_relay(plain.url, stream)
        assert await rejected.status() == 1
    finally:
        plain.kill()

    assert ": it is not enabled.\n" in rejected.log


@pytest.mark.thorough
async def test_a_relay_that_is_stopped_while_nats_is_away_ends_with_an_error(
    service: WatchedService, start_relay: Relay, own_nats: NatsServer
) -> None:
    client = await nats.connect(own_nats.url, error_cb=ignore)
    stream = Stream(client, "BOOKS")
    running = start_relay(own_nats.url, stream, "--start", "earliest")
    await send(service, 1)
    await stream.until_stored(1)
    own_nats.kill()
    await running.until_logged("is lost; reconnecting.")
    await send(service, 2)
    await running.until_logged("A change could not be published: ")
    running.process.send_signal(signal.SIGTERM)

    assert await running.status() == 1
    # Whether the acknowledgement of the first arrived is unknown.
    assert re.search("Error: [12] changes are not acknowledged in time; the next run publishes them.", running.log)
    await client.close()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats", None)
    finished = run_verb("relay", "--to", "nats://127.0.0.1:1")

    assert finished.status == 1
    assert "pip install 'bookstore-grpc[nats]'" in finished.errors


@pytest.mark.parametrize(
    "arguments",
    [(), ("--to", "nats://h", "--stream", "a.b"), ("--to", "nats://h", "--subject-prefix", "a..b"), ("--to", "")],
    ids=["no --to", "stream", "prefix", "empty --to"],
)
def test_wrong_use_is_status_2(arguments: tuple[str, ...]) -> None:
    assert run_verb("relay", *arguments).status == 2


async def test_a_service_that_starts_after_the_relay_is_waited_for(
    service: WatchedService, relay: Relay, stream: Stream
) -> None:
    async with serving_watches(service) as address:
        pass
    running = relay("--start", "earliest", server=address)
    await running.until_logged("Publishing the changes")
    await send(service, 1)
    async with serving_watches(service, address):
        await stream.until_stored(1)


async def test_a_service_that_does_not_start_is_reported_after_the_timeout(relay: Relay) -> None:
    ended = relay("--timeout-seconds", "0.5", server="127.0.0.1:1")

    assert await ended.status() == 1
    assert "Error: Could not connect to 127.0.0.1:1: " in ended.log


async def test_a_relay_with_nothing_to_publish_can_be_stopped_while_nats_is_away(
    service: WatchedService, start_relay: Relay, own_nats: NatsServer, nats_url: str
) -> None:
    client = await nats.connect(nats_url)
    running = start_relay(own_nats.url, Stream(client, "BOOKS"))
    await service.until(lambda: service.watching == 1)
    own_nats.kill()
    await running.until_logged("is lost; reconnecting.")
    running.process.send_signal(signal.SIGTERM)

    assert await running.status() == 0
    await client.close()
