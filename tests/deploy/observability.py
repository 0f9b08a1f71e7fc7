"""What is in deploy/prometheus and deploy/grafana, asked of a Prometheus that watches three nodes under load.

deploy/look.sh starts them, as it is: this runs in a network of its own, where every port is free. KENTONGAN names the binary.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import paho.mqtt.client as paho
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
PROMETHEUS = "http://127.0.0.1:9090"
NODES = {"127.0.0.1:8090": 1883, "127.0.0.1:8091": 1884, "127.0.0.1:8092": 1885}
BALANCER = 2883
WEBHOOK = "127.0.0.1:8101"

READY_SECONDS = 30
DEADLINE_SECONDS = 30
# Figures are taken this often here; a rate wants two of them at least.
SCRAPE_INTERVAL = "1s"
RATE_INTERVAL = "10s"
MESSAGES_A_SECOND = 40

# The labels that there are. Their values are fixed, or groups and nodes.
LABELS = {"use", "class", "condition", "group", "le", "outcome", "peer", "qos", "reason", "type", "version"}
SERIES_MAX = 1000

# A name of a metric of ours, or of a process as every exporter has it.
METRIC = re.compile(r"\b(?:kentongan|process)_[a-z0-9_]+\b")


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def wait_for(what, condition, seconds=DEADLINE_SECONDS):
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            value = None
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.05)


def ask(expression):
    """The samples that an instant query has now."""
    answer = json.loads(get(f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def has_a_number(expression):
    return any(sample["value"][1] != "NaN" for sample in ask(expression))


def dashboards():
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in (DEPLOY / "grafana" / "dashboards").glob("*.json")}


def alerts():
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def filled_in(query):
    """A panel's query as Grafana asks it where everything is chosen."""
    return query.replace("$__rate_interval", RATE_INTERVAL).replace("$job", ".*").replace("$instance", ".*").replace("$group", ".*")


def unconditional(expression):
    """An alert's expression that says 0 or 1 where it would say nothing or something, or what it would be missing."""
    expression = re.sub(r"^absent\((.*)\)$", r"count(\1)", expression.strip())
    return re.sub(r"(==|!=|>=|<=|>|<)(?=\s*(?:-?\d|\(|kentongan_))", r"\1 bool", expression)


class Look:
    """deploy/look.sh, until it is stopped. The nodes tell deploy/webhook of their clients, so that there is something to see of that."""

    def __init__(self, directory):
        # Variables that begin like this are settings.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KENTONGAN_")}
        environment["SCRAPE_INTERVAL"] = SCRAPE_INTERVAL
        secret = pathlib.Path(directory, "webhook-secret")
        secret.write_text("a secret of the test's, long enough\n", encoding="utf-8")
        receiver = [sys.executable, DEPLOY / "webhook" / "receiver.py", "--secret-file", secret, "--listen", WEBHOOK]
        self.receiver = subprocess.Popen(receiver, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        environment |= {
            "KENTONGAN_EVENTS__WEBHOOK__URL": f"http://{WEBHOOK}/",
            "KENTONGAN_EVENTS__WEBHOOK__SECRET_FILE": str(secret),
        }
        self.process = subprocess.Popen([DEPLOY / "look.sh", directory], env=environment, stdin=subprocess.DEVNULL)
        for http in NODES:
            self.wait_for(f"node {http}", lambda http=http: "ready" in get(f"http://{http}/readyz"))
        self.wait_for("Prometheus", lambda: get(f"{PROMETHEUS}/-/ready"))

    def wait_for(self, what, condition):
        def is_there():
            assert self.process.poll() is None, "look.sh has ended"
            return condition()

        wait_for(what, is_there, READY_SECONDS)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_SECONDS)
        self.receiver.terminate()
        self.receiver.wait(DEADLINE_SECONDS)


class Load:
    """Clients of every QoS, of sessions that end and that stay, connected to each node and by the balancer."""

    def __init__(self):
        self.stopping, self.clients = threading.Event(), []
        for number, port in enumerate(NODES.values()):
            self.subscribe(f"transient-{number}", port, 0)
            self.subscribe(f"persistent-{number}", port, 3600)
        # Acknowledges nothing, so that something waits however fast the others are.
        self.subscribe("stubborn", BALANCER, 0, manual_ack=True)
        away = self.subscribe("away", BALANCER, 3600)
        away.disconnect()
        self.publishers = [self.connect(f"publisher-{number}", BALANCER, 0) for number in range(3)]
        self.threads = [threading.Thread(target=self.publish, args=(one,), daemon=True) for one in self.publishers]
        self.threads.append(threading.Thread(target=self.come_and_go, daemon=True))
        for thread in self.threads:
            thread.start()

    def connect(self, name, port, expiry, **options):
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5, **options)
        connected = threading.Event()
        client.on_connect = lambda *_: connected.set()
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = expiry
        # More than that waits in its queue.
        properties.ReceiveMaximum = 5
        client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        client.loop_start()
        assert connected.wait(DEADLINE_SECONDS), f"no CONNACK for {name}"
        self.clients.append(client)
        return client

    def subscribe(self, name, port, expiry, **options):
        client, subscribed = self.connect(name, port, expiry, **options), threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.subscribe("plant/#", 2)
        assert subscribed.wait(DEADLINE_SECONDS), f"no SUBACK for {name}"
        return client

    def publish(self, client):
        count = 0
        while not self.stopping.wait(1 / MESSAGES_A_SECOND):
            client.publish(f"plant/{count % 5}", b"x" * 100, count % 3, retain=count % 10 == 0)
            count += 1

    def come_and_go(self):
        """One client after another, which each node tells the webhook of."""
        ports, turn = list(NODES.values()), 0
        while not self.stopping.wait(0.5):
            client = self.connect("restless", ports[turn % len(ports)], 0)
            self.clients.remove(client)
            client.disconnect()
            client.loop_stop()
            turn += 1

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        for client in self.clients:
            client.disconnect()
            client.loop_stop()


