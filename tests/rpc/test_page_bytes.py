import grpc
import pytest
from bookstore.v1 import books_pb2

from bookstore_grpc.rpc.server import Server
from tests.rpc.calls import Stub, book, create_all, walk

# What a gRPC client accepts by default.
CLIENT_MAX_BYTES = 4 * 1024 * 1024
LONGEST = book("\U0010ffff" * 500, "😀" * 1_000, -5_000)


@pytest.fixture
async def longest(stub: Stub, server: Server) -> list[books_pb2.Book]:
    """A catalogue of 1,000 books that are as long as books can be, stored by one batch."""
    options = [("grpc.max_receive_message_length", 8 * 1024 * 1024)]
    async with grpc.aio.insecure_channel(server.addresses[0], options=options) as channel:
        return await create_all(Stub(channel), [LONGEST] * 1_000)


@pytest.mark.parametrize("order_by", ["", "author,name desc"])
async def test_pages_of_the_longest_texts_stay_under_what_clients_take(
    stub: Stub, longest: list[books_pb2.Book], order_by: str
) -> None:
    pages = await walk(stub, page_size=1_000, order_by=order_by)
    sizes = [books_pb2.ListBooksResponse(books=page).ByteSize() for page in pages]
    assert max(sizes) < CLIENT_MAX_BYTES - 65_536  # the token comes on top
    assert [each for page in pages for each in page] == longest
    # Nor are pages shorter than that requires.
    assert len(pages) == 2


async def test_a_page_of_short_texts_is_not_cut(stub: Stub) -> None:
    books = await create_all(stub, [book("x" * 200, "y" * 300)] * 1_000)
    assert await walk(stub, page_size=1_000) == [books]
