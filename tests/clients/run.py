#!/usr/bin/env python3
"""Tries foreign MQTT clients on a broker.

    run.py --broker target/debug/kentongan      a Kentongan of its own, stopped at the end
    run.py --mosquitto /usr/sbin/mosquitto      the same suites on mosquitto, to check the suites
    run.py --address 127.0.0.1:1883             a broker that runs already

Further arguments name the suites to run (default: all). Ends with `total: N passed, N failed`.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent

START_SECONDS = 20
STOP_SECONDS = 20
SUITE_SECONDS = 300


class Failure(Exception):
    """Why the suites could not be run."""


class Kentongan:
    """A broker with a data directory of its own on ports that the system chose."""

    name = "kentongan"

    def __init__(self, binary, directory, settings=None):
        """The listeners are those of the file `settings`, if there is one."""
        listeners = ["--config", settings] if settings else ["--mqtt", "127.0.0.1:0"]
        self.log = pathlib.Path(directory, "broker.log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [binary, "serve", *listeners, "--http", "127.0.0.1:0", "--data-dir", f"{directory}/data"],
            env={**os.environ, "KENTONGAN_LOG__FORMAT": "json"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # In the order of the listeners; the first is the one for everybody.
        self.address, self.addresses, self.http = None, [], None
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        if not self.listening.wait(START_SECONDS):
            end = self.log_end()
            self.stop()
            raise Failure(f"the broker did not say where it listens:\n{end}")

    def _read(self):
        """Keeps the log and takes the addresses from it. To the end: a full pipe would stop the broker."""
        for line in self.process.stderr:
            self.log.write(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            fields = {**entry, **entry.get("fields", {})}
            if "listening for HTTP" in str(fields.get("message")):
                self.http = fields["address"]
            if "listening for MQTT" in str(fields.get("message")):
                self.addresses.append(fields["address"])
                self.address = self.addresses[0]
                self.listening.set()

    def log_end(self):
        self.log.flush()
        self.log.seek(0)
        return "".join(self.log.readlines()[-40:])

    def stop(self):
        """SIGTERM; returns whether it ended as it should."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "none: it had to be killed"
        self.reader.join()
        self.process.stderr.close()
        if code != 0:
            print(f"the broker's exit code: {code}\n{self.log_end()}")
        self.log.close()
        return code == 0


