import pytest

from tests.rpc.calls import Stub, create, list_page, refusal


def nested(levels: int) -> str:
    return "(" * levels + "dune" + ")" * levels


def of_length(length: int) -> str:
    return '"' + "é" * (length - 2) + '"'


@pytest.mark.parametrize(
    "filter",
    [
        " ".join(["dune"] * 100),
        " OR ".join(["name:dune"] * 100),
        " AND ".join(f"-id={n}" for n in range(-99, 1)),
        nested(20),
        " ".join([nested(20)] * 30),
        "NOT " + nested(20),
        of_length(2_000),
    ],
    ids=[
        "100 words",
        "100 ORs",
        "100 NOTs",
        "20 levels",
        "20 levels, 30 times",
        "NOT of 20 levels",
        "2,000 code points",
    ],
)
async def test_a_filter_at_its_limits_is_answered(stub: Stub, filter: str) -> None:
    made = await create(stub)
    page = await list_page(stub, filter=filter)
    assert list(page.books) == ([] if "é" in filter or filter.startswith("NOT") else [made])


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("filter", "column"),
    [
        (" ".join(["dune"] * 101), 501),
        (" OR ".join(["a=b"] * 101).replace("a=b", "dune"), 801),
        (" ".join(["(dune)"] * 101), 702),
        (nested(21), 21),
        ("dune " + nested(21), 26),
        (nested(900), 21),
        ("(" * 1_999, 2_000),
        (of_length(2_001), 2_001),
        ("dune " * 2_000, 2_001),
        ("(" * 10_000, 2_001),
        (" " * 10_000, 2_001),
    ],
    ids=[
        "101 words",
        "101 ORs",
        "101 composites",
        "21 levels",
        "21 levels, later",
        "900 levels",
        "1,999 parentheses",
        "2,001 code points",
        "10,000 characters",
        "10,000 parentheses",
        "10,000 blanks",
    ],
)
async def test_a_filter_beyond_its_limits_is_refused(stub: Stub, filter: str, column: int) -> None:
    refused = await refusal(list_page(stub, filter=filter))
    assert refused.reason == "INVALID_FILTER"
    assert refused.metadata["column"] == str(column)


@pytest.mark.databases("sqlite")
async def test_a_word_of_an_error_is_cut_short_in_its_message(stub: Stub) -> None:
    refused = await refusal(list_page(stub, filter=f"{'long' * 400} = x"))
    assert len(refused.message) < 300
