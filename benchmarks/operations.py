"""The measured operations, in order: reads before writes."""

from typing import NamedTuple

BATCH_CREATE = 500
BATCH_GET = 100


class Operation(NamedTuple):
    """An operation: its key on the command line, its title in the report, and for lists the page's size and position.

    `in_flight` is the number of concurrent calls on a single connection, instead of `load.IN_FLIGHT` on several.
    """

    key: str
    title: str
    page_size: int = 0
    is_late: bool = False
    is_filtered: bool = False
    is_any: bool = False  # each call requests another page, so that none is served from the page cache
    books_per_call: int = 0  # how many a call creates
    in_flight: int = 0


GET = Operation("get", "GetBook")
LIST_50 = Operation("list-50", "ListBooks, 50, first page", 50)
LIST_50_LATE = Operation("list-50-late", "ListBooks, 50, late page", 50, is_late=True)
LIST_50_ANY = Operation("list-50-any", "ListBooks, 50, any page", 50, is_any=True)
LIST_1000 = Operation("list-1000", "ListBooks, 1,000, first page", 1_000)
LIST_1000_LATE = Operation("list-1000-late", "ListBooks, 1,000, late page", 1_000, is_late=True)
LIST_1000_ANY = Operation("list-1000-any", "ListBooks, 1,000, any page", 1_000, is_any=True)
LIST_AUTHOR = Operation("list-author", "ListBooks, one author's 20", 50, is_filtered=True)
LIST_AUTHOR_ANY = Operation("list-author-any", "ListBooks, any author's 20", 50, is_filtered=True, is_any=True)
BATCH_GET_100 = Operation("batch-get", f"BatchGetBooks, {BATCH_GET}")
UPDATE = Operation("update", "UpdateBook")
UPDATE_ONE_CONNECTION = Operation("update-one", "UpdateBook, 256 in flight on one connection", in_flight=256)
CREATE = Operation("create", "CreateBook", books_per_call=1)
BATCH_CREATE_500 = Operation("batch-create", f"BatchCreateBooks, {BATCH_CREATE}", books_per_call=BATCH_CREATE)
BATCH_CREATE_IN_FLIGHT = BATCH_CREATE_500._replace(
    key="batch-create-8", title=f"BatchCreateBooks, {BATCH_CREATE}, 8 in flight on one connection", in_flight=8
)

OPERATIONS = (
    GET,
    LIST_50,
    LIST_50_LATE,
    LIST_50_ANY,
    LIST_1000,
    LIST_1000_LATE,
    LIST_1000_ANY,
    LIST_AUTHOR,
    LIST_AUTHOR_ANY,
    BATCH_GET_100,
    UPDATE,
    UPDATE_ONE_CONNECTION,
    CREATE,
    BATCH_CREATE_500,
    BATCH_CREATE_IN_FLIGHT,
)

# Pages on a server are not cached, so that any page of a size costs about what the first one does.
SERVER_OPERATIONS = (GET, LIST_50, LIST_1000, LIST_AUTHOR, BATCH_GET_100, UPDATE, CREATE, BATCH_CREATE_500)
# Of a catalogue with more pages and filters than any cache holds.
WALK_OPERATIONS = (LIST_50_ANY, LIST_1000_ANY, LIST_AUTHOR_ANY)
BASIC_OPERATIONS = (GET, LIST_50, UPDATE, CREATE)