class Mosquitto:
    """A mosquitto, to check the suites by."""

    name = "mosquitto"

    def __init__(self, binary, directory):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        configuration = pathlib.Path(directory, "mosquitto.conf")
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "sys_interval 1"]
        lines += ["max_queued_messages 0", "max_inflight_messages 0"]
        configuration.write_text("\n".join(lines), encoding="utf-8")
        log = pathlib.Path(directory, "broker.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen([binary, "-c", configuration], stdout=log, stderr=log)
        self.address = f"127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise Failure("mosquitto does not listen") from None
                time.sleep(0.02)

    def stop(self):
        self.process.terminate()
        return self.process.wait(STOP_SECONDS) == 0


class Running:
    """A broker that was there before."""

    name = "running"

    def __init__(self, address):
        self.address = address

    def stop(self):
        return True


def suites(broker, own_binary):
    """Name, command and more environment of every suite."""
    python = [sys.executable, "-m", "unittest", "-v"]
    node = ["node", "--test", "--test-reporter=tap"]
    everything = {
        "paho": ([*python, "paho_core"], {}),
        "paho-v5": ([*python, "paho_v5"], {}),
        "mqtt.js": ([*node, "mqttjs.mjs"], {}),
        "mosquitto-clients": ([*python, "command_line"], {}),
    }
    if broker.name == "kentongan":
        own = {"MQTT_SUB": f"{own_binary} sub", "MQTT_PUB": f"{own_binary} pub", "MQTT_RR": f"{own_binary} rr"}
        everything["kentongan-clients"] = ([*python, "command_line"], own)
        everything.update(websocket_suites(own_binary, node, python))
        everything["tls"] = ([*python, "tls"], {"KENTONGAN": own_binary})
        everything["tokens"] = ([*python, "tokens"], {"KENTONGAN": own_binary})
        everything["at-a-terminal"] = ([*python, "at_a_terminal"], {"KENTONGAN": own_binary})
        everything["unix-socket"] = ([*python, "unix_socket"], {"KENTONGAN": own_binary})
        everything["three-nodes"] = ([*python, "three_nodes"], {"KENTONGAN": own_binary})
        everything["side-by-side"] = ([*python, "side_by_side"], {"KENTONGAN": own_binary})
        everything["balancers"] = ([*python, "balancers"], {"KENTONGAN": own_binary})
        everything["own-tls"] = ([*python, "own_tls"], {"KENTONGAN": own_binary})
        everything["http-authentication"] = ([*python, "http_authentication"], {"KENTONGAN": own_binary})
        everything["webhook"] = ([*python, "webhook"], {"KENTONGAN": own_binary})
        everything["proxy-protocol"] = ([*python, "proxy_protocol"], {"KENTONGAN": own_binary})
        everything["http-api"] = ([*python, "http_api"], {"KENTONGAN": own_binary})
        everything["guide"] = ([*python, "guide"], {"KENTONGAN": own_binary})
        everything["browser"] = ([*python, "browser"], {"KENTONGAN": own_binary})
    return everything


def websocket_suites(own_binary, node, python):
    """The suites of MQTT.js and of our own clients once more, by WebSocket without TLS and with it: on a broker of their own."""
    everything = {}
    for name, tls in (("ws", False), ("wss", True)):
        own = {"KENTONGAN": own_binary, "WEBSOCKET_TLS": "1" if tls else ""}
        everything[f"mqtt.js-{name}"] = ([sys.executable, "by_websocket.py", *node, "mqttjs.mjs"], own)
        everything[f"kentongan-clients-{name}"] = (
            [sys.executable, "by_websocket.py", *python, "command_line.CommandLine"],
            {**own, "MQTT_SUB": f"{own_binary} sub", "MQTT_PUB": f"{own_binary} pub", "MQTT_RR": f"{own_binary} rr"},
        )
    return everything


def count(output):
    """How many tests passed and failed, from what unittest or node's runner wrote."""
    ran = re.search(r"^Ran (\d+) tests?", output, re.M)
    if ran:
        # Subtests fail one by one; here a test counts once.
        bad = len(set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+)", output, re.M)))
        return max(int(ran[1]) - bad, 0), bad
    passed = re.search(r"^# pass (\d+)", output, re.M)
    failed = [int(number) for number in re.findall(r"^# (?:fail|cancelled) (\d+)", output, re.M)]
    return int(passed[1]) if passed else 0, sum(failed)


def run(name, command, environment):
    """Runs one suite, shows what it wrote if it failed, and returns its counts."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=HERE,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SUITE_SECONDS,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode(errors="replace"), f"none after {SUITE_SECONDS} s"
    passed, failed = count(output)
    if code != 0:
        failed = max(failed, 1)
        print(output)
        print(f"{name}: exit code {code}")
    print(f"{name}: {passed} passed, {failed} failed ({time.monotonic() - started:.1f} s)", flush=True)
    return passed, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--broker", metavar="BINARY")
    which.add_argument("--mosquitto", metavar="BINARY")
    which.add_argument("--address", metavar="HOST:PORT")
    parser.add_argument("suites", nargs="*")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="kentongan-clients-") as directory:
        binary = arguments.broker and os.path.abspath(arguments.broker)
        if binary:
            broker = Kentongan(binary, directory)
        elif arguments.mosquitto:
            broker = Mosquitto(arguments.mosquitto, directory)
        else:
            broker = Running(arguments.address)
        passed = failed = 0
        try:
            host, port = broker.address.rsplit(":", 1)
            everything = suites(broker, binary)
            for name in arguments.suites or everything:
                if name not in everything:
                    raise Failure(f"no suite {name}; there are: {', '.join(everything)}")
                command, environment = everything[name]
                counts = run(name, command, {"MQTT_HOST": host, "MQTT_PORT": port, **environment})
                passed, failed = passed + counts[0], failed + counts[1]
        finally:
            stopped = broker.stop()
        failed += 0 if stopped else 1
        print(f"total: {passed} passed, {failed} failed")
        return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"run.py: {failure}")
