"""What the options of a database URL do: hosts, passwords and TLS, on servers of the tests' own."""

import asyncio
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bookstore_grpc.compat.asyncpg import socket_of
from bookstore_grpc.dal.connecting import _first_connection
from bookstore_grpc.dal.database import Database
from bookstore_grpc.dal.database_url import Host, parse_database_url
from bookstore_grpc.dal.driver_errors import startup_errors
from bookstore_grpc.errors import StartupError
from tests.certificates import Authority
from tests.faults.database_servers import DatabaseServer, database_server
from tests.rpc.obstacles import Network

pytestmark = pytest.mark.e2e

# What has a meaning in URLs, SQL and password files, is not in Latin-1, and is not in Unicode 3.2 (SASLprep).
_PASSWORD = "p%41/?#@:&=+[]\\'\" \u00e9\u4e09\u4f53\U0001f4d6"
_QUOTED = quote(_PASSWORD, safe="")
_RULES = """
local all all trust
hostssl all encrypted 127.0.0.1/32 trust
hostnossl all plain 127.0.0.1/32 trust
hostssl all certified 127.0.0.1/32 cert
host all scram,simple 127.0.0.1/32 scram-sha-256
host all md5 127.0.0.1/32 md5
host all postgres,bookstore 127.0.0.1/32 trust
"""
_IS_ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
_CIPHER = "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'"

