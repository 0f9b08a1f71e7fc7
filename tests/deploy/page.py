"""docs/guide/kubernetes.md, followed word by word by somebody whose `kubectl` has the pods of kubelet.py behind it.

What renders (`kubectl kustomize`, `helm template`) and what is about files is done by the programs themselves.
"""

import base64
import json
import os
import pathlib
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import unittest

import yaml

import kubelet
import rendered
from kubelet import Cluster, wait_for
from names import Resolver

sys.path.insert(0, str(rendered.ROOT / "tests" / "clients"))

import guide  # noqa: E402

BROKER = os.environ.get("KENTONGAN", "kentongan")
HAS_USERS = os.environ.get("KENTONGAN_TEST_HAS_USERS") == "1"
PAGE = rendered.ROOT / "docs" / "guide" / "kubernetes.md"

# Pods come and go in a block of this page, one after the other.
guide.BLOCK_SECONDS = guide.UNTIL_SECONDS = 240
ROLLOUT_SECONDS = 200

# Hands its arguments to the test; forwards a port itself, until it is ended.
KUBECTL = """#!{python}
import json, os, socket, sys, threading

def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    target.close()

with socket.socket(socket.AF_UNIX) as test:
    test.connect({socket!r})
    test.sendall(json.dumps([sys.argv[1:], os.getcwd()]).encode() + b"\\n")
    answer = json.loads(test.makefile().read())
print(answer["text"], end="", file=sys.stderr if answer["code"] else sys.stdout)
if "forward" not in answer:
    sys.exit(answer["code"])
here, there = answer["forward"]
server = socket.create_server(("127.0.0.1", here))
while True:
    client, _ = server.accept()
    pod = socket.create_connection(tuple(there))
    for pair in [(client, pod), (pod, client)]:
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""

# The resolver is one for all; the cluster that it tells of changes.
current = None


def setUpModule():
    kubelet.make_network()
    Resolver(kubelet.GATEWAY, lambda name: current.resolve(name) if current else None)


class Kubernetes:
    """What the page's commands of kubectl do."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.secrets, self.cluster, self.jobs = {}, None, {}
        # What a controller is about, and why it could not do it.
        self.working, self.failed = None, None
        self.made = 0

    def work(self, task, *arguments):
        """A controller does it while kubectl has its answer already."""
        self.finish()

        def run():
            try:
                task(*arguments)
            except Exception as error:
                self.failed = error

        self.working = threading.Thread(target=run, daemon=True)
        self.working.start()

    def finish(self):
        if self.working is not None:
            self.working.join(ROLLOUT_SECONDS)
            assert not self.working.is_alive(), "it did not come to an end"
        if self.failed is not None:
            raise self.failed

    def answer(self, arguments, directory):
        """What kubectl prints; an exception is its failure."""
        path = pathlib.Path(directory)
        match arguments:
            case ["create", "secret", kind, name, *options]:
                # The real one reads the files and says what it would send.
                command = [rendered.KUBECTL, *arguments, "--dry-run=client", "--output=yaml"]
                done = subprocess.run(command, cwd=path, capture_output=True, text=True)
                if done.returncode != 0:
                    raise RuntimeError(done.stderr)
                data = yaml.safe_load(done.stdout)["data"]
                self.secrets[name] = {key: base64.b64decode(value) for key, value in data.items()}
                return f"secret/{name} created\n"
            case ["apply", "-k", overlay]:
                return self.apply(rendered.render(path / overlay))
            case ["delete", "-k", overlay]:
                assert rendered.render(path / overlay).of("StatefulSet")
                self.stop()
                return "deleted\n"
            case ["rollout", "status", "statefulset/kentongan"]:
                self.finish()
                self.cluster.wait_until_available(ROLLOUT_SECONDS)
                return "rolling update complete\n"
            case ["exec", pod, "--", *command]:
                code, text = self.pod(pod).execute(*command)
                if code != 0:
                    raise RuntimeError(text)
                return text
            case ["set", "image", "statefulset/kentongan", image]:
                name, _, _ = image.partition("=")
                assert name == self.cluster.objects.container["name"], f"unable to find container named {name!r}"
                self.work(self.cluster.rolling_restart)
                return "image updated\n"
            case ["scale", "statefulset/kentongan", option]:
                replicas = int(option.removeprefix("--replicas="))
                for autoscaler in self.cluster.objects.of("HorizontalPodAutoscaler"):
                    bounds = [autoscaler["spec"][key] for key in ("minReplicas", "maxReplicas")]
                    assert bounds[0] <= replicas <= bounds[1], f"the autoscaler keeps it between {bounds[0]} and {bounds[1]}"
                self.work(self.cluster.scale, replicas)
                return "scaled\n"
            case ["delete", "pod", pod]:
                self.cluster.replace(self.pod(pod).ordinal)
                return f"pod {pod} deleted\n"
            case ["delete", "persistentvolumeclaim", claim, *options]:
                return self.delete_claim(claim, options)
            case ["delete", "job", job, "--ignore-not-found"]:
                self.jobs.pop(job, None)
                return ""
            case ["wait", "--for=condition=complete", job, _]:
                assert job.removeprefix("job/") in self.jobs
                self.finish()
                return f"{job} condition met\n"
            case ["wait", "--for=delete", pod, _]:
                name = pod.removeprefix("pod/")
                wait_for(f"no {pod}", lambda: all(one.name != name for one in self.cluster.pods.values()), ROLLOUT_SECONDS)
                return ""
            case ["logs", job, "--all-containers"]:
                assert job.removeprefix("job/") in self.jobs
                return self.cluster.job_log
            case _:
                raise RuntimeError(f"kubectl {arguments} is not known here")

    def apply(self, objects):
        global current
        if jobs := objects.of("Job"):
            self.jobs[jobs[0]["metadata"]["name"]] = objects
            self.work(self.cluster.run_job, objects)
        elif self.cluster is None:
            self.made += 1
            directory = self.directory / f"cluster-{self.made}"
            directory.mkdir()
            self.cluster = current = Cluster(objects, self.secrets, directory, BROKER, HAS_USERS)
            self.work(self.cluster.scale, self.cluster.initial_replicas())
        else:
            is_the_same = self.cluster.objects.pod == objects.pod
            self.cluster.objects = objects
            self.cluster.config_maps = {one["metadata"]["name"]: one["data"] for one in objects.of("ConfigMap")}
            if not is_the_same:
                self.work(self.cluster.rolling_restart)
        return "".join(f"{one['kind'].lower()}/{one['metadata']['name']} configured\n" for one in objects)

    def delete_claim(self, claim, options):
        used_by = claim.removeprefix("data-")
        if self.cluster is None or all(pod.name != used_by for pod in self.cluster.pods.values()):
            if self.cluster is not None:
                self.cluster.delete_claim(claim)
        else:
            assert "--wait=false" in options, f"{claim} is in use: this would wait for ever"
            assert claim in self.cluster.claims
            self.cluster.doomed.add(claim)
        return f"persistentvolumeclaim {claim} deleted\n"

    def forward(self, service, ports):
        """Where to, from which port of this machine. Through the Service, as kubectl chooses one pod of it."""
        here, port = map(int, ports.split(":"))
        objects = self.cluster.objects
        (wanted,) = [one for one in objects.get("Service", service)["spec"]["ports"] if one["port"] == port]
        (number,) = [one["containerPort"] for one in objects.container["ports"] if one["name"] == wanted["targetPort"]]
        return here, [next(pod.address for pod in self.cluster.pods.values() if pod.is_ready), number]

    def pod(self, name):
        for ordinal, pod in self.cluster.pods.items():
            if pod.name == name:
                pod.ordinal = ordinal
                return pod
        raise RuntimeError(f'pods "{name}" not found')

    def stop(self):
        global current
        if self.cluster is not None:
            self.cluster.stop()
        self.cluster = current = None


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        arguments, directory = json.loads(self.rfile.readline())
        kubernetes = self.server.kubernetes
        answer = {"code": 0, "text": ""}
        try:
            match arguments:
                case ["kustomize", *_]:
                    done = subprocess.run([rendered.KUBECTL, *arguments], cwd=directory, capture_output=True, text=True)
                    answer = {"code": done.returncode, "text": done.stdout + done.stderr}
                case ["port-forward", service, ports]:
                    answer["forward"] = kubernetes.forward(service.removeprefix("service/"), ports)
                case _:
                    answer["text"] = kubernetes.answer(arguments, directory)
        except Exception as error:
            answer = {"code": 1, "text": f"error: {error}\n"}
        self.wfile.write(json.dumps(answer).encode())


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Page(unittest.TestCase):
    def test_each_block_does_what_the_page_says(self):
        temporary = tempfile.TemporaryDirectory(prefix="kentongan-page-", ignore_cleanup_errors=True)
        self.addCleanup(temporary.cleanup)
        directory = pathlib.Path(temporary.name).resolve()
        # Those who are not root in pods must pass.
        directory.chmod(0o755)
        work, programs = directory / "work", directory / "bin"
        work.mkdir()
        programs.mkdir()
        shutil.copytree(rendered.ROOT / "deploy", work / "deploy")
        (programs / "kentongan").symlink_to(BROKER)
        # Before another of that name comes first in the PATH.
        rendered.KUBECTL = shutil.which(rendered.KUBECTL)
        kubectl = KUBECTL.replace("{python}", sys.executable).replace("{socket!r}", repr(str(directory / "kubectl")))
        (programs / "kubectl").write_text(kubectl, encoding="utf-8")
        (programs / "kubectl").chmod(0o755)

        kubernetes = Kubernetes(directory)
        self.addCleanup(kubernetes.stop)
        server = Server(str(directory / "kubectl"), Handler)
        server.kubernetes = kubernetes
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)

        environment = {name: value for name, value in os.environ.items() if not name.startswith("KENTONGAN")}
        environment |= {"PATH": f"{programs}:{environment['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
        shell = guide.Shell(work, environment=environment)
        self.addCleanup(shell.process.kill)
        for number, block in enumerate(guide.blocks(PAGE.read_text(encoding="utf-8"))):
            print(f"  line {block.line}: {block.text.splitlines()[0]}", flush=True)
            try:
                guide.run_block(shell, work, number, block)
            except guide.Wrong as wrong:
                logs = "".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in directory.glob("cluster-*/*.log"))
                self.fail(f"kubernetes.md, line {block.line}:\n{block.text}\n{wrong}\n{logs}")
        self.assertEqual(kubernetes.cluster.overdue, [], "pods that outlasted their grace period")


if __name__ == "__main__":
    unittest.main()
