"""What both sides of the wire must agree on and no message defines, and where a client looks by default."""

import re

from bookstore_grpc.limits import REQUEST_ID_MAX_CHARACTERS

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 10.0

ERROR_DOMAIN = "bookstore.v1"
# In the metadata of an ErrorInfo: how many violations or missing books did not fit into the details.
OMITTED_COUNT_KEY = "omitted_count"
AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
# What a caller may name its call; the server makes an id of its own for anything else.
REQUEST_ID_PATTERN = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_MAX_CHARACTERS}}}")
TRACEPARENT_KEY = "traceparent"
TRACESTATE_KEY = "tracestate"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

Metadata = tuple[tuple[str, str], ...]
