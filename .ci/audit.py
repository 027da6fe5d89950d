"""Checks the exact versions in constraints.txt for known vulnerabilities with pip-audit and OSV.

The exit status is pip-audit's: 1 if it finds any. If OSV is unavailable, standard error says so and the status is 0.

PyPI's vulnerability service, pip-audit's default, is not used: a mirror without it returns 404, which pip-audit treats
as packages without vulnerabilities, and exits with 0.
"""

import json
import os
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

_OSV_URL = "https://api.osv.dev/v1/query"
_TIMEOUT_SECONDS = 5
# Vulnerable for years: a service that finds nothing for this version is not OSV.
_KNOWN_VULNERABLE = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}


def main() -> None:
    """Run the audit. The variable OSV_URL overrides the service; arguments are passed to pip-audit."""
    url = os.environ.get("OSV_URL", _OSV_URL)
    reason = why_unavailable(url)
    if reason:
        print(f"pip-audit SKIPPED: {url} {reason}", file=sys.stderr)
        return
    command = [
        str(Path(sys.executable).parent / "pip-audit"),
        # All versions are exact, so nothing is resolved or downloaded.
        *("--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
        *("--vulnerability-service", "osv", "--osv-url", url, "--progress-spinner", "off"),
        *sys.argv[1:],
    ]
    os.execv(command[0], command)  # noqa: S606  a list without untrusted input


def why_unavailable(url: str) -> str:
    """Return why the service cannot be used, or "" if it can."""
    reasons: list[str] = []
    # In a thread, because urlopen's timeout does not bound the DNS lookup.
    thread = threading.Thread(target=lambda: reasons.append(_query(url)), daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS)
    return reasons[0] if reasons else f"did not respond within {_TIMEOUT_SECONDS} seconds"


def _query(url: str) -> str:
    body = json.dumps(_KNOWN_VULNERABLE).encode()
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  the URL is trusted
    try:
        with urlopen(request) as response:  # noqa: S310  the URL is trusted
            found = json.load(response)
    except (OSError, ValueError) as error:
        return f"cannot be queried ({error})"
    return "" if isinstance(found, dict) and found.get("vulns") else "does not return a vulnerability known to OSV"


if __name__ == "__main__":
    main()
