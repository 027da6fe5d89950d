import grpc
import pytest
from bookstore.v1 import books_pb2

from tests.rpc.calls import REQUEST_ID_KEY, Stub, rejection_from_error
from tests.rpc.health import check

# Metadata is the same on each database.
pytestmark = pytest.mark.databases("sqlite")


async def returned_ids(stub: Stub, metadata: list[tuple[str, str | bytes]]) -> tuple[list[str | bytes], str]:
    """Return the request ids in the trailing metadata of a good call, and in a failing one's details."""
    sent = tuple(metadata)
    good = stub.ListBooks(books_pb2.ListBooksRequest(), metadata=sent)
    await good
    trailing = [value for key, value in await good.trailing_metadata() if key == REQUEST_ID_KEY]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBook(books_pb2.GetBookRequest(id=2**63 - 1), metadata=sent)
    return trailing, str(rejection_from_error(caught.value).trailing[REQUEST_ID_KEY])


@pytest.mark.parametrize("request_id", ["a", "Ab-9._", "." * 128, "6f1e4c2a-58b1-4d0b-9c57-0e1f2a3b4c5d"])
async def test_a_valid_request_id_is_used_and_returned(stub: Stub, request_id: str) -> None:
    trailing, expected = await returned_ids(stub, [(REQUEST_ID_KEY, request_id)])
    assert trailing == [request_id]
    assert expected == request_id


@pytest.mark.parametrize(
    "request_id",
    ["", "a b", "x" * 129, 'a"b', "a/b", "{}", "$(reboot)", "<b>", "a,b", "%0a"],
    ids=repr,
)
async def test_one_that_is_not_sane_is_replaced(stub: Stub, request_id: str) -> None:
    trailing, expected = await returned_ids(stub, [(REQUEST_ID_KEY, request_id)])
    (made,) = trailing
    assert isinstance(made, str)
    for each in (made, expected):
        assert each != request_id
        assert 16 <= len(each) <= 128
        assert each.isalnum()
    assert made != expected


async def test_each_call_without_one_gets_its_own(stub: Stub) -> None:
    first, _ = await returned_ids(stub, [])
    second, _ = await returned_ids(stub, [])
    assert first != second


async def test_other_metadata_is_ignored(stub: Stub) -> None:
    trailing, expected = await returned_ids(
        stub, [("authorization", "Bearer nothing"), (REQUEST_ID_KEY, "mine"), ("x-other", "x" * 1_000)]
    )
    assert trailing == ["mine"]
    assert expected == "mine"


async def test_of_several_the_first_sane_one_counts(stub: Stub) -> None:
    ids: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, each) for each in ("not sane", "first", "second")]
    trailing, expected = await returned_ids(stub, ids)
    assert trailing == [expected] == ["first"]


async def test_health_returns_the_request_id_too(channel: grpc.aio.Channel) -> None:
    for service in ("", "unknown"):
        call = check(channel, service, metadata=((REQUEST_ID_KEY, "mine"),))
        await call.code()
        assert dict(await call.trailing_metadata())[REQUEST_ID_KEY] == "mine"


async def test_calls_at_the_same_time_keep_their_own_ids(stub: Stub) -> None:
    calls = [
        stub.ListBooks(books_pb2.ListBooksRequest(), metadata=((REQUEST_ID_KEY, f"call-{number}"),))
        for number in range(50)
    ]
    for number, call in enumerate(calls):
        await call
        assert dict(await call.trailing_metadata())[REQUEST_ID_KEY] == f"call-{number}"
