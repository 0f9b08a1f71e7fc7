"""A page in headless Chromium, with MQTT.js from this directory's modules: over ws and wss, and from an origin that may not.

KENTONGAN names the broker. The page is served from here and tells here what it saw.
"""

import http.server
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from certificates import certificate
from own_broker import OwnBroker
from support import DEADLINE_SECONDS

HERE = pathlib.Path(__file__).resolve().parent
MQTT_JS = HERE / "node_modules" / "mqtt" / "dist" / "mqtt.min.js"
CHROMIUM = "chromium-headless-shell"

# Starting a browser takes longer than anything that MQTT does.
PAGE_SECONDS = 60

PAGE = """<!DOCTYPE html>
<script src="/mqtt.js"></script>
<script>
const tell = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
const [url, version] = decodeURIComponent(location.search.slice(1)).split(" ");
async function run() {
  const client = mqtt.connect(url, { protocolVersion: Number(version), reconnectPeriod: 0, connectTimeout: 10000 });
  const came = [];
  const enough = new Promise((resolve, reject) => {
    client.on("message", (topic, payload) => came.push([topic, payload.length]) === 4 && resolve());
    client.on("error", (error) => reject(error));
    client.on("close", () => reject(new Error("closed")));
  });
  enough.catch(() => {});
  await Promise.race([new Promise((resolve) => client.once("connect", resolve)), enough]);
  await client.subscribeAsync("page/#", { qos: 2 });
  for (const qos of [0, 1, 2]) await client.publishAsync(`page/${qos}`, "hello", { qos });
  await client.publishAsync("page/large", "x".repeat(500000), { qos: 1 });
  await enough;
  await client.endAsync();
  return came.sort();
}
run().then((came) => tell({ came }), (error) => tell({ error: String(error) }));
</script>
"""


class Pages(http.server.ThreadingHTTPServer):
    """Serves the page, and keeps what it tells."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.results = queue.Queue()
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = MQTT_JS.read_bytes() if self.path == "/mqtt.js" else PAGE.encode()
        kind = "text/javascript" if self.path == "/mqtt.js" else "text/html"
        self.answer(200, kind, body)

    def do_POST(self):
        self.server.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(204, "text/plain", b"")

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@unittest.skipUnless(shutil.which(CHROMIUM), f"{CHROMIUM} is not installed")
class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="kentongan-browser-")
        cls.addClassCleanup(cls.directory.cleanup)
        cls.pages = Pages()
        cls.addClassCleanup(cls.pages.shutdown)
        chain, key = certificate(cls.directory.name)
        websocket = f'[listener.websocket]\norigins = ["http://127.0.0.1:{cls.pages.port}"]\n'
        tls = f'[listener.tls]\ncertificate_file = "{chain}"\nkey_file = "{key}"\n'
        cls.broker = OwnBroker(cls.directory.name, [websocket, websocket + tls])
        cls.addClassCleanup(cls.broker.stop)

    def visit(self, host, scheme, version):
        """What the page tells."""
        port = self.broker.ports[0 if scheme == "ws" else 1]
        target = f"http://{host}:{self.pages.port}/?{scheme}://127.0.0.1:{port}/mqtt%20{version}"
        with tempfile.TemporaryDirectory(prefix="kentongan-profile-", ignore_cleanup_errors=True) as profile:
            # The certificate is one of our own making; as root there is no sandbox; without a port the browser leaves at once.
            flags = ["--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--remote-debugging-port=0"]
            command = [CHROMIUM, *flags, f"--user-data-dir={profile}", target]
            silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            browser = subprocess.Popen(command, **silent, start_new_session=True)
            try:
                return self.pages.results.get(timeout=PAGE_SECONDS)
            except queue.Empty:
                self.fail("the page told nothing")
            finally:
                # It is several processes.
                os.killpg(browser.pid, signal.SIGKILL)
                browser.wait(DEADLINE_SECONDS)

    def test_a_page_talks_mqtt(self):
        came = [["page/0", 5], ["page/1", 5], ["page/2", 5], ["page/large", 500000]]
        for scheme in ("ws", "wss"):
            for version in (4, 5):
                with self.subTest(scheme=scheme, version=version):
                    self.assertEqual(self.visit("127.0.0.1", scheme, version), {"came": came})

    def test_a_page_of_another_origin_may_not(self):
        self.assertIn("error", self.visit("localhost", "ws", 5))
        self.broker.wait_for_metric('kentongan_connects_refused_total{reason="websocket"}', 1)


if __name__ == "__main__":
    unittest.main()
