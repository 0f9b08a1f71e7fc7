"""Runs a suite on a broker of its own, by WebSocket: by_websocket.py COMMAND...

KENTONGAN names the binary; with WEBSOCKET_TLS it is over TLS.
"""

import os
import subprocess
import sys
import tempfile

from certificates import certificate
from own_broker import OwnBroker


def main():
    tls = bool(os.environ["WEBSOCKET_TLS"])
    with tempfile.TemporaryDirectory(prefix="kentongan-websocket-") as directory:
        chain, key = certificate(directory)
        lines = f'[listener.tls]\ncertificate_file = "{chain}"\nkey_file = "{key}"\n' if tls else ""
        broker = OwnBroker(directory, ["", f"{lines}[listener.websocket]\n"])
        try:
            plain, port = broker.ports
            if "mqttjs.mjs" in sys.argv:
                more = {"MQTT_PORT": f"{port}", "MQTT_PROTOCOL": "wss" if tls else "ws", "NODE_EXTRA_CA_CERTS": f"{chain}"}
            else:
                # paho, which watches what our clients do, goes the plain way.
                flags = f"--ws -h 127.0.0.1 -p {port}" + (f" --cafile {chain}" if tls else "")
                more = {"MQTT_PORT": f"{plain}", "MQTT_ADDRESS_FLAGS": flags}
            code = subprocess.run(sys.argv[1:], env={**os.environ, "MQTT_HOST": "127.0.0.1", **more}).returncode
        finally:
            stopped = broker.stop()
    return code or (0 if stopped else 1)


if __name__ == "__main__":
    sys.exit(main())
