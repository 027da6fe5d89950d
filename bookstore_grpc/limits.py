"""Every size limit of the service.

Limits that callers see are part of the contract: `protos/bookstore/v1/books.proto` states them too.
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
# gRPC clients reject responses over 4 MiB by default. A page of the longest texts has fewer books instead.
PAGE_MAX_CODE_POINTS = 900_000
# Counting the books that match a filter stops here: on a million books it takes as long as reading that many.
TOTAL_MAX = 10_000
BATCH_MAX = 1_000
# The changes that one read of the log returns: those of the largest batch call, and the one at the position.
CHANGES_READ_MAX = BATCH_MAX + 1
# The changes of a response of WatchBooks.
RESPONSE_CHANGES_MAX = 1_000
# How long a watch without changes may be silent, if its caller says.
CHECKPOINT_SECONDS_MIN = 1
CHECKPOINT_SECONDS_DEFAULT = 10
CHECKPOINT_SECONDS_MAX = 300
# Changes in memory for the watchers of a process, at most so many, and so many code points of their texts. A watcher
# that is further behind reads the log itself.
RECENT_CHANGES_MAX = 4_096
RECENT_CHANGES_MAX_CODE_POINTS = 4_000_000
# Existing books that one statement of a watch reads.
EXISTING_READ_MAX = 500
# Group commit: books written in one transaction. Other writes wait for it, so it is bounded by two of the largest batch
# calls. With half of that, four batches of 500 wrote a third more pages of SQLite's indexes.
WRITE_BATCH_MAX_BOOKS = 2_000
# The statements of a filter with more values are not cached: they take megabytes.
CACHED_VALUES_MAX = 32
# A purge: the books of one portion, at first and at most, and the ids that one search reads.
PURGE_PORTION_FIRST = 100
PURGE_PORTION_MAX = 1_000
PURGE_READ_MAX = 5_000
# How long the transaction of a portion should take: half of the 50 ms for which it may keep other writes waiting.
PURGE_PORTION_SECONDS = 0.025
PURGE_SAMPLE_MAX = 100
# One INSERT statement as sent to MariaDB: half of the smallest default of `max_allowed_packet`.
INSERT_MAX_BYTES = 512 * 1024
# MariaDB's `max_allowed_packet` must hold what cannot be split: the ids of a batch, or a filter and a page token.
MARIADB_PACKET_MIN_BYTES = 128 * 1024

# Cached encoded books, about 1 KB each.
ENCODED_BOOKS_MAX = 16_384
# Cached encoded changes: those that many watchers are about to receive.
ENCODED_CHANGES_MAX = 2_048
# Page cache: books on all pages cached until the next commit.
PAGE_CACHE_MAX_BOOKS = 8_192

# Bounds on parsing JSON: 8 MiB of `{},` would block all calls for seconds.
JSON_ARRAY_MAX = 10_000
JSON_VIOLATIONS_MAX = 1_000

# Cached JSON responses of one RPC: most have 16 KB, a page of a thousand books has 200 KB.
JSON_RESPONSE_CACHE_MAX = 32
JSON_RESPONSE_CACHE_ENTRY_MAX_BYTES = 256 * 1024
# Cached events of one streaming RPC: streams that run at the same time have the same ones.
EVENT_CACHE_MAX = 32

# Searches in the bulkhead's queue. Each is one of the concurrent calls, of which there are 500 by default.
SEARCHES_WAITING_MAX = 100

FILTER_MAX_CODE_POINTS = 2_000
FILTER_MAX_TERMS = 100
FILTER_MAX_LEVELS = 20
PAGE_TOKEN_MAX_CODE_POINTS = 16_384

# A batch of 1,000 books with the longest texts takes 6.1 MB on the wire.
MESSAGE_MAX_BYTES = 8 * 1024 * 1024
# Responses held back by a draining server until it has sent GOAWAY.
HELD_RESPONSES_MAX_BYTES = 64 * 1024 * 1024
# A status and its details travel in headers, percent-encoded and in base64. nginx's default limit is 4 KiB of headers,
# with their names and what gRPC and other proxies add. Clients accept 8 KiB.
ERROR_MAX_BYTES = 3 * 1024
# Parts of ERROR_MAX_BYTES: the message after encoding; the texts of a violation and all metadata before encoding. The
# longest of each fit together, so the first violation always fits.
ERROR_MESSAGE_MAX_BYTES = 640
ERROR_FIELD_MAX_BYTES = 128
ERROR_DESCRIPTION_MAX_BYTES = 320
ERROR_METADATA_MAX_BYTES = 128
# Violations or missing books: more than ever fit into ERROR_MAX_BYTES.
ERROR_ENTRIES_MAX = 64
REQUEST_ID_MAX_CHARACTERS = 128
# gRPC's default limit is 8 KiB of metadata.
TOKEN_MAX_CHARACTERS = 8 * 1024
# Cached verified tokens, about 2 KB each.
TOKEN_CACHE_MAX = 4_096
# Rate-limited callers, about 200 bytes each.
RATED_CALLERS_MAX = 65_536

# File descriptors of one process: the most it requests, and those reserved for anything but connections and the
# database. An idle process has about 40 open.
DESCRIPTORS_MAX = 65_536
DESCRIPTORS_RESERVED = 80
# Per process. An idle connection takes 14 KB.
GRPC_CONNECTIONS_MAX = 10_000
# Per process. Browsers open up to six, and an idle one is closed after five seconds.
HTTP_CONNECTIONS_MAX = 500
# Per process. Metrics, liveness and readiness have few clients.
PROBE_CONNECTIONS_MAX = 100
# Request line and headers. The longest page token and filter, percent-encoded, take 40 KB.
HTTP_HEAD_MAX_BYTES = 64 * 1024
# Browsers and proxies together send about forty. Each takes at least 300 bytes of memory.
HTTP_HEADERS_MAX = 200

# Idempotency keys. The contract promises 24 hours; the margin is cheap and tolerates clock skew.
CREATE_REQUEST_RETENTION_HOURS = 72

# Changes that a relay has received and NATS has not acknowledged, about 2 KB each.
RELAY_IN_FLIGHT_MAX = 1_024
