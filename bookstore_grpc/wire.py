"""What both sides of the wire must agree on and no message defines, and where a client looks by default."""

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 10.0

ERROR_DOMAIN = "bookstore.v1"
# In the metadata of an ErrorInfo: how many violations or missing books did not fit into the details.
OMITTED_COUNT_KEY = "omitted_count"
AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
TRACEPARENT_KEY = "traceparent"
TRACESTATE_KEY = "tracestate"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

Metadata = tuple[tuple[str, str], ...]
