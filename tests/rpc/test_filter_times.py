import pytest

from tests.rpc.calls import Stub, books_of, create, update
from tests.rpc.conftest import HandClock

# 2023-11-14T22:13:20.123456Z
MADE = 1_700_000_000_123_456


@pytest.fixture
async def changed_later(clocked_stub: Stub, clock: HandClock) -> Stub:
    """A server with one book, made at MADE and changed a second later."""
    clock.now = MADE
    made = await create(clocked_stub)
    clock.now = MADE + 1_000_000
    await update(clocked_stub, made.id, name="Dune Messiah")
    return clocked_stub


@pytest.mark.parametrize(
    ("filter", "is_found"),
    [
        ('create_time = "2023-11-14T22:13:20.123456Z"', True),
        ("create_time = '2023-11-14T22:13:20.123456Z'", True),
        ("create_time = 2023-11-14T22:13:20.123456Z", True),
        ('create_time = "2023-11-14t22:13:20.123456z"', True),
        ('create_time = "2023-11-15T00:13:20.123456+02:00"', True),
        ('create_time = "2023-11-14T16:43:20.123456-05:30"', True),
        ('create_time = "2023-11-14T22:13:20.123456000Z"', True),
        ('create_time = "2023-11-14T22:13:20.123456001Z"', False),
        ('create_time != "2023-11-14T22:13:20.123456001Z"', True),
        ('create_time != "2023-11-14T22:13:20.123456Z"', False),
        ('create_time = "2023-11-14T22:13:20Z"', False),
        ('create_time > "2023-11-14T22:13:20Z"', True),
        ('create_time > "2023-11-14T22:13:20.123456Z"', False),
        ('create_time >= "2023-11-14T22:13:20.123456Z"', True),
        ('create_time >= "2023-11-14T22:13:20.123456001Z"', False),
        ('create_time > "2023-11-14T22:13:20.123455999Z"', True),
        ('create_time < "2023-11-14T22:13:20.123456001Z"', True),
        ('create_time < "2023-11-14T22:13:20.123456Z"', False),
        ('create_time <= "2023-11-14T22:13:20.123456Z"', True),
        ('create_time <= "2023-11-14T22:13:20.123455999Z"', False),
        ('create_time < "9999-12-31T23:59:59.999999999-23:59"', True),
        ('create_time > "0001-01-01T00:00:00+23:59"', True),
        ('update_time = "2023-11-14T22:13:21.123456Z"', True),
        ('update_time = "2023-11-14T22:13:20.123456Z"', False),
        ('create_time < "2023-11-14T22:13:21Z" AND update_time > "2023-11-14T22:13:21Z"', True),
        ('NOT update_time > "2023-11-14T22:13:21Z"', False),
    ],
)
async def test_times_compare_as_instants(changed_later: Stub, filter: str, is_found: bool) -> None:
    assert len(await books_of(changed_later, filter=filter)) == is_found


async def test_a_books_own_times_find_it(stub: Stub) -> None:
    made = await create(stub)
    for field in ("create_time", "update_time"):
        moment = getattr(made, field).ToJsonString()
        assert await books_of(stub, filter=f'{field} = "{moment}"') == [made]
