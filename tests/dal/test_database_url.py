"""Database URLs: those that hosting providers print, and the errors of others, which never contain a password."""

import math
import sys
from pathlib import Path

import pytest

from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.database_url import Host, parse_database_url
from bookstore_grpc.dal.url_options import OPTIONS
from bookstore_grpc.errors import StartupError

_SECRET = "s3cret"


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the variables and files of libpq that this machine may have."""
    for name in ("HOST", "PORT", "USER", "SSLMODE", "SSLROOTCERT", "SSLCERT", "SSLKEY", "SSLCRL"):
        monkeypatch.delenv(f"PG{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "drivername"),
    [
        ("sqlite:///books.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:///books.db", "sqlite+aiosqlite"),
        ("sqlite:////var/lib/books.db", "sqlite+aiosqlite"),
        ("sqlite:///file:books.db?mode=ro&uri=true", "sqlite+aiosqlite"),
        ("postgres://u:p@h/books", "postgresql+asyncpg"),
        ("postgresql://u:p@h/books", "postgresql+asyncpg"),
        ("postgresql+asyncpg://u:p@h:5433/books", "postgresql+asyncpg"),
        (" postgres://u:p@h/books\n", "postgresql+asyncpg"),
        ("mysql://u:p@h/books", "mariadb+asyncmy"),
        ("mariadb://u:p@h/books", "mariadb+asyncmy"),
        ("mysql+asyncmy://u:p@h/books", "mariadb+asyncmy"),
        ("mariadb+asyncmy://u:p@h:3307/books", "mariadb+asyncmy"),
    ],
)
def test_scheme_settles_the_driver(text: str, drivername: str) -> None:
    url = parse_database_url(text).url
    assert url.drivername == drivername
    assert url.database
    assert Database(text, pool_size=1, timeout_seconds=1).dialect == drivername.partition("+")[0]


def test_user_password_host_port_and_options_stay() -> None:
    parsed = parse_database_url("postgres://me:p%40s%C3%A9+@example.org:5433/books%2F1?application_name=a%20b+c")
    url = parsed.url
    assert (url.username, url.password, url.host, url.port) == ("me", "p@sé+", "example.org", 5433)
    assert url.database == "books/1"
    assert parsed.options["application_name"] == "a b+c"


def test_options_can_replace_every_part() -> None:
    url = parse_database_url("postgres://u:p@h:1/d?user=me&password=a%26b&host=example.org&port=5433&dbname=books").url
    assert (url.username, url.password, url.host, url.port) == ("me", "a&b", "example.org", 5433)
    assert url.database == "books"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgres://u@h/b", [Host("h")]),
        ("postgres://u@h1,h2/b", [Host("h1"), Host("h2")]),
        ("postgres://u@h1:1,h2:2/b", [Host("h1", 1), Host("h2", 2)]),
        ("postgres://u@[::1]:1,[fe80::1%25eth0]/b", [Host("::1", 1), Host("fe80::1%eth0")]),
        ("postgres://u@/b?host=h1,h2&port=1,2", [Host("h1", 1), Host("h2", 2)]),
        ("postgres://u@/b?host=h1,h2&port=,2", [Host("h1"), Host("h2", 2)]),
        ("postgres://u@h1,h2/b?port=1", [Host("h1", 1), Host("h2", 1)]),
        ("postgres:///b?user=u&host=h1&host=h2&port=1&port=2", [Host("h1", 1), Host("h2", 2)]),
        ("postgres://u@/b?host=h1:1&host=h2:2", [Host("h1", 1), Host("h2", 2)]),
        ("postgres://u@/b?host=::1,h2", [Host("::1"), Host("h2")]),
        ("postgres://u@/b?host=/var/run/postgresql", [Host("/var/run/postgresql")]),
        ("postgres://u@%2Fvar%2Frun:5433/b", [Host("/var/run", 5433)]),
        ("postgres://u@/b?host=/cloudsql/p:region:i", [Host("/cloudsql/p:region:i")]),
        ("postgres://u@/b", [Host("")]),
        ("mysql://u@/b?unix_socket=/cloudsql/p:region:i", [Host("/cloudsql/p:region:i")]),
        ("mysql://u@%2Frun%2Fmysqld.sock/b", [Host("/run/mysqld.sock")]),
    ],
)
def test_hosts(text: str, hosts: list[Host]) -> None:
    assert list(parse_database_url(text).hosts) == hosts


# What they print, less the names of accounts.
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("postgres://u:p@ec2-1-2.compute-1.amazonaws.com:5432/d1", id="heroku"),
        pytest.param(
            "postgresql://postgres.ref:p@aws-0-eu.pooler.supabase.com:6543/postgres?pgbouncer=true", id="supabase"
        ),
        pytest.param(
            "postgresql://u:p@ep-x-pooler.eu.aws.neon.tech/neondb?sslmode=require&channel_binding=prefer", id="neon"
        ),
        pytest.param("postgresql://u:p@ep-x.neon.tech/d?sslmode=require&options=endpoint%3Dep-x", id="neon-no-sni"),
        pytest.param("postgres://u%40server:p@s.postgres.database.azure.com/postgres?sslmode=require", id="azure"),
        pytest.param("postgres://avnadmin:p@pg-1.aivencloud.com:12345/defaultdb?sslmode=require", id="aiven"),
        pytest.param("mysql://avnadmin:p@mysql-1.aivencloud.com:12345/defaultdb?ssl-mode=REQUIRED", id="aiven-mysql"),
        pytest.param("postgresql://doadmin:p@db-1.ondigitalocean.com:25060/defaultdb?sslmode=require", id="do"),
        pytest.param("mysql://doadmin:p@db-1.ondigitalocean.com:25060/defaultdb?ssl-mode=REQUIRED", id="do-mysql"),
        pytest.param("postgresql://u:p@/d?host=/cloudsql/project:region:instance", id="cloud-sql"),
        pytest.param("postgresql://u:p@h:5432/d?connect_timeout=15&statement_cache_size=0", id="pooler"),
        pytest.param("postgresql://h/d?user=u&password=p&ssl=true&prepareThreshold=0&ApplicationName=x", id="jdbc"),
        pytest.param("mariadb://h/d?user=u&password=p&useSSL=true&characterEncoding=UTF-8", id="jdbc-mariadb"),
    ],
)
def test_urls_as_providers_print_them(text: str) -> None:
    Database(text, pool_size=1, timeout_seconds=1)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        *((f"postgres://u@h/b?sslmode={mode}", mode) for mode in ("disable", "allow", "prefer", "require")),
        ("postgres://u@h/b", "prefer"),
        ("postgres://u@h/b?ssl=true", "require"),
        ("postgres://u@h/b?ssl=true&sslmode=disable", "disable"),
        ("postgres://u@h/b?sslrootcert=system", "verify-full"),
        ("mysql://u@h/b", "disable"),
        ("mysql://u@h/b?ssl=1", "require"),
        ("mysql://u@h/b?ssl=false", "disable"),
        ("mysql://u@h/b?sslMode=trust", "require"),
        ("mysql://u@h/b?sslmode=require", "require"),
        ("mysql://u@h/b?ssl_mode=verify_ca&ssl_ca=system", "verify-ca"),
        ("mysql://u@h/b?ssl-mode=VERIFY_IDENTITY&ssl_ca=system", "verify-full"),
        ("mysql://u@h/b?ssl_ca=system", "verify-full"),
        ("mysql://u@h/b?ssl_ca=system&ssl_check_hostname=false", "verify-ca"),
    ],
)
def test_mode_of_tls(text: str, mode: str) -> None:
    assert parse_database_url(text).options["sslmode"] == mode


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("postgres://u@h/b", math.inf),
        ("postgres://u@h/b?connect_timeout=3", 3),
        ("mysql://u@h/b?connect_timeout=3", 3),
        ("postgres://u@h/b?connect_timeout=0", math.inf),
        ("postgres://u@h/b?connect_timeout=-1", math.inf),
    ],
)
def test_connect_timeout_is_in_seconds_and_unlimited_if_not_positive(text: str, seconds: float) -> None:
    assert parse_database_url(text).connect_seconds == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("books.db", "cannot be read"),
        ("://", "cannot be read"),
        (":s3cret@", "cannot be read"),
        ("postgresql:u:s3cret@h/books", "cannot be read"),
        ("'postgresql://u:s3cret@h/books'", "without quotes"),
        ("jdbc:postgresql://h/books?password=s3cret", "cannot be read"),
        ("postgresql://u:s3cret\udcff@h/books", "cannot be read"),
        ("postgresql://u:s3cret%FF@h/books", "not UTF-8"),
        ("postgresql://u:s3cret%00@h/books", "%00"),
        ("oracle://u:s3cret@h/books", "starts with 'oracle'; supported are sqlite+aiosqlite"),
        ("http://u:s3cret@h/", "starts with 'http'"),
        ("SQLITE:///books.db", "starts with 'SQLITE'"),
        ("postgresql+psycopg://u:s3cret@h/books", "'postgresql+psycopg' is not supported; use postgresql+asyncpg"),
        ("mysql://u:s3cret@h", "names no database"),
        ("mysql+pymysql://u:s3cret@h/books", "'mysql+pymysql' is not supported; use mariadb+asyncmy"),
        ("sqlite+pysqlite:///books.db", "'sqlite+pysqlite' is not supported; use sqlite+aiosqlite"),
        ("sqlite://h:s3cret/books.db", "cannot be read"),
        ("sqlite://", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "needs a file"),
        ("sqlite:///file::memory:?uri=true", "needs a file"),
        ("sqlite:///file:?uri=true", "needs a file"),
        # Raw delimiters in a password, also where the rest looks like a port.
        *((f"postgresql://u:s3cret{raw}1@h/books", "percent-encode it there") for raw in "/?#"),
        *((f"mysql://u:12{raw}s3cret@h/books", "%2F, %3F, %23 or %40") for raw in "/?#"),
        ("postgresql://u:a@b/s3cret@h/books", "percent-encode it there"),
        ("postgresql://u:a/b?s3cret=c@h/books", "percent-encode it there"),
        ("postgresql://u@h/books?password=s3cret@1", "percent-encode it there"),
        ("postgresql://u@h/books?password=a&s3cret", "a raw '&' in a value is written as %26"),
        ("postgresql://u@h/books?password=a&s3cret=b", "next to the password"),
        ("postgresql://u:s3cret/books", "a host or a port that cannot be read"),
        ("postgresql://u:99999/books", "not from 1 to 65535"),
        ("postgresql://u@h:port/books", "a host or a port that cannot be read"),
        ("postgresql://u@h1,,h2/books", "one of them is empty"),
        ("postgresql://u@h1,h2/books?port=1,2,3", "one for each host"),
        ("mysql://u@h1,h2/books", "only PostgreSQL can have"),
    ],
)
def test_a_url_that_cannot_be_used_is_rejected(text: str, said: str) -> None:
    with pytest.raises(StartupError) as caught:
        Database(text, pool_size=1, timeout_seconds=1)
    assert said in caught.value.message
    assert _SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("channel_binding=require", "write channel_binding=prefer"),
        ("client_encoding=latin1", "write client_encoding=utf8"),
        ("connect_timeout=soon", "write whole seconds"),
        ("currentSchema=x", "write options=-csearch_path%3DNAME"),
        ("frobnicate=1", "leave it out, or write a parameter of the server as options=-cNAME%3DVALUE"),
        ("gssencmode=require", "write sslmode=require"),
        ("hostaddr=127.0.0.1", "write the address as the host"),
        ("keepalives=yes", "write 0 or 1"),
        ("pgbouncer=maybe", "write true or false"),
        ("service=books", "write what the service file contains"),
        ("ssl=yes", "write sslmode=disable, allow, prefer, require, verify-ca or verify-full"),
        ("sslmode=full", "write sslmode=disable, allow, prefer, require, verify-ca or verify-full"),
        ("sslmode=verify-ca", "needs sslrootcert=FILE"),
        ("sslmode=verify-full", "sslrootcert=system too"),
        ("sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("sslmode=require&sslrootcert=/missing", "No such file"),
        ("sslcert=/missing", "needs sslmode=require"),
        ("sslnegotiation=yes", "write postgres or direct"),
        ("sslnegotiation=direct", "needs sslmode=require"),
        ("target_session_attrs=master", "write any or read-write"),
        ("unix_sock=/x/.s.PGSQL.5432", "write host with the directory of the socket"),
    ],
)
def test_an_option_of_postgresql_that_cannot_work_is_rejected(option: str, instead: str) -> None:
    _check_rejected(f"postgresql://u:{_SECRET}@h/books?{option}", option, instead)


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("charset=latin1", "write charset=utf8mb4"),
        ("collation=latin1_bin", "leave it out; the order of texts is that of the tables"),
        ("connectTimeout=5000", "write connect_timeout, in seconds"),
        ("frobnicate=1", "leave it out"),
        ("init_command=x", "the service sets what its session needs"),
        ("ssl={}", "write ssl-mode=DISABLED"),
        ("ssl-mode=PREFERRED", "write ssl-mode=DISABLED, REQUIRED"),
        ("ssl-mode=VERIFY_CA", "need ssl_ca=FILE"),
        ("ssl_mode=REQUIRED&ssl_check_hostname=1", "write ssl-mode=VERIFY_CA or VERIFY_IDENTITY alone"),
        ("ssl_ca=/missing", "No such file"),
        ("sslaccept=strict", "write ssl-mode=VERIFY_IDENTITY"),
        ("verifyServerCertificate=true", "write ssl-mode=VERIFY_IDENTITY"),
    ],
)
def test_an_option_of_mariadb_that_cannot_work_is_rejected(option: str, instead: str) -> None:
    _check_rejected(f"mysql://u:{_SECRET}@h/books?{option}", option, instead)


def _check_rejected(text: str, option: str, instead: str) -> None:
    with pytest.raises(StartupError) as caught:
        Database(text, pool_size=1, timeout_seconds=1)
    assert option.rsplit("&", maxsplit=1)[-1].partition("=")[0] in caught.value.message
    assert instead in caught.value.message
    assert _SECRET not in caught.value.message


@pytest.mark.parametrize("scheme", ["postgresql", "mariadb"])
@pytest.mark.parametrize("port", [0, 65_536, 99_999])
def test_an_impossible_port_is_reported(scheme: str, port: int) -> None:
    with pytest.raises(StartupError, match="not from 1 to 65535"):
        parse_database_url(f"{scheme}://u:{_SECRET}@127.0.0.1:{port}/x")


@pytest.mark.parametrize(
    ("url", "description"),
    [
        ("sqlite:////var/lib/books.db", "sqlite /var/lib/books.db"),
        (f"postgres://u:{_SECRET}@h/books?application_name=x", "postgresql h/books"),
        (f"postgres://u:{_SECRET}@h:5433/books", "postgresql h:5433/books"),
        (f"postgres://u:{_SECRET}@h1:1,h2,[::1]:2/books?password={_SECRET}", "postgresql h1:1,h2,[::1]:2/books"),
        (f"postgres://u:{_SECRET}@/books?host=/run/a:b:c&port=1", "postgresql /run/a:b:c:1/books"),
        (f"postgres://u:{_SECRET}@/books", "postgresql localhost/books"),
        (f"mysql://u:{_SECRET}@/books", "mariadb localhost/books"),
        (f"mysql://u:{_SECRET}@h/books?unix_socket=/run/x.sock", "mariadb /run/x.sock/books"),
    ],
)
def test_description_shows_all_hosts_and_neither_user_nor_password(url: str, description: str) -> None:
    assert Database(url, pool_size=1, timeout_seconds=1).description == description
    assert _SECRET not in repr(parse_database_url(url))


@pytest.mark.parametrize(
    ("text", "user", "hosts", "mode"),
    [
        ("postgres://u@h:1/b?sslmode=require", "u", "h:1", "require"),
        ("postgres://u@h/b", "u", "h", "disable"),
        ("postgres://u@/b", "u", "elsewhere:5433,/run/b:5433", "disable"),
        ("postgres://h/b", "someone", "h", "disable"),
    ],
)
def test_variables_of_libpq_only_fill_in_user_hosts_and_tls(
    text: str, user: str, hosts: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": "elsewhere,/run/b",
        "PGPORT": "5433",
        "PGUSER": "someone",
        "PGDATABASE": "other",
        "PGSSLMODE": "disable",
    }.items():
        monkeypatch.setenv(name, value)
    parsed = parse_database_url(text)
    assert (parsed.url.username, parsed.url.database) == (user, "b")
    assert parsed.description == f"postgresql {hosts}/b"
    assert parsed.options["sslmode"] == mode


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PGSSLMODE", "full", "PGSSLMODE cannot be used: write sslmode=disable"),
        ("PGPORT", "blue", "a port that is not from 1 to 65535"),
    ],
)
def test_a_variable_that_cannot_be_used_is_rejected(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=said):
        parse_database_url("postgres:///b")


def test_the_guide_for_operators_lists_every_option() -> None:
    guide = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    section = guide.partition("## Database URLs")[2].partition("\n## ")[0].lower().replace("-", "_")
    missing = {name for options in OPTIONS.values() for name in options if f"`{name}" not in section}
    assert not missing


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("sqlite:///books.db", "aiosqlite", "server"),
        ("postgresql://h/books", "asyncpg", "postgresql"),
        ("mariadb://h/books", "asyncmy", "mariadb"),
    ],
)
def test_missing_driver_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StartupError, match=rf"pip install 'bookstore-grpc\[{extra}\]'"):
        Database(url, pool_size=1, timeout_seconds=1)
