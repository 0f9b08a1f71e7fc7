"""HAProxy ends TLS and says by the PROXY protocol, versions 1 and 2, who comes; mosquitto's clients and ours come through it."""

import os
import pathlib
import socket
import subprocess
import tempfile
import unittest

from certificates import certificate
from own_broker import OwnBroker
from support import DEADLINE_SECONDS, unique, wait_for

OWN = [os.environ["KENTONGAN"], "pub"]

# Whence the clients come, so that theirs is not the balancer's own address.
FROM = "127.0.0.9"

CONFIGURATION = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
{listeners}
"""

LISTENER = """
listen {name}
    bind 127.0.0.1:{port} ssl crt {pem} ca-file {authority} verify optional
    server broker 127.0.0.1:{broker} {says}
"""

SAYS = {"v1": "send-proxy", "v2": "send-proxy-v2", "v2-certificate": "send-proxy-v2-ssl-cn"}


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class ProxyProtocol(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-proxy-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name
        cls.chain, key = certificate(cls.directory)
        cls.device = certificate(cls.directory, "device", "meter-7")
        believed = 'allow_anonymous = true\nproxy_protocol_from = ["127.0.0.1"]\nproxy_protocol_identity = true\n'
        cls.broker = OwnBroker(cls.directory, [believed])
        cls.addClassCleanup(cls.broker.stop)
        pem = pathlib.Path(cls.directory, "proxy.pem")
        pem.write_bytes(cls.chain.read_bytes() + key.read_bytes())
        cls.ports = dict(zip(SAYS, free_ports(len(SAYS))))
        listeners = "".join(
            LISTENER.format(
                name=name, port=port, pem=pem, authority=cls.device[0], broker=cls.broker.ports[0], says=SAYS[name]
            )
            for name, port in cls.ports.items()
        )
        file = pathlib.Path(cls.directory, "haproxy.cfg")
        file.write_text(CONFIGURATION.format(listeners=listeners), encoding="utf-8")
        log = pathlib.Path(cls.directory, "haproxy.log").open("w", encoding="utf-8")
        cls.addClassCleanup(log.close)
        cls.proxy = subprocess.Popen(["haproxy", "-db", "-f", file], stdout=log, stderr=log)
        cls.addClassCleanup(cls.proxy.wait, DEADLINE_SECONDS)
        cls.addClassCleanup(cls.proxy.terminate)
        wait_for("HAProxy", lambda: cls.listens(cls.ports["v1"]))

    @staticmethod
    def listens(port):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            return False

    def publish(self, command, name, *more):
        """Publishes through HAProxy; returns the line of the broker's log about the client."""
        client_id = unique(name)
        flags = ["-h", "localhost", "-p", str(self.ports[name]), "-A", FROM, "--cafile", self.chain, *more]
        message = ["-i", client_id, "-q", "1", "-t", "t", "-m", "x"]
        done = subprocess.run([*command, *flags, *message], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.broker.wait_for_log("connected", client_id)

    def test_the_client_is_known_by_its_own_address(self):
        for command in (["mosquitto_pub"], OWN):
            for name in SAYS:
                with self.subTest(command=command, name=name):
                    self.assertIn(f'"{FROM}:', self.publish(command, name))

    def test_a_certificate_that_the_balancer_verified_names_the_client(self):
        certificate_of_its_own = ["--cert", self.device[0], "--key", self.device[1]]
        for command in (["mosquitto_pub"], OWN):
            with self.subTest(command=command):
                self.assertIn("meter-7", self.publish(command, "v2-certificate", *certificate_of_its_own))
                self.assertNotIn("meter-7", self.publish(command, "v2-certificate"))

    def test_who_says_nothing_is_refused(self):
        address = ["-h", "127.0.0.1", "-p", str(self.broker.ports[0])]
        command = ["mosquitto_pub", *address, "-t", "t", "-m", "x"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        self.assertNotEqual(done.returncode, 0)
        self.broker.wait_for_metric('kentongan_connects_refused_total{reason="proxy_header"}', 1)


if __name__ == "__main__":
    unittest.main()
