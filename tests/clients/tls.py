"""mosquitto's clients over TLS, with and without certificates of their own. A broker of its own; openssl makes the certificates."""

import os
import pathlib
import subprocess
import tempfile
import unittest

from run import Kentongan
from support import DEADLINE_SECONDS, unique

KENTONGAN = os.environ["KENTONGAN"]

SETTINGS = """
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate_file = "{0}/server.crt"
key_file = "{0}/server.key"
client_ca_file = "{0}/ca.crt"
client_certificate = "{1}"
crl_file = "{0}/ca.crl"
"""

AUTHORITY = """
[ca]
default_ca = own
[own]
database = {0}/index.txt
crlnumber = {0}/crlnumber
default_md = sha256
default_crl_days = 30
"""


def openssl(directory, *arguments):
    done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0, done.stderr


class Authority:
    """Makes certificates in a directory, as an operator would."""

    def __init__(self, directory):
        self.directory = directory
        pathlib.Path(directory, "index.txt").touch()
        pathlib.Path(directory, "crlnumber").write_text("01\n", encoding="ascii")
        pathlib.Path(directory, "ca.cnf").write_text(AUTHORITY.format(directory), encoding="ascii")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(directory, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", "-days", "30")
        self.certify("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name in ("device", "revoked"):
            self.certify(name, "extendedKeyUsage=clientAuth")
        ca = ["ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt"]
        openssl(directory, *ca, "-revoke", "revoked.crt")
        openssl(directory, *ca, "-gencrl", "-out", "ca.crl")

    def certify(self, name, extension):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        issuer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-days", "30"]
        request = ["req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
        # What openssl would make otherwise is an authority, which no client is.
        openssl(self.directory, *request, *issuer, "-addext", "basicConstraints=CA:FALSE", "-addext", extension)

    def as_client(self, name=None):
        options = ["--cafile", f"{self.directory}/ca.crt"]
        return options + (["--cert", f"{self.directory}/{name}.crt", "--key", f"{self.directory}/{name}.key"] if name else [])


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-tls-")
        cls.addClassCleanup(directory.cleanup)
        cls.authority = Authority(directory.name)
        cls.directory = directory.name

    def broker(self, demand):
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.directory))
        settings = directory / "kentongan.toml"
        settings.write_text(SETTINGS.format(self.directory, demand), encoding="utf-8")
        broker = Kentongan(KENTONGAN, directory, settings=settings)
        self.addCleanup(broker.stop)
        return ["-h", "localhost", "-p", broker.address.rsplit(":", 1)[1]]

    def pub(self, *arguments):
        command = ["mosquitto_pub", "-q", "1", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    def passes_a_message(self, address, options):
        """A retained message, so that nothing depends on who is there first."""
        topic = unique("tls")
        done = self.pub(*address, *options, "-t", topic, "-m", "over TLS", "-r")
        self.assertEqual(done.returncode, 0, done.stderr)
        command = ["mosquitto_sub", *address, *options, "-t", topic, "-C", "1", "-W", str(DEADLINE_SECONDS)]
        got = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS * 2)
        self.assertEqual((got.returncode, got.stdout), (0, "over TLS\n"), got.stderr)

    def test_without_a_certificate(self):
        address = self.broker("optional")
        for version in ("tlsv1.2", "tlsv1.3"):
            with self.subTest(version=version):
                self.passes_a_message(address, [*self.authority.as_client(), "--tls-version", version])

    def test_with_a_certificate(self):
        for demand in ("optional", "required"):
            with self.subTest(demand=demand):
                self.passes_a_message(self.broker(demand), [*self.authority.as_client("device"), "--tls-alpn", "mqtt"])

    def test_a_certificate_is_required_and_must_be_good(self):
        address = self.broker("required")
        for name in (None, "revoked"):
            with self.subTest(name=name):
                done = self.pub(*address, *self.authority.as_client(name), "-t", "never", "-m", "x")
                self.assertNotEqual(done.returncode, 0)

    def test_a_client_that_does_not_trust_the_server_leaves(self):
        done = self.pub(*self.broker("optional"), "--cafile", f"{self.directory}/device.crt", "-t", "never", "-m", "x")
        self.assertNotEqual(done.returncode, 0)


if __name__ == "__main__":
    unittest.main()
