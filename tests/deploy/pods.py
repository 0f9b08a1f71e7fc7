"""The rendered manifests, run as processes, under load. Nothing that was acknowledged may be missing afterwards."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import kubelet
import rendered
from kubelet import Cluster, wait_for
from load import Connection, Load
from names import Resolver

BROKER = os.environ.get("KENTONGAN", "kentongan")
HAS_USERS = os.environ.get("KENTONGAN_TEST_HAS_USERS") == "1"
USER = ("alice", "tabuh-tabuhan")

# The resolver is one for all; the cluster that it tells of changes.
current = None


def setUpModule():
    kubelet.make_network()
    Resolver(kubelet.GATEWAY, lambda name: current.resolve(name) if current else None)


# kubectl, as far as the guide uses it to make Secrets: each becomes a directory of files.
KUBECTL = """#!/usr/bin/env python3
import pathlib, shutil, sys
_, create, secret, kind, name, *options = sys.argv
assert [create, secret] == ["create", "secret"], sys.argv
options = dict(option.removeprefix("--").split("=", 1) for option in options)
directory = pathlib.Path("secrets", name)
directory.mkdir(parents=True)
if kind == "tls":
    shutil.copy(options["cert"], directory / "tls.crt")
    shutil.copy(options["key"], directory / "tls.key")
else:
    source = pathlib.Path(options["from-file"])
    for file in source.iterdir() if source.is_dir() else [source]:
        shutil.copy(file, directory)
