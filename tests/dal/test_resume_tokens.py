"""Resume tokens: their positions are decoded unchanged, and any other token is rejected or harmless."""

import json
import string
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookstore_grpc.dal import checked_token
from bookstore_grpc.dal.books import BookDAL
from bookstore_grpc.dal.change_log import Position
from bookstore_grpc.dal.checked_token import token_from_values
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.resume_tokens import ResumePoint, resume_point_from_token, token_from_resume_point
from bookstore_grpc.errors import InvalidResumeToken, ResumeTokenExpired
from bookstore_grpc.limits import PAGE_TOKEN_MAX_CODE_POINTS
from tests.dal.change_logs import empty_log, log_creates, next_page, watching

_URL_SAFE = set(string.ascii_letters + string.digits + "-_")
_LOG, _OTHER_LOG = "0" * 32, "1" * 32
_LATER = ResumePoint(Position(7, 1_767_225_600_000_001))
_EXISTING = ResumePoint(Position(7, 1_767_225_600_000_001), 12)

_int64s = st.integers(0, 2**63 - 1)
_points = st.builds(ResumePoint, st.builds(Position, _int64s, _int64s), st.one_of(st.none(), _int64s))
_filters = st.text(max_size=20)


@given(point=_points, filter=_filters)
def test_a_token_decodes_to_the_point_that_was_encoded(point: ResumePoint, filter: str) -> None:
    token = token_from_resume_point(point, log_id=_LOG, filter=filter)
    assert set(token) <= _URL_SAFE
    assert resume_point_from_token(token, log_id=_LOG, filter=filter) == point


def _reject(token: str, *, log_id: str = _LOG, filter: str = "") -> None:
    with pytest.raises(InvalidResumeToken, match="damaged, or of another database or filter") as caught:
        resume_point_from_token(token, log_id=log_id, filter=filter)
    assert [violation.field for violation in caught.value.violations] == ["resume_token"]


@pytest.mark.parametrize("point", [_LATER, _EXISTING])
def test_every_damage_is_detected(point: ResumePoint) -> None:
    token = token_from_resume_point(point, log_id=_LOG, filter="")
    for place, character in enumerate(token):
        for other in "A", "_", "=", " ", "é", "\0", "\n", character.swapcase():
            if other != character:
                _reject(token[:place] + other + token[place + 1 :])
        _reject(token[:place] + token[place + 1 :])
        _reject(token[:place] + "A" + token[place:])
    for suffix in ("=", "==", "A", "\n", " ", token, "A" * PAGE_TOKEN_MAX_CODE_POINTS):
        _reject(token + suffix)


@pytest.mark.parametrize("point", [_LATER, _EXISTING])
def test_a_token_of_another_database_is_rejected(point: ResumePoint) -> None:
    _reject(token_from_resume_point(point, log_id=_OTHER_LOG, filter=""))


def test_a_token_is_of_its_filter_only_while_existing_books_are_sent() -> None:
    later = token_from_resume_point(_LATER, log_id=_LOG, filter="name = a")
    assert resume_point_from_token(later, log_id=_LOG, filter="name = b") == _LATER
    existing = token_from_resume_point(_EXISTING, log_id=_LOG, filter="name = a")
    assert resume_point_from_token(existing, log_id=_LOG, filter=" name = a ") == _EXISTING
    _reject(existing, filter="name = b")
    _reject(existing, filter="")


def test_a_page_token_of_a_list_is_rejected() -> None:
    _reject(token_from_values([7], purpose=["", [["id", False]]]))


def _forged(payload: bytes, *, purpose: object) -> str:
    """Return a token with the right digest over any payload, as a caller could who knows the code."""
    return urlsafe_b64encode(checked_token._digest(payload, purpose) + payload).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[",
        b"1",
        b"null",
        b"{}",
        b'"12"',
        b"[" * 5_000,
        b"[" + b"1" * 5_000 + b",1]",
        b"[]",
        b"[1]",
        b"[1,1,1,1]",
        b'["1",1]',
        b"[null,1]",
        b"[true,1]",
        b"[1.0,1]",
        b"[1e3,1]",
        b"[NaN,1]",
        b"[-1,1]",
        b"[1,-1]",
        b"[1,1,-1]",
        b"[9223372036854775808,1]",
        b"[[1],1]",
        b'{"1":1,"2":2}',
    ],
)
@pytest.mark.parametrize("purpose", [_LOG, [_LOG, ""]])
def test_forged_values_are_rejected(payload: bytes, purpose: object) -> None:
    _reject(_forged(payload, purpose=purpose))


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
_numbers = st.one_of(st.integers(-1, 8), st.integers(2**63 - 2, 2**63 + 2), _int64s)


@pytest.fixture
async def trimmed(database: Database) -> BookDAL:
    """A database whose log has the changes 3 to 5."""
    await empty_log(database)
    await log_creates(database, [1, 2, 3, 4, 5])
    books = BookDAL(database)
    await books.changes.trim(before=3)
    return books


@settings(max_examples=60)
@given(payload=st.one_of(_json, st.lists(_numbers, min_size=2, max_size=3)), is_of_existing=st.booleans())
async def test_any_forged_token_is_rejected_or_watches(trimmed: BookDAL, payload: object, is_of_existing: bool) -> None:
    log_id = (await trimmed.changes._reader.head()).log_id
    token = _forged(json.dumps(payload).encode(), purpose=[log_id, ""] if is_of_existing else log_id)
    async with watching(trimmed, resume_token=token) as pages:
        try:
            page = await next_page(pages)
        except (InvalidResumeToken, ResumeTokenExpired):
            return
    assert page.resume_token