class Files(unittest.TestCase):
    """What needs nothing to run."""

    def promtool(self, *arguments):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_configurations_and_rules_are_valid(self):
        self.promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
        # Debian's Prometheus is built without Kubernetes: everything but how the pods are found.
        text = (DEPLOY / "prometheus" / "kubernetes.yml").read_text(encoding="utf-8")
        text, found = re.subn(r"kubernetes_sd_configs:\n *- role: pod", "static_configs: []", text)
        self.assertEqual(found, 1)
        with tempfile.NamedTemporaryFile("w", suffix=".yml", dir=DEPLOY / "prometheus") as file:
            file.write(text)
            file.flush()
            self.promtool("check", "config", file.name)
        self.promtool("check", "rules", "--lint-fatal", str(RULES))

    def test_each_alert_is_raised_when_it_should_be(self):
        tests = DEPLOY / "prometheus" / "tests" / "alerts.yml"
        self.promtool("test", "rules", str(tests))
        tried = {test["name"] for test in yaml.safe_load(tests.read_text(encoding="utf-8"))["tests"]}
        self.assertEqual({rule["alert"] for rule in alerts()} - tried, set())

    def test_each_alert_has_its_section_in_the_runbook_and_each_section_an_alert(self):
        text = (ROOT / "docs" / "guide" / "operations.md").read_text(encoding="utf-8")
        sections = set(re.findall(r"^### (Kentongan\w+)$", text, re.M))
        self.assertEqual(sections, {rule["alert"] for rule in alerts()})
        for rule in alerts():
            expected = f"docs/guide/operations.md#{rule['alert'].lower()}"
            self.assertEqual(rule["annotations"]["runbook_url"], expected)
        linked = set(re.findall(r"\(#(kentongan\w+)\)", text))
        self.assertEqual(linked - {section.lower() for section in sections}, set())

    def test_what_compose_mounts_is_there(self):
        directory = DEPLOY / "compose"
        compose = yaml.safe_load((directory / "compose.yaml").read_text(encoding="utf-8"))
        for name, service in compose["services"].items():
            self.assertRegex(service["image"], r":v?\d", f"{name} has no version")
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                there = (directory / source).exists() if source.startswith(".") else source in compose["volumes"]
                self.assertTrue(there, f"{name}: {source}")
            if "build" in service:
                context = directory / service["build"]["context"]
                self.assertTrue((context / service["build"]["dockerfile"]).is_file(), name)

    def test_dashboards_can_be_imported_and_provisioned(self):
        uids = [one["uid"] for one in dashboards().values()]
        self.assertEqual(len(uids), len(set(uids)))
        for name, one in dashboards().items():
            self.assertEqual(one["templating"]["list"][0]["type"], "datasource", name)
            for panel in one["panels"]:
                self.assertEqual({target["datasource"]["uid"] for target in panel["targets"]}, {"${datasource}"}, name)
        provisioning = DEPLOY / "grafana" / "provisioning"
        found = yaml.safe_load((provisioning / "dashboards" / "kentongan.yaml").read_text(encoding="utf-8"))
        compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
        path = found["providers"][0]["options"]["path"]
        self.assertIn(f"../grafana/dashboards:{path}:ro", compose["services"]["grafana"]["volumes"])
        sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))
        self.assertEqual([source["type"] for source in sources["datasources"]], ["prometheus"])

    def test_dashboards_keep_to_the_schema_that_grafana_publishes(self):
        def lost(path, written, read):
            """What Grafana's own types for dashboards do not know, or have otherwise."""
            if isinstance(written, dict) and isinstance(read, dict):
                return [one for key in written for one in lost(f"{path}.{key}", written[key], read.get(key, "unknown"))]
            if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
                return [one for pair in zip(written, read) for one in lost(f"{path}[]", *pair)]
            return [] if written == read else [path]

        plugins.register_default_plugins()
        known_units = {value for name, value in vars(units).items() if name[0].isupper()}
        for name, one in dashboards().items():
            with self.subTest(name):
                read = json.loads(json.dumps(Dashboard.from_json(one), cls=JSONEncoder))
                # Grafana itself writes `definition`, for its list of variables; the schema leaves it out.
                self.assertEqual(set(lost("", one, read)) - {".templating.list[].definition"}, set())
                self.assertEqual({panel["fieldConfig"]["defaults"]["unit"] for panel in one["panels"]} - known_units, set())

    def test_dashboards_are_what_their_script_writes(self):
        done = subprocess.run([sys.executable, DEPLOY / "grafana" / "generate.py", "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


class Watched(unittest.TestCase):
    """Three nodes that work, and Prometheus."""

    @classmethod
    def setUpClass(cls):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        directory = tempfile.TemporaryDirectory(prefix="kentongan-look-")
        cls.addClassCleanup(directory.cleanup)
        cls.look = Look(directory.name)
        cls.addClassCleanup(cls.look.stop)
        cls.load = Load()
        cls.addClassCleanup(cls.load.stop)
        wait_for("all nodes scraped under load", lambda: len(ask("kentongan_connections > 0")) == len(NODES))

    def test_all_nodes_are_scraped(self):
        up = {sample["metric"]["instance"]: sample["value"][1] for sample in ask('up{job="kentongan"}')}
        self.assertEqual(up, dict.fromkeys(NODES, "1"))

    def test_every_panel_has_data(self):
        panels = [(name, panel) for name, one in dashboards().items() for panel in one["panels"]]
        self.assertGreater(len(panels), 0)
        for name, panel in panels:
            for target in panel["targets"]:
                with self.subTest(dashboard=name, panel=panel["title"]):
                    query = filled_in(target["expr"])
                    self.assertNotIn("$", query)
                    wait_for(query, lambda query=query: has_a_number(query), 10)

    def test_every_alert_has_data(self):
        for rule in alerts():
            with self.subTest(alert=rule["alert"]):
                expression = unconditional(rule["expr"])
                wait_for(expression, lambda expression=expression: has_a_number(expression), 10)
                self.assertNotEqual(expression, rule["expr"])

    def test_what_nodes_do_is_seen(self):
        for expression in (
            "sum(rate(kentongan_messages_received_total[10s]))",
            'sum(rate(kentongan_messages_sent_total{qos="2"}[10s]))',
            "sum(rate(kentongan_publish_ack_seconds_count[10s]))",
            "sum(rate(kentongan_publish_deliver_seconds_count[10s]))",
            "sum(rate(kentongan_commit_seconds_count[10s]))",
            "sum(rate(kentongan_log_sync_seconds_sum[10s]))",
            "min(rate(kentongan_arbiter_late_seconds_count[10s]))",
            "min(kentongan_lease_seconds)",
            "min(kentongan_peer_up)",
            "min(kentongan_ready)",
            "min(rate(kentongan_peer_bytes_sent_total[10s]))",
            "sum(kentongan_queued_messages)",
            "sum(rate(kentongan_raft_applied_index[10s]))",
            "sum(rate(kentongan_webhook_events_delivered_total[10s]))",
        ):
            with self.subTest(expression):
                above = f"{expression} > 0"
                wait_for(above, lambda above=above: ask(above), 10)
        # Each group has one leader, of whom all three replicas know.
        wait_for("one leader a group", lambda: not ask("sum by (group) (kentongan_raft_leader) != 1"), 10)
        self.assertEqual(ask("count by (group) (kentongan_raft_has_leader == 1) != 3"), [])

    def test_metrics_keep_to_the_conventions(self):
        text = get("http://127.0.0.1:8090/metrics")
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_labels_name_no_client_and_no_topic(self):
        text = get("http://127.0.0.1:8090/metrics")
        series = [line for line in text.splitlines() if line and line[0] != "#"]
        labels = set(re.findall(r'[{,](\w+)="', text))
        self.assertEqual(labels - LABELS, set())
        self.assertLess(len(series), SERIES_MAX)

    def test_every_metric_that_is_named_exists(self):
        text = get("http://127.0.0.1:8090/metrics")
        # Of histograms also the name of the family, which has no series.
        exposed = set(re.findall(r"^(\w+)", text, re.M)) | set(re.findall(r"^# TYPE (\w+) histogram", text, re.M))
        files = [file for file in DEPLOY.rglob("*") if file.suffix in {".json", ".yml", ".yaml", ".py"} and file.is_file()]
        named = {(str(file.relative_to(ROOT)), name) for file in files for name in METRIC.findall(file.read_text(encoding="utf-8"))}
        self.assertGreater(len(named), 0)
        self.assertEqual([one for one in sorted(named) if one[1] not in exposed], [])


if __name__ == "__main__":
    unittest.main()
