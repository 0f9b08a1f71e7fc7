"""mosquitto's clients over a Unix socket, to a broker of their own."""

import os
import pathlib
import subprocess
import tempfile
import unittest

from run import Kentongan
from support import DEADLINE_SECONDS

SETTINGS = """
[[listener]]
address = "unix:{0}/kentongan.sock"
"""


class UnixSocket(unittest.TestCase):
    def test_a_message_passes(self):
        with tempfile.TemporaryDirectory(prefix="kentongan-unix-") as directory:
            settings = pathlib.Path(directory, "kentongan.toml")
            settings.write_text(SETTINGS.format(directory), encoding="utf-8")
            broker = Kentongan(os.environ["KENTONGAN"], directory, settings=settings)
            self.addCleanup(broker.stop)
            options = {"capture_output": True, "text": True, "timeout": DEADLINE_SECONDS * 2, "check": False}
            place = ["--unix", f"{directory}/kentongan.sock", "-t", "over/a/socket"]
            sent = subprocess.run(["mosquitto_pub", *place, "-m", "hello", "-r", "-q", "1"], **options)
            self.assertEqual(sent.returncode, 0, sent.stderr)
            got = subprocess.run(["mosquitto_sub", *place, "-C", "1", "-W", str(DEADLINE_SECONDS)], **options)
            self.assertEqual((got.returncode, got.stdout), (0, "hello\n"), got.stderr)


if __name__ == "__main__":
    unittest.main()
