"""Our own clients' flags for TLS and WebSocket, and what they say when something is wrong with the other side.

KENTONGAN names the binary.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from certificates import certificate
from own_broker import OwnBroker
from support import DEADLINE_SECONDS, unique


def tls(chain, key):
    return f'[listener.tls]\ncertificate_file = "{chain}"\nkey_file = "{key}"\n'


class OwnTls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-own-tls-")
        cls.addClassCleanup(directory.cleanup)
        cls.chain, key = certificate(directory.name)
        cls.elsewhere = certificate(directory.name, "elsewhere", "elsewhere", names="DNS:elsewhere.example")
        # A directory of authorities, with what else may lie there.
        cls.authorities = pathlib.Path(directory.name, "authorities")
        cls.authorities.mkdir()
        for file in (cls.chain, key, cls.elsewhere[0]):
            shutil.copy(file, cls.authorities)
        websocket = "[listener.websocket]\n"
        listeners = [tls(cls.chain, key), tls(cls.chain, key) + websocket, tls(*cls.elsewhere), websocket]
        cls.broker = OwnBroker(directory.name, listeners)
        cls.addClassCleanup(cls.broker.stop)
        cls.tls, cls.wss, cls.misnamed, cls.ws = cls.broker.ports

    def pub(self, *flags):
        command = [os.environ["KENTONGAN"], "pub", "-q", "1", "-m", "x", *map(str, flags)]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    def assert_published(self, *flags):
        done = self.pub(*flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""), flags)

    def assert_refused(self, text, *flags):
        done = self.pub(*flags)
        self.assertEqual(done.returncode, 1, flags)
        self.assertIn(text, done.stderr)

    def test_authorities_come_from_a_file_or_a_directory(self):
        address = ["-h", "localhost", "-p", self.tls, "-t", unique("t")]
        self.assert_published(*address, "--cafile", self.chain)
        self.assert_published(*address, "--capath", self.authorities)
        for version in ("tlsv1.2", "tlsv1.3"):
            self.assert_published(*address, "--cafile", self.chain, "--tls-version", version, "--alpn", "mqtt")

    def test_a_url_says_all_of_it(self):
        for scheme, port in (("mqtts", self.tls), ("wss", self.wss)):
            self.assert_published("-L", f"{scheme}://127.0.0.1:{port}/{unique('t')}", "--cafile", self.chain)
        self.assert_published("-L", f"ws://127.0.0.1:{self.ws}/{unique('t')}")

    def test_a_broker_that_proves_nothing_is_not_talked_to(self):
        address = ["-h", "localhost", "-t", "t", "-p"]
        self.assert_refused("--cafile", *address, self.tls, "--cafile", self.elsewhere[0])
        self.assert_refused("is -h the name in it?", *address, self.misnamed, "--cafile", self.elsewhere[0])
        self.assert_published(*address, self.misnamed, "--cafile", self.elsewhere[0], "--insecure")
        self.assert_refused("--cafile", *address, self.misnamed, "--cafile", self.chain, "--insecure")
        self.assert_refused("is it a port with TLS?", *address, self.ws, "--cafile", self.chain)

    def test_a_broker_without_a_websocket_is_told_apart(self):
        self.assert_refused("404", "-p", self.ws, "--ws", "--ws-path", "/elsewhere", "-t", "t")
        self.assert_refused("is it a port with WebSocket?", "-p", self.tls, "--ws", "-h", "localhost", "--cafile", self.chain, "-t", "t")


if __name__ == "__main__":
    unittest.main()
