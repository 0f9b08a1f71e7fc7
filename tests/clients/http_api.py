"""The HTTP API, tried by schemathesis: whatever its own description lets one ask, it answers as described, and never with an error of the
server's.

KENTONGAN names the binary.
"""

import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import unittest

from own_broker import OwnBroker
from support import DEADLINE_SECONDS

# Requests to each operation, drawn from a fixed seed, so that a failure comes again.
EXAMPLES = 12
SEED = 20

SECONDS_MAX = 120

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def token(directory, role):
    """A token of this role, in the file that the broker reads."""
    made = subprocess.run(
        [os.environ["KENTONGAN"], "ctl", "token", role, "--role", role, "--file", pathlib.Path(directory, "tokens")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    return made.stdout.strip()


class HttpApi(unittest.TestCase):
    def setUp(self):
        directory = self.enterContext(tempfile.TemporaryDirectory(prefix="kentongan-api-"))
        self.directory = directory
        self.token = token(directory, "administrator")
        settings = (
            f'cluster.address = "127.0.0.1:{free_port()}"\n'
            f'api.address = "127.0.0.1:0"\napi.tokens_file = "{directory}/tokens"\n'
        )
        self.broker = OwnBroker(directory, [""], settings)
        self.addCleanup(self.broker.stop)
        line = self.broker.wait_for_log("listening for operators")
        self.url = f"http://{re.search(r'127.0.0.1:[0-9]+', line)[0]}/api/v1"

    def test_whatever_is_asked_is_answered_as_described(self):
        command = [
            pathlib.Path(sys.executable).with_name("schemathesis"),
            "run",
            f"{self.url}/openapi.json",
            *("--header", f"Authorization: Bearer {self.token}"),
            *("--checks", CHECKS),
            *("--phases", "examples,fuzzing"),
            # They answer when the time is over that is asked for; broker/tests/it/cluster/watching.rs tries them.
            *("--exclude-path", "/api/v1/trace", "--exclude-path", "/api/v1/top-topics"),
            *("--max-examples", str(EXAMPLES)),
            *("--seed", str(SEED)),
            *("--generation-deterministic", "--no-shrink"),
            *("--request-timeout", str(DEADLINE_SECONDS)),
            "--no-color",
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, cwd=self.directory)
        self.assertEqual(ran.returncode, 0, f"{ran.stdout}\n{ran.stderr}")
        print(next((line for line in ran.stdout.splitlines() if "generated" in line), "").strip())


if __name__ == "__main__":
    unittest.main(verbosity=2)
