import subprocess
import sys

# Audit events report what happens beneath every library.
_IMPORT_EVERYTHING = """
import os, pkgutil, sys

class Environment(dict):
    def __getitem__(self, name):
        assert not name.startswith("BOOKSTORE_"), name
        return super().__getitem__(name)

    def get(self, name, default=None):
        return self[name] if name in self else default

os.environ = Environment(os.environ)

def refuse(event, arguments):
    assert event not in ("socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen"), event

sys.addaudithook(refuse)
import bookstore_grpc
names = [module.name for module in pkgutil.walk_packages(bookstore_grpc.__path__, "bookstore_grpc.")]
names = [name for name in names if not name.endswith(("__main__", "migrations.env"))]  # these two are run
for name in names:
    __import__(name)
print(len(names))
"""


def test_importing_opens_no_connection_and_reads_no_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EVERYTHING], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
