"""The build of the Go contender, with the compiler, the plug-ins of protoc and the libraries that Debian packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.errors import BenchmarkError

_ROOT = Path(__file__).parents[1]
_SOURCES = Path(__file__).parent / "contenders" / "go"
_BUILD = _ROOT / "build" / "go"
_LIBRARIES = Path("/usr/share/gocode")
_CONTRACT = "bookstore/v1/books.proto"
_PROGRAMS = ("go", "gcc", "protoc-gen-go", "protoc-gen-go-grpc")
_PACKAGES = ("google.golang.org/grpc", "google.golang.org/protobuf", "github.com/mattn/go-sqlite3")
_INSTALL = (
    "apt install golang-go gcc protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev golang-google-protobuf-dev "
    "golang-github-golang-protobuf-1-5-dev golang-github-mattn-go-sqlite3-dev"
)

#: The program that `build_go_program` makes.
GO_PROGRAM = _BUILD / "bookstore-go"


def missing_for_go() -> str:
    """Return what the build lacks and how to install it, or "" if it lacks nothing."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    missing += [package for package in _PACKAGES if not (_LIBRARIES / "src" / package).is_dir()]
    return f"{', '.join(missing)} is missing: {_INSTALL}" if missing else ""


def build_go_program() -> None:
    """Generate the Go code of the contract and build the program. Raises `BenchmarkError`."""
    shutil.rmtree(_BUILD / "src", ignore_errors=True)
    shutil.copytree(_SOURCES, _BUILD / "src" / "server")
    google_protos = sysconfig.get_path("purelib")
    protos = ["--proto_path", str(_ROOT / "protos"), "--proto_path", google_protos]
    code = ["--go_out", str(_BUILD / "src"), "--go-grpc_out", str(_BUILD / "src")]
    _run([sys.executable, "-m", "grpc_tools.protoc", *protos, *code, _CONTRACT])
    _run(["go", "build", "-o", str(GO_PROGRAM), "server"])


def go_version() -> str:
    """Return the version of Go."""
    return _run(["go", "version"]).removeprefix("go version ").strip()


def _run(command: list[str]) -> str:
    environment = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPATH": f"{_BUILD}{os.pathsep}{_LIBRARIES}"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{finished.stderr[-3_000:]}")
    return finished.stdout