"""


def secrets(directory):
    """The Secrets of docs/guide/kubernetes.md, made by the commands that stand there."""
    bin = pathlib.Path(directory, "bin")
    bin.mkdir()
    (bin / "kentongan").symlink_to(BROKER)
    (bin / "kubectl").write_text(KUBECTL, encoding="utf-8")
    (bin / "kubectl").chmod(0o755)
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    openssl += ["-subj", "/CN=mqtt.example.org", "-addext", "subjectAltName=DNS:mqtt.example.org"]
    subprocess.run([*openssl, "-keyout", "tls.key", "-out", "tls.crt"], cwd=directory, check=True, capture_output=True)
    for block in rendered.guide("sh"):
        if "create secret" in block:
            environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}
            subprocess.run(["sh", "-euc", block], cwd=directory, env=environment, check=True, capture_output=True)
    return {
        secret.name: {file.name: file.read_bytes() for file in secret.iterdir()}
        for secret in pathlib.Path(directory, "secrets").iterdir()
    }


class Pods(unittest.TestCase):
    def setUp(self):
        print(f"\n{self.id().split('.')[-1]}", flush=True)
        temporary = tempfile.TemporaryDirectory(prefix="kentongan-pods-", ignore_cleanup_errors=True)
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name
        # Those who are not root there must pass.
        os.chmod(self.directory, 0o755)
        self.secrets = secrets(self.directory)

    def cluster(self, objects):
        global current
        current = Cluster(objects, self.secrets, self.directory, BROKER, HAS_USERS)
        self.addCleanup(self.close, current)
        return current

    def close(self, cluster):
        cluster.stop()
        if not self._outcome.success:
            for log in sorted(pathlib.Path(self.directory).glob("*.log")):
                # How it came to that stands at the end.
                end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
                print(f"--- {log.name}", *end, sep="\n")
        self.assertEqual(cluster.overdue, [], "pods that outlasted their grace period")

    def wait_until_settled(self, cluster):
        """Until `kubectl exec kentongan-0 -- kentongan cluster status` says what the guide wants before the next change."""

        def keepers(row):
            return sum("(no answer)" not in name for name in row[5].split(", "))

        def is_settled():
            code, output = cluster.pods[0].execute("kentongan", "cluster", "status")
            nodes = re.findall(r"^(kentongan-\d+) +[0-9a-f]{16} +(\w+)", output, re.M)
            rows = [re.split(" {2,}", line) for line in output.splitlines() if re.match(r"(\d+|directory) ", line)]
            return (
                code == 0
                and sorted(nodes) == [(f"kentongan-{ordinal}", "serving") for ordinal in range(cluster.replicas)]
                and len(rows) == 17
                and all(keepers(row) >= 3 and row[6] == "none" for row in rows)
            )

        wait_for("a settled cluster", is_settled, 120)

    def test_three_pods_under_load(self):
        """Cold start, rolling restart, kill -9, a lost volume, 3 -> 5 -> 3."""
        cluster = self.cluster(rendered.overlay("cluster"))
        cluster.scale(cluster.initial_replicas())
        cluster.wait_until_available()
        for pod in cluster.pods.values():
            self.assertEqual(pod.exit_codes, [], f"{pod.name}: a cold start needs no restart")
        load = Load(cluster, USER)

        def done(what):
            before = load.progress()
            wait_for("publishers go on", lambda: load.progress() > before + 20, 30)
            seconds = load.take_slowest()
            cluster.say(f"{what}: {load.progress()} acknowledged, the slowest within {seconds:.2f} s; not yet delivered: "
                        f"{len(load.missing())}")

        done("cold start")
        cluster.rolling_restart()
        done("rolling restart")

        cluster.say("kentongan-1 is killed")
        cluster.pods[1].kill()
        wait_for("not ready", lambda: not cluster.pods[1].is_ready)
        cluster.wait_until_available()
        done("kill -9")

        cluster.say("kentongan-2 and its volume are lost")
        cluster.lose(2)
        cluster.wait_until_available()
        self.wait_until_settled(cluster)
        done("a lost volume")

        cluster.scale(5)
        cluster.wait_until_available()
        self.wait_until_settled(cluster)
        done("3 -> 5")
        for node in (4, 3):
            cluster.run_job(self.removal_of(node))
            self.assertNotIn(f"data-kentongan-{node}", cluster.claims)
            cluster.wait_until_available()
            self.wait_until_settled(cluster)
        done("5 -> 3")

        missing = load.end()
        cluster.say(f"{len(load.acknowledged)} acknowledged, {len(missing)} of them never came, "
                    f"{sum(load.received.values()) - len(load.received)} came twice")
        self.assertEqual(missing, set())

    @staticmethod
    def removal_of(node):
        """The Job for a node, made as the guide says."""
        (text,) = [one for one in rendered.guide("yaml") if "remove-node" in one]
        wanted = f"[NODE=kentongan-{node}, FROM={node + 1}, TO={node}]"
        return rendered.with_kustomization(text.replace("[NODE=kentongan-4, FROM=5, TO=4]", wanted))

    def test_production_by_tls(self):
        cluster = self.cluster(rendered.overlay("production"))
        cluster.scale(cluster.initial_replicas())
        self.assertEqual(cluster.replicas, 3)
        self.answers(cluster, pathlib.Path(self.directory, "tls.crt"))
        code, output = cluster.pods[0].execute("kentongan", "cluster", "status")
        self.assertEqual(code, 0, output)

    def test_certificates_that_all_nodes_have_in_common(self):
        """As cert-manager makes them."""
        authority, key = (pathlib.Path(self.directory, "certificates", f"ca.{end}") for end in ("crt", "key"))
        rendering = rendered.with_cert_manager()
        names = rendering.get("Certificate", "kentongan-peers")["spec"]["dnsNames"]
        mine, crt = pathlib.Path(self.directory, "shared.key"), pathlib.Path(self.directory, "shared.crt")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
            + ["-subj", "/CN=peers", "-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"]
            + ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", authority, "-CAkey", key, "-keyout", mine, "-out", crt],
            check=True,
            capture_output=True,
        )
        self.secrets["kentongan-peers"] = {
            "ca.crt": authority.read_bytes(), "tls.crt": crt.read_bytes(), "tls.key": mine.read_bytes(),
        }
        cluster = self.cluster(rendering)
        cluster.scale(cluster.initial_replicas())
        self.answers(cluster, pathlib.Path(self.directory, "tls.crt"))

    def test_one_node(self):
        cluster = self.cluster(rendered.overlay("single"))
        cluster.scale(cluster.initial_replicas())
        self.assertEqual(cluster.replicas, 1)
        self.answers(cluster)

    def test_the_process_lives_and_is_not_ready_while_it_waits_for_others(self):
        """Neither a restart nor a client helps a node that has no majority."""
        cluster = self.cluster(rendered.overlay("cluster"))
        cluster.scale(1)
        pod = cluster.pods[0]
        wait_for("the startup probe", lambda: pod.is_started)
        self.assertEqual(pod.get(8090, "/livez")[0], 200)
        self.assertEqual(pod.get(8090, "/readyz"), (503, "not ready, missing: serving\n"))
        cluster.scale(3)
        cluster.wait_until_available()
        self.assertEqual(pod.exit_codes, [])
        cluster.say("two of three are lost for a while")
        others = [cluster.pods[1].process, cluster.pods[2].process]
        for process in others:
            process.send_signal(subprocess.signal.SIGSTOP)
        wait_for("not ready", lambda: not pod.is_ready)
        self.assertIn("lease", pod.get(8090, "/readyz")[1])
        self.assertEqual(pod.get(8090, "/livez")[0], 200)
        for process in others:
            process.send_signal(subprocess.signal.SIGCONT)
        cluster.wait_until_available()
        self.assertEqual(pod.exit_codes, [])

    def test_the_variables_of_service_links_do_no_harm(self):
        """The manifests turn them off. Whoever turns them on gives the broker KENTONGAN_PORT and the like."""
        objects = rendered.render(rendered.MANIFESTS / "overlays" / "single")
        objects.pod["spec"]["enableServiceLinks"] = True
        cluster = self.cluster(objects)
        cluster.scale(1)
        self.assertIn("KENTONGAN_PORT", cluster.pods[0].sandbox.environment(objects.container))
        self.answers(cluster)
        self.assertEqual(cluster.pods[0].exit_codes, [])

    def answers(self, cluster, tls=None):
        """A message goes round, from one ready pod to another."""
        cluster.wait_until_available()
        received = []
        subscriber = Connection("subscriber", cluster.endpoints, USER, tls, on_message=received.append)
        publisher = Connection("publisher", cluster.endpoints, USER, tls)
        for connection in (subscriber, publisher):
            connection.connect()
            self.addCleanup(connection.close)
        subscriber.paho.subscribe("test", 1)

        def came():
            publisher.paho.publish("test", b"mqtt test", 1).wait_for_publish(5)
            return received

        wait_for("the message", came)
        self.assertEqual(received[0], b"mqtt test")
        cluster.say("a message went round")


if __name__ == "__main__":
    unittest.main()
