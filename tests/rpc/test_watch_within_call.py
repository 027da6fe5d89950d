"""A watch that resumes within the changes of one call."""

from typing import cast

from bookstore.v1 import books_pb2, books_pb2_grpc

from bookstore_grpc.limits import AUTHOR_MAX_CODE_POINTS, BATCH_MAX


async def within_a_call(stub: "books_pb2_grpc.BookServiceAsyncStub") -> books_pb2.WatchBooksResponse:
    """Create books in a call that is too large for one response, and return the first part of it."""
    author = "a" * AUTHOR_MAX_CODE_POINTS
    requests = [
        books_pb2.CreateBookRequest(book=books_pb2.Book(name=str(number), author=author, release_year=number))
        for number in range(BATCH_MAX)
    ]
    start = await first_response(stub, books_pb2.WatchBooksRequest())
    await stub.BatchCreateBooks(books_pb2.BatchCreateBooksRequest(requests=requests))
    call = stub.WatchBooks(books_pb2.WatchBooksRequest(resume_token=start.resume_token))
    async for part in call:
        if part.changes:
            break
    call.cancel()
    assert part.continues
    assert len(part.changes) < BATCH_MAX
    return part


async def first_response(
    stub: "books_pb2_grpc.BookServiceAsyncStub", request: books_pb2.WatchBooksRequest
) -> books_pb2.WatchBooksResponse:
    call = stub.WatchBooks(request)
    response = cast(books_pb2.WatchBooksResponse, await call.read())
    call.cancel()
    return response


async def test_the_first_response_has_what_is_left_of_the_call(stub: "books_pb2_grpc.BookServiceAsyncStub") -> None:
    part = await within_a_call(stub)
    rest = await first_response(stub, books_pb2.WatchBooksRequest(resume_token=part.resume_token))
    # A checkpoint would say that the call was complete.
    assert len(part.changes) + len(rest.changes) == BATCH_MAX
    assert rest.changes[0].number == part.changes[-1].number + 1
    assert not rest.continues


async def test_another_filter_that_nothing_matches_gets_a_checkpoint_after_the_call(
    stub: "books_pb2_grpc.BookServiceAsyncStub",
) -> None:
    part = await within_a_call(stub)
    request = books_pb2.WatchBooksRequest(resume_token=part.resume_token, filter="release_year < 0")
    checkpoint = await first_response(stub, request)
    assert not checkpoint.changes
    assert not checkpoint.continues
    page = await stub.ListBookChanges(books_pb2.ListBookChangesRequest(page_token=checkpoint.resume_token))
    assert not page.changes
