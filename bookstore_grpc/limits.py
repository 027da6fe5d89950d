"""Every size that the service bounds, in one place.

The numbers that callers see are part of the contract; `protos/bookstore/v1/books.proto` states them too.
"""

import re

# Unicode's category Cc, which no text may contain.
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NAME_MAX_CODE_POINTS = 500
AUTHOR_MAX_CODE_POINTS = 1_000
RELEASE_YEAR_MIN = -5_000
RELEASE_YEAR_MAX = 9_999

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
# gRPC clients refuse answers over 4 MiB unless told otherwise; a page of the longest texts ends early instead.
PAGE_MAX_CODE_POINTS = 900_000
BATCH_MAX = 1_000
# Books written in one transaction by group commit: as many as one batch call may create, for other writes wait for it.
WRITE_BATCH_MAX_BOOKS = 1_000
# Of one INSERT, as MariaDB is sent it. Half of the smallest `max_allowed_packet` that is a default anywhere.
INSERT_MAX_BYTES = 512 * 1024
# MariaDB's `max_allowed_packet` has to hold what cannot be split: the ids of a batch, or a filter and a page token.
MARIADB_PACKET_MIN_BYTES = 128 * 1024

# Books that are kept encoded for the pages they are on: about 1 KB each.
ENCODED_BOOKS_MAX = 16_384
# Books on all pages in the page cache, which the next commit empties.
PAGE_CACHE_MAX_BOOKS = 8_192

# What is read of JSON before it is clear that it is refused: 8 MiB of `{},` would hold up all calls for seconds.
JSON_ARRAY_MAX = 10_000
JSON_VIOLATIONS_MAX = 1_000

# Answers that are kept as JSON, of an RPC: most have 16 KB, and a page of a thousand books 200.
JSON_ANSWERS_KEPT_MAX = 32
JSON_ANSWER_KEPT_MAX_BYTES = 256 * 1024

# Searches that wait for those under way. Each takes the place of a call, of which there are 500 by default.
SEARCHES_WAITING_MAX = 100

FILTER_MAX_CODE_POINTS = 2_000
FILTER_MAX_TERMS = 100
FILTER_MAX_LEVELS = 20
PAGE_TOKEN_MAX_CODE_POINTS = 16_384

# A batch of 1,000 books with the longest texts is 6.1 MB on the wire.
MESSAGE_MAX_BYTES = 8 * 1024 * 1024
# Responses that a draining server holds until it has sent GOAWAY.
HELD_RESPONSES_MAX_BYTES = 64 * 1024 * 1024
# What is told of an error travels in headers: percent-encoded, and in base64. nginx with its defaults takes 4 KiB of
# them, with their names and what gRPC and other proxies add; clients take 8.
ERROR_MAX_BYTES = 3 * 1024
# Of it, the message as it is encoded, and before they are encoded the texts of a violation and all of the metadata. The
# longest of each fit in together, so there is always room for the first violation.
ERROR_MESSAGE_MAX_BYTES = 640
ERROR_FIELD_MAX_BYTES = 128
ERROR_DESCRIPTION_MAX_BYTES = 320
ERROR_METADATA_MAX_BYTES = 128
# More violations, or missing books, than fit in.
ERROR_ENTRIES_MAX = 64
REQUEST_ID_MAX_CHARACTERS = 128
# gRPC takes 8 KiB of metadata by default.
TOKEN_MAX_CHARACTERS = 8 * 1024
# Tokens that are remembered as checked, about 2 KB each.
KEPT_TOKENS_MAX = 4_096
# Callers whose rate is known, about 200 bytes each.
RATED_CALLERS_MAX = 65_536

# Of one process: what it asks the system for, and what of that is for anything but connections and the database.
# It has some 40 open by itself.
DESCRIPTORS_MAX = 65_536
DESCRIPTORS_RESERVED = 80
# Of one process. An idle one takes 14 KB.
GRPC_CONNECTIONS_MAX = 10_000
# Of one process. Browsers hold up to six, and an idle one is closed after five seconds.
HTTP_CONNECTIONS_MAX = 500
# Of one process. Who asks for metrics and readiness are few.
PROBE_CONNECTIONS_MAX = 100
# All of a request before its body. The longest page token and filter, in percent-encoding, have 40 KB.
HTTP_HEAD_MAX_BYTES = 64 * 1024
# Browsers and proxies together send some forty. Each takes 300 bytes, however short it is.
HTTP_HEADERS_MAX = 200

# The contract promises 24 hours; what is kept longer costs little and forgives a clock that is off.
CREATE_REQUEST_KEPT_HOURS = 72
