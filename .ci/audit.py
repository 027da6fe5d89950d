"""Looks up the exact versions in constraints.txt among known vulnerabilities, where a service that knows them answers.

The exit status is pip-audit's: 1 for a finding. Where the service is away, standard error says so and the status is 0.

The service is OSV. PyPI's, pip-audit's own choice, would deceive: a mirror that has no such pages answers 404, which
pip-audit takes for packages that it need not look up, and ends with 0.
"""

import json
import os
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

_OSV_URL = "https://api.osv.dev/v1/query"
_PATIENCE_SECONDS = 5
# Known to be vulnerable for years: who finds nothing here is not the service.
_QUESTION = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}


def main() -> None:
    """Audit, with the service of the variable OSV_URL if there is one; arguments go on to pip-audit."""
    url = os.environ.get("OSV_URL", _OSV_URL)
    reason = why_it_cannot_be_asked(url)
    if reason:
        print(f"pip-audit SKIPPED: {url} {reason}", file=sys.stderr)
        return
    command = [
        str(Path(sys.executable).parent / "pip-audit"),
        # Every version is there and exact: nothing has to be resolved, and no package is fetched.
        *("--requirement", "constraints.txt", "--no-deps", "--disable-pip"),
        *("--vulnerability-service", "osv", "--osv-url", url, "--progress-spinner", "off"),
        *sys.argv[1:],
    ]
    os.execv(command[0], command)  # noqa: S606  a list, and nothing in it from outside but the user's own arguments


def why_it_cannot_be_asked(url: str) -> str:
    """Say why the service is of no use, or "" where it is."""
    reasons: list[str] = []
    # In a thread, because urlopen's timeout does not bound the look-up of a name.
    thread = threading.Thread(target=lambda: reasons.append(_ask(url)), daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return reasons[0] if reasons else f"did not answer within {_PATIENCE_SECONDS} seconds"


def _ask(url: str) -> str:
    question = Request(url, json.dumps(_QUESTION).encode(), {"Content-Type": "application/json"})  # noqa: S310  it is ours
    try:
        with urlopen(question) as answer:  # noqa: S310  as above
            found = json.load(answer)
    except (OSError, ValueError) as error:
        return f"cannot be asked ({error})"
    return "" if isinstance(found, dict) and found.get("vulns") else "does not know a vulnerability that OSV knows"


if __name__ == "__main__":
    main()
