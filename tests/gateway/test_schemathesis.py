"""What the JSON API answers to requests that nobody has thought of is what its document says: schemathesis tries."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.gateway.servers import http_server
from tests.tokens import Issuer, token_settings

# Both ways round the document is stricter or laxer than the API, which knows more than JSON Schema can say (a filter
# is to be one), and takes more than anybody is told to send (by proto3's rules null, and "1" for 1).
CHECKS_LEFT_OUT = "positive_data_acceptance,negative_data_rejection"
EXAMPLES = 6


@pytest.mark.thorough
@pytest.mark.timeout(600)
async def test_no_answer_is_an_internal_error_or_outside_the_document(tmp_path: Path) -> None:
    require(importlib.util.find_spec("schemathesis"), "schemathesis is missing (`make check` installs it)")
    issuer = Issuer()
    async with http_server(tmp_path, **token_settings(issuer.write_jwks(tmp_path / "jwks.json"))) as server:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("schemathesis"),
            "run",
            f"http://{server.http_address}/openapi.json",
            f"--header=Authorization: Bearer {issuer.token()}",
            f"--exclude-checks={CHECKS_LEFT_OUT}",
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
    assert "Tested: 8\n" in output.decode()
