"""The W3C's trace context, read from metadata and from variables: what is not valid is nothing."""

import pytest

from bookstore_grpc.metadata import metadata_from_environment, trace_id_from_traceparent

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
NO_TRACEPARENTS = [
    "",
    "nonsense",
    TRACEPARENT.upper(),
    f"00-{TRACE_ID}-00f067aa0ba902b7",
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID[1:]}-00f067aa0ba902b7-01",
    f"ff-{TRACE_ID}-00f067aa0ba902b7-01",
    f"{TRACEPARENT}-of-the-first-version",
    f"01{TRACEPARENT[2:]}and-no-hyphen",
    f"{TRACEPARENT}\n",
    f" {TRACEPARENT}",
]


@pytest.mark.parametrize(
    "value", [TRACEPARENT, TRACEPARENT[:-2] + "00", "cc" + TRACEPARENT[2:], "01" + TRACEPARENT[2:] + "-of-a-later-one"]
)
def test_a_traceparent_tells_the_id_of_its_trace(value: str) -> None:
    assert trace_id_from_traceparent(value) == TRACE_ID
    assert metadata_from_environment({"TRACEPARENT": value}) == (("traceparent", value),)


@pytest.mark.parametrize("value", NO_TRACEPARENTS)
def test_what_is_no_traceparent_is_no_trace(value: str) -> None:
    assert trace_id_from_traceparent(value) == ""
    assert metadata_from_environment({"TRACEPARENT": value, "TRACESTATE": "a=1"}) == ()


def test_a_tracestate_goes_with_its_traceparent_if_it_can_be_sent() -> None:
    sent = metadata_from_environment({"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=1,other=a b"})
    assert sent == (("traceparent", TRACEPARENT), ("tracestate", "vendor=1,other=a b"))
    for value in ("", "a=é", "a=1\n", "a=" + "1" * 511):
        sent = metadata_from_environment({"TRACEPARENT": TRACEPARENT, "TRACESTATE": value})
        assert sent == (("traceparent", TRACEPARENT),)
    assert metadata_from_environment({}) == ()
