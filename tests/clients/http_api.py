"""The HTTP API, tried by schemathesis: whatever its own description lets one ask, it answers as described, and never with an error of the
server's.

KENTONGAN names the binary.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.request

from own_broker import OwnBroker
from support import DEADLINE_SECONDS

# Requests to each operation, drawn from a fixed seed, so that a failure comes again.
EXAMPLES = 12
SEED = 20

SECONDS_MAX = 120

# They answer for as many seconds as one asks for.
LASTING = ("/api/v1/trace", "/api/v1/top-topics")

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

    def begin(self, description, *more):
        """schemathesis, as it asks whatever `description` lets one ask."""
        command = [
            pathlib.Path(sys.executable).with_name("schemathesis"),
            "run",
            description,
            *("--header", f"Authorization: Bearer {self.token}"),
            *("--checks", CHECKS),
            *("--phases", "examples,fuzzing"),
            *("--max-examples", str(EXAMPLES)),
            *("--seed", str(SEED)),
            *("--generation-deterministic", "--no-shrink"),
            *("--request-timeout", str(DEADLINE_SECONDS)),
            "--no-color",
            *more,
        ]
        # Each in a directory of its own: it keeps something there.
        directory = tempfile.mkdtemp(dir=self.directory)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory)
        self.addCleanup(process.kill)
        return process

    def finish(self, process):
        said, _ = process.communicate(timeout=SECONDS_MAX)
        self.assertEqual(process.returncode, 0, said)
        print(next((line for line in said.splitlines() if "generated" in line), "").strip())
        return said

    def described_for_a_second(self):
        """The description in a file, where what takes as long as one asks for is to be asked for a second."""
        with urllib.request.urlopen(f"{self.url}/openapi.json", timeout=DEADLINE_SECONDS) as answer:
            description = json.load(answer)
        for path in LASTING:
            (seconds,) = [one for one in description["paths"][path]["get"]["parameters"] if one["name"] == "seconds"]
            seconds["required"] = True
            seconds["schema"] |= {"maximum": 1, "default": 1}
        file = pathlib.Path(self.directory, "openapi.json")
        file.write_text(json.dumps(description), encoding="utf-8")
        return file

    def test_whatever_is_asked_is_answered_as_described(self):
        excluded = [option for path in LASTING for option in ("--exclude-path", path)]
        most = self.begin(f"{self.url}/openapi.json", *excluded)
        # Only what is described: whoever leaves the seconds out waits for minutes.
        included = [option for path in LASTING for option in ("--include-path", path)]
        base = self.url.removesuffix("/api/v1")
        lasting = self.begin(self.described_for_a_second(), "--url", base, "--mode", "positive", *included)
        self.finish(most)
        said = self.finish(lasting)
        self.assertRegex(said, rf"{len(LASTING)} selected")


if __name__ == "__main__":
    unittest.main(verbosity=2)
