"""The JSON API responds to generated requests as its OpenAPI document says (schemathesis)."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.gateway.servers import http_server
from tests.tokens import Issuer, token_settings

# The document is in some respects stricter and in others laxer than the API, which has rules that JSON Schema cannot
# express (the syntax of a filter), and accepts more than is documented (by proto3's rules null, and "1" for 1).
CHECKS_LEFT_OUT = "positive_data_acceptance,negative_data_rejection"
EXAMPLES = 2
# The operation whose responses have no end, which schemathesis would wait for.
ENDLESS = "WatchBooks"


@pytest.mark.check
@pytest.mark.thorough
@pytest.mark.timeout(600)
async def test_no_response_is_an_internal_error_or_undocumented(tmp_path: Path) -> None:
    require(importlib.util.find_spec("schemathesis"), "schemathesis is missing (`make check` installs it)")
    issuer = Issuer()
    async with http_server(tmp_path, **token_settings(issuer.write_jwks(tmp_path / "jwks.json"))) as server:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"http://{server.http_address}/openapi.json",
            f"--header=Authorization: Bearer {issuer.token()}",
            f"--exclude-checks={CHECKS_LEFT_OUT}",
            f"--exclude-operation-id={ENDLESS}",
            f"--max-examples={EXAMPLES}",
            "--generation-deterministic",
            "--continue-on-failure",
            "--no-color",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, output.decode()
    assert "Tested: 12\n" in output.decode()