Files = dict[str, str]


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the variables and files of libpq that this machine may have."""
    for name in ("PASSWORD", "PASSFILE", "SSLMODE", "SSLROOTCERT", "SSLCERT", "SSLKEY", "SSLCRL"):
        monkeypatch.delenv(f"PG{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="urls-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    """PEM files: a server's for `localhost`, a client's, their CA and another CA, and lists of revoked certificates."""
    authority = Authority()
    with _folder() as folder:
        folder.chmod(0o755)
        client, server = authority.certificate("certified"), authority.certificate("server", hosts=["localhost"])
        cert, key = client.write(folder, "client")
        server_cert, server_key = server.write(folder, "server")
        private_key = load_pem_private_key(client.key, None)
        encryption = BestAvailableEncryption(b"a b")
        (folder / "locked").write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        (folder / "revoked").write_bytes(authority.revocations(server))
        (folder / "others").write_bytes(authority.revocations(client))
        yield {
            "ca": authority.write(folder),
            "other_ca": Authority("other").write(folder, "other"),
            "cert": cert,
            "key": key,
            "locked_key": str(folder / "locked"),
            "revoked": str(folder / "revoked"),
            "others_revoked": str(folder / "others"),
            "server_cert": server_cert,
            "server_key": server_key,
        }


@pytest.fixture(scope="module")
def postgresql(files: Files) -> Iterator[DatabaseServer]:
    """A PostgreSQL whose accounts differ in how they may connect."""
    with _folder() as folder:
        rules = folder / "rules"
        rules.write_text(_RULES)
        shutil.copy(files["server_key"], folder / "key")
        shutil.chown(folder / "key", "postgres")
        (folder / "key").chmod(0o600)
        settings = ["ssl=on", f"ssl_cert_file={files['server_cert']}", f"ssl_key_file={folder / 'key'}"]
        settings += [f"ssl_ca_file={files['ca']}", f"hba_file={rules}"]
        with database_server("postgresql", folder, [f"--{setting}" for setting in settings]) as server:
            secret = _PASSWORD.replace("'", "''")
            server._query(
                f"CREATE ROLE encrypted LOGIN; CREATE ROLE plain LOGIN; CREATE ROLE certified LOGIN;"
                "CREATE ROLE simple LOGIN PASSWORD 'simple';"
                f"CREATE ROLE scram LOGIN PASSWORD '{secret}'; SET password_encryption = md5;"
                f"CREATE ROLE md5 LOGIN PASSWORD '{secret}'"
            )
            yield server


@pytest.fixture(scope="module")
def mariadb(files: Files) -> Iterator[DatabaseServer]:
    with _folder() as folder:
        shutil.copy(files["server_key"], folder / "key")
        shutil.chown(folder / "key", "mysql")
        options = [f"--ssl-ca={files['ca']}", f"--ssl-cert={files['server_cert']}", f"--ssl-key={folder / 'key'}"]
        with database_server("mariadb", folder, options) as server:
            secret = _PASSWORD.replace("\\", "\\\\").replace("'", "''")
            server._query(
                "CREATE USER encrypted@'127.0.0.1' REQUIRE SSL; CREATE USER certified@'127.0.0.1' REQUIRE X509;"
                f"CREATE USER secret@'127.0.0.1' IDENTIFIED BY '{secret}';"
                "GRANT ALL ON bookstore.* TO encrypted@'127.0.0.1', certified@'127.0.0.1', secret@'127.0.0.1'"
            )
            yield server


async def _scalar(url: str, statement: str) -> Any:
    """Return the value of a statement. Raises `StartupError` with the message that an operator reads."""
    database = Database(url, pool_size=1, timeout_seconds=10)

    async def execute(connection: AsyncConnection) -> Any:
        return await connection.scalar(text(statement))

    try:
        with startup_errors(database.description):
            return await database.write(execute)
    finally:
        await database.close()


async def _check(url: str, statement: str, expected: object) -> None:
    """Check the value of a statement, or what a message says."""
    if not isinstance(expected, str) or expected == "":
        assert await _scalar(url, statement) == expected
    else:
        with pytest.raises(StartupError, match=expected):
            await _scalar(url, statement)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("user", "host", "options", "expected"),
    [
        ("encrypted", "127.0.0.1", "", True),
        ("plain", "127.0.0.1", "", False),
        ("plain", "127.0.0.1", "sslrootcert={other_ca}", False),
        ("encrypted", "127.0.0.1", "sslmode=disable", "no encryption"),
        ("plain", "127.0.0.1", "sslmode=disable", False),
        ("encrypted", "127.0.0.1", "sslmode=allow", True),
        ("plain", "127.0.0.1", "sslmode=allow", False),
        ("encrypted", "127.0.0.1", "sslmode=require", True),
        ("plain", "127.0.0.1", "sslmode=require", "SSL encryption"),
        ("encrypted", "127.0.0.1", "sslmode=require&sslrootcert={ca}", True),
        ("encrypted", "127.0.0.1", "sslmode=require&sslrootcert={other_ca}", "certificate verify failed"),
        ("encrypted", "127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}", True),
        ("encrypted", "127.0.0.1", "sslmode=verify-ca&sslrootcert={other_ca}", "certificate verify failed"),
        ("encrypted", "localhost", "sslmode=verify-full&sslrootcert={ca}", True),
        ("encrypted", "127.0.0.1", "sslmode=verify-full&sslrootcert={ca}", "IP address mismatch"),
        ("certified", "127.0.0.1", "sslmode=require&sslcert={cert}&sslkey={key}", True),
        ("certified", "127.0.0.1", "sslmode=require", "valid client certificate"),
        (
            "certified",
            "127.0.0.1",
            "sslmode=require&sslcert={cert}&sslkey={locked_key}&sslpassword=a%20b",
            True,
        ),
        ("certified", "127.0.0.1", "sslmode=require&sslcert={cert}&sslkey={locked_key}", "sslcert or sslkey cannot"),
        ("encrypted", "127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}&sslcrl={others_revoked}", True),
        ("encrypted", "127.0.0.1", "sslmode=verify-ca&sslrootcert={ca}&sslcrl={revoked}", "certificate revoked"),
        ("encrypted", "127.0.0.1", "sslmode=require&ssl_min_protocol_version=TLSv1.3", True),
    ],
)
async def test_sslmode_of_postgresql_is_that_of_libpq(
    postgresql: DatabaseServer, files: Files, user: str, host: str, options: str, expected: bool | str
) -> None:
    url = f"postgres://{user}@{host}:{postgresql.port}/postgres?{options.format(**files)}"
    await _check(url, _IS_ENCRYPTED, expected)


@pytest.mark.postgresql
async def test_ca_of_postgresql_can_be_that_of_the_system_of_a_variable_or_of_the_home(
    postgresql: DatabaseServer, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"localhost:{postgresql.port}/postgres"
    system = f"postgres://encrypted@{address}?sslrootcert=system"
    with pytest.raises(StartupError, match="certificate verify failed"):
        await _scalar(system, _IS_ENCRYPTED)
    monkeypatch.setenv("SSL_CERT_FILE", files["ca"])
    assert await _scalar(system, _IS_ENCRYPTED)
    (tmp_path / ".postgresql").mkdir()
    shutil.copy(files["ca"], tmp_path / ".postgresql/root.crt")
    full = f"postgres://encrypted@{address}?sslmode=verify-full"
    assert await _scalar(full, _IS_ENCRYPTED)
    monkeypatch.setenv("PGSSLROOTCERT", files["other_ca"])
    with pytest.raises(StartupError, match="certificate verify failed"):
        await _scalar(full, _IS_ENCRYPTED)


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("user", "host", "options", "expected"),
    [
        ("bookstore", "127.0.0.1", "", ""),
        ("bookstore", "127.0.0.1", "ssl-mode=DISABLED", ""),
        ("encrypted", "127.0.0.1", "", "Access denied"),
        ("encrypted", "127.0.0.1", "ssl-mode=REQUIRED", True),
        ("encrypted", "127.0.0.1", "ssl-mode=REQUIRED&ssl_ca={other_ca}", "certificate verify failed"),
        ("encrypted", "127.0.0.1", "ssl-mode=VERIFY_CA&ssl_ca={ca}", True),
        ("encrypted", "localhost", "ssl-mode=VERIFY_IDENTITY&ssl_ca={ca}", True),
        ("encrypted", "127.0.0.1", "ssl-mode=VERIFY_IDENTITY&ssl_ca={ca}", "IP address mismatch"),
        ("encrypted", "127.0.0.1", "ssl_ca={ca}", "IP address mismatch"),
        ("encrypted", "127.0.0.1", "ssl_ca={ca}&ssl_check_hostname=false", True),
        ("certified", "127.0.0.1", "ssl_cert={cert}&ssl_key={key}", True),
    ],
)
async def test_ssl_mode_of_mariadb_is_that_of_mysql(
    mariadb: DatabaseServer, files: Files, user: str, host: str, options: str, expected: bool | str
) -> None:
    url = f"mysql://{user}@{host}:{mariadb.port}/bookstore?{options.format(**files)}"
    statement = f"SELECT ({_CIPHER}) <> ''" if expected is True else _CIPHER
    await _check(url, statement, expected)


@pytest.mark.postgresql
@pytest.mark.parametrize("user", ["scram", "md5"])
async def test_passwords_of_postgresql_can_have_any_character(
    postgresql: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    host = f"127.0.0.1:{postgresql.port}/postgres"
    assert await _scalar(f"postgres://{user}:{_QUOTED}@{host}", "SELECT 1") == 1
    assert await _scalar(f"postgres://{host}?user={user}&password={_QUOTED}", "SELECT 1") == 1
    with pytest.raises(StartupError, match="password authentication failed") as caught:
        await _scalar(f"postgres://{user}:s3cret@{host}", "SELECT 1")
    assert "s3cret" not in caught.value.message
    escaped = _PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    (tmp_path / ".pgpass").write_text(f"*:*:*:{user}:{escaped}\n", encoding="utf-8")
    (tmp_path / ".pgpass").chmod(0o600)
    assert await _scalar(f"postgres://{user}@{host}", "SELECT 1") == 1
    monkeypatch.setenv("PGPASSWORD", _PASSWORD)
    (tmp_path / ".pgpass").unlink()
    assert await _scalar(f"postgres://{user}@{host}", "SELECT 1") == 1


@pytest.mark.mariadb
async def test_passwords_of_mariadb_can_have_any_character(mariadb: DatabaseServer) -> None:
    host = f"127.0.0.1:{mariadb.port}/bookstore"
    assert await _scalar(f"mysql://secret:{_QUOTED}@{host}", "SELECT 1") == 1
    with pytest.raises(StartupError, match="Access denied") as caught:
        await _scalar(f"mysql://secret:s3cret@{host}", "SELECT 1")
    assert "s3cret" not in caught.value.message


@pytest.mark.mariadb
async def test_a_password_that_the_driver_cannot_read_from_a_file_is_not_shown(
    mariadb: DatabaseServer, tmp_path: Path
) -> None:
    (tmp_path / "my.cnf").write_text("[client]\npassword=s3cret\u4e09\n", encoding="utf-8")
    url = f"mysql://secret@127.0.0.1:{mariadb.port}/bookstore?read_default_file={tmp_path}/my.cnf"
    with pytest.raises(StartupError, match="beyond Latin-1 belongs in the URL") as caught:
        await _scalar(url, "SELECT 1")
    assert "s3cret" not in caught.value.message
    assert "\u4e09" not in caught.value.message


@pytest.mark.postgresql
async def test_each_host_has_its_own_password(postgresql: DatabaseServer, tmp_path: Path) -> None:
    port = postgresql.port
    escaped = _PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    (tmp_path / "passwords").write_text(f"127.0.0.1:*:*:*:wrong\nlocalhost:*:*:*:{escaped}\n", encoding="utf-8")
    (tmp_path / "passwords").chmod(0o600)
    url = f"postgres://scram@127.0.0.1:{port},localhost:{port}/postgres?passfile={tmp_path}/passwords"
    assert await _scalar(url, "SELECT 1") == 1


@pytest.mark.postgresql
async def test_with_a_password_file_in_the_url_no_other_is_read(postgresql: DatabaseServer, tmp_path: Path) -> None:
    (tmp_path / ".pgpass").write_text("*:*:*:simple:simple\n")
    (tmp_path / ".pgpass").chmod(0o600)
    url = f"postgres://simple@127.0.0.1:{postgresql.port}/postgres"
    assert await _scalar(url, "SELECT 1") == 1
    with pytest.raises(StartupError, match="password"):
        await _scalar(f"{url}?passfile={tmp_path}/missing", "SELECT 1")


@pytest.mark.postgresql
async def test_options_are_parameters_of_the_session(postgresql: DatabaseServer) -> None:
    options = "application_name=books%20x&options=-cDateStyle%3DISO,%5C%20DMY%20-c%20work_mem%3D1MB"
    url = f"postgres://bookstore@127.0.0.1:{postgresql.port}/postgres?{options}"
    statement = "SELECT concat_ws('|', current_setting('application_name'), current_setting('work_mem'), "
    assert await _scalar(url, f"{statement} current_setting('DateStyle'))") == "books x|1MB|ISO, DMY"
    with pytest.raises(StartupError, match="invalid command-line argument"):
        await _scalar(url.replace("-cDateStyle", "DateStyle"), "SELECT 1")


@pytest.mark.postgresql
async def test_variables_do_not_change_what_the_url_means(
    postgresql: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"HOST": "203.0.113.1", "PORT": "1", "USER": "nobody", "DATABASE": "other", "SSLNEGOTIATION": "direct"}
    variables |= {"TARGETSESSIONATTRS": "standby", "OPTIONS": "-cwork_mem=1MB", "SERVICE": "other", "APPNAME": "other"}
    for name, value in variables.items():
        monkeypatch.setenv(f"PG{name}", value)
    url = f"postgres://bookstore@127.0.0.1:{postgresql.port}/postgres"
    statement = "SELECT concat_ws(' ', current_user, current_database(), current_setting('work_mem'))"
    assert await _scalar(url, statement) == "bookstore postgres 4MB"


@pytest.mark.postgresql
async def test_sockets_of_postgresql(postgresql: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, port = quote(str(postgresql.log.parent), safe=""), postgresql.port
    for url in (
        f"postgres://bookstore@/postgres?host={folder}&port={port}&keepalives_idle=9",
        f"postgres://bookstore@{folder}:{port}/postgres",
    ):
        assert await _scalar(url, "SELECT inet_client_addr() IS NULL")
    monkeypatch.setenv("PGHOST", str(postgresql.log.parent))
    monkeypatch.setenv("PGPORT", str(port))
    assert await _scalar("postgres://bookstore@/postgres", "SELECT inet_client_addr() IS NULL")


@pytest.mark.mariadb
async def test_sockets_of_mariadb(mariadb: DatabaseServer) -> None:
    mariadb._query("CREATE USER IF NOT EXISTS here@localhost; GRANT ALL ON bookstore.* TO here@localhost")
    path = quote(str(mariadb.log.parent / "socket"), safe="")
    for url in (f"mysql://here@/bookstore?unix_socket={path}", f"mysql://here@{path}/bookstore"):
        assert await _scalar(url, "SELECT current_user()") == "here@localhost"


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (0, 7200, 0)),
        ("keepalives=1", (1, 7200, 0)),
        ("keepalives=0&keepalives_idle=9", (0, 7200, 0)),
        ("keepalives_idle=9&tcp_user_timeout=5000", (1, 9, 5000)),
    ],
)
async def test_keepalives_are_options_of_the_socket(
    postgresql: DatabaseServer, options: str, expected: tuple[int, int, int]
) -> None:
    url = f"postgres://bookstore@127.0.0.1:{postgresql.port}/postgres?{options}"
    database = Database(url, pool_size=1, timeout_seconds=10)

    async def read(connection: AsyncConnection) -> tuple[int, int, int]:
        found = socket_of((await connection.get_raw_connection()).driver_connection)
        return (
            found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )

    assert await database.write(read) == expected
    await database.close()


@asynccontextmanager
async def _network(server: DatabaseServer) -> AsyncIterator[Network]:
    """Yield another way to a server, which can stall."""
    network = Network("127.0.0.1", server.port)
    await network.restore()
    try:
        yield network
    finally:
        network.flow()
        await network.cut()


@pytest.fixture(scope="module")
def read_only(postgresql: DatabaseServer) -> Iterator[DatabaseServer]:
    """A PostgreSQL that rejects writes."""
    with _folder() as folder, database_server("postgresql", folder) as server:
        server._query("ALTER ROLE bookstore SET default_transaction_read_only = on")
        yield server


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("options", "is_writable"),
    [
        ("", True),
        ("target_session_attrs=any", False),
        ("target_session_attrs=read-write", True),
        ("target_session_attrs=read-only", False),
        ("target_session_attrs=primary", False),
        ("target_session_attrs=prefer-standby", False),
    ],
)
async def test_the_first_host_with_the_attributes_is_used(
    postgresql: DatabaseServer, read_only: DatabaseServer, options: str, is_writable: bool
) -> None:
    hosts = f"127.0.0.1:{read_only.port},127.0.0.1:{postgresql.port}"
    url = f"postgres://bookstore@{hosts}/postgres?{options}"
    assert await _scalar(url, f"SELECT inet_server_port() = {postgresql.port}") is is_writable


@pytest.mark.postgresql
async def test_hosts_that_refuse_or_do_not_respond_are_passed_over(postgresql: DatabaseServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"127.0.0.1:{unused.getsockname()[1]}"
        async with _network(postgresql) as network:
            network.stall()
            hosts = f"{refusing},127.0.0.1:{network.port},127.0.0.1:{postgresql.port}"
            url = f"postgres://bookstore@{hosts}/postgres?load_balance_hosts=random"
            assert await _scalar(url, "SELECT inet_server_port()") == postgresql.port
            with pytest.raises(StartupError) as caught:
                await _scalar(f"postgres://u:s3cret@{refusing},127.0.0.1:{postgresql.port}/postgres", "SELECT 1")
    assert f"postgresql {refusing},127.0.0.1:{postgresql.port}/postgres: {refusing}: [Errno" in caught.value.message
    assert f"; 127.0.0.1:{postgresql.port}: no pg_hba.conf entry" in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.postgresql
async def test_a_host_without_the_attributes_is_an_error_that_names_them(postgresql: DatabaseServer) -> None:
    url = f"postgres://bookstore@127.0.0.1:{postgresql.port}/postgres?target_session_attrs=standby"
    with pytest.raises(StartupError, match=r"it is not standby \(target_session_attrs\)"):
        await _scalar(url, "SELECT 1")


@pytest.mark.postgresql
async def test_no_connection_to_another_host_remains(postgresql: DatabaseServer) -> None:
    async with _network(postgresql) as network:
        network.stall()
        hosts = f"127.0.0.1:{network.port},127.0.0.1:{postgresql.port}"
        url = f"postgres://bookstore@{hosts}/postgres?application_name=remains&target_session_attrs=any"
        database = Database(url, pool_size=1, timeout_seconds=10)
        await database.ping()
        network.flow()
        others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'remains'"
        assert postgresql._query(others) == "1"
        await database.close()


async def test_of_two_connections_at_once_one_is_closed() -> None:
    begun: list[Host] = []
    may_end = asyncio.Event()
    closed: list[Host] = []

    class Connection:
        def __init__(self, host: Host) -> None:
            self.host = host

        def terminate(self) -> None:
            closed.append(self.host)

    async def connect(host: Host) -> Connection:
        begun.append(host)
        if len(begun) == len(url.hosts):
            may_end.set()
        await may_end.wait()
        return Connection(host)

    url = parse_database_url("postgres://u@h1,h2/books")
    connection = await _first_connection(url, connect)
    assert sorted([*closed, connection.host]) == sorted(url.hosts)


@pytest.mark.postgresql
@pytest.mark.mariadb
async def test_connect_timeout_bounds_connecting(postgresql: DatabaseServer, mariadb: DatabaseServer) -> None:
    async with _network(postgresql) as postgresql_network, _network(mariadb) as mariadb_network:
        urls = [
            f"postgres://bookstore@127.0.0.1:{postgresql_network.port}/postgres?connect_timeout=1",
            f"mysql://bookstore@127.0.0.1:{mariadb_network.port}/bookstore?connect_timeout=1",
        ]
        postgresql_network.stall()
        mariadb_network.stall()
        async with asyncio.timeout(5):
            found = await asyncio.gather(*(_scalar(url, "SELECT 1") for url in urls), return_exceptions=True)
    assert ["did not respond in time" in str(error) for error in found] == [True, True]


@pytest.mark.postgresql
async def test_tls_can_come_first(postgresql: DatabaseServer, files: Files) -> None:
    async with _tls_in_front_of(postgresql, files) as port:
        url = f"postgres://plain@127.0.0.1:{port}/postgres?sslnegotiation=direct"
        assert await _scalar(f"{url}&sslmode=verify-ca&sslrootcert={files['ca']}", _IS_ENCRYPTED) is False
        url = f"postgres://plain@127.0.0.1:{postgresql.port}/postgres?sslnegotiation=direct&sslmode=require"
        with pytest.raises(StartupError, match="it closed the connection"):
            await _scalar(url, "SELECT 1")


@asynccontextmanager
async def _tls_in_front_of(server: DatabaseServer, files: Files) -> AsyncIterator[int]:
    """Yield the port of a proxy that ends TLS, which PostgreSQL itself accepts without a request only since 17."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files["server_cert"], files["server_key"])
    context.set_alpn_protocols(["postgresql"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as proxy:
        yield proxy.sockets[0].getsockname()[1]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()
