"""Three processes that are one broker, on this machine, for suites that kill some of them.

KENTONGAN names the binary.
"""

import os
import pathlib
import re
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# What the fault lab preloads into nodes.
PRELOAD = pathlib.Path(__file__).resolve().parents[2] / "loadtest" / "src" / "faults" / "preload.c"

# Time within which nodes form a cluster, or one that was killed is back.
READY_SECONDS = 30


def place():
    """An address of the loopback network that no other process has: nodes must know each other's ports before they listen."""
    number = os.getpid()  # 22 bits.
    return f"127.{192 + (number >> 16) % 63}.{number >> 8 & 255}.{number & 255}"


class Node:
    """A process of the cluster, or its place while it is down. Its addresses and its data directory stay what they are."""

    def __init__(self, number, host, directory, listener):
        base = 7000 + 3 * number
        self.host, self.port = host, base + 1
        self.http = f"{host}:{base + 2}"
        self.log = pathlib.Path(directory, f"n{number}.log")
        peers = [f"{host}:{7000 + 3 * other}" for other in range(3)]
        self.peers = peers[number]
        self.command = [os.environ["KENTONGAN"], "serve", "--node", f"n{number}", "--seeds", ",".join(peers)]
        self.command += ["--cluster", peers[number], "--http", self.http]
        self.command += ["--set", f'listener=[{{address="{host}:{self.port}"{listener}}}]']
        self.command += ["--data-dir", f"{directory}/n{number}"]
        self.process = None
        self.environment = {}

    def start(self):
        with self.log.open("a", encoding="utf-8") as log:
            environment = os.environ | self.environment
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def set_clock_ahead(self, seconds):
        """Of the wall clock of the processes from the next start on. Takes a C compiler."""
        directory = self.log.parent
        library, faults = directory / "preload.so", directory / f"{self.log.stem}.faults"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, PRELOAD, "-ldl"], check=True)
        faults.write_bytes(struct.pack("=qq", seconds, 0))
        self.environment = {"LD_PRELOAD": str(library), "LAB_FAULTS": str(faults)}

    def kill(self):
        """kill -9."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://{self.http}/readyz", timeout=1).status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def metric(self, name):
        """As /metrics has it; 0 of a node that does not run."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=1) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return 0
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def connections(self):
        return int(self.metric("kentongan_connections"))

    def wait_until_ready(self):
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"a node is not ready:\n{self.log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(0.02)

    def restart(self):
        self.kill()
        self.start()
        self.wait_until_ready()

    @property
    def address(self):
        return (self.host, self.port)


class Cluster:
    """Three nodes, ready for clients. `listener` is what more each says of the one that it has."""

    def __init__(self, listener=""):
        self.directory = tempfile.TemporaryDirectory(prefix="kentongan-cluster-")
        host = place()
        self.nodes = [Node(number, host, self.directory.name, listener) for number in range(3)]
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_ready()

    def administer(self, node, *arguments):
        """Runs `kentongan cluster`, asked at a node; returns what it prints."""
        command = [os.environ["KENTONGAN"], "cluster", *arguments, "--peer", self.nodes[node].peers]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def restart_killed(self):
        for node in self.nodes:
            if node.process is None:
                node.restart()

    def stop(self):
        for node in self.nodes:
            node.kill()
        self.directory.cleanup()
