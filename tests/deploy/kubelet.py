"""Runs pods of the rendered manifests as processes, as far as it matters to the broker.

What is as in Kubernetes: command, arguments, variables (downward API, $(NAME), those of Services), volumes (ConfigMaps and
Secrets by links that are exchanged, claims that outlive pods), a root file system that holds the program only and cannot be
written, the user and groups, a network address for each pod and another one after it was replaced, names of pods, probes
and what they lead to, preStop, SIGTERM, the grace period, SIGKILL; and of the StatefulSet how pods are made, replaced and
scaled. What is not: limits of CPU and memory, schedulers, proxies. Clients are told a ready pod's address by
`Cluster.endpoints` instead.

It must run in name spaces of its own (network, mounts, processes), with root in them: run.py sees to it.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import rendered

NAMESPACE = "mqtt"
GATEWAY = "10.77.0.1"
NETWORK = "10.77.0.0/16"
# A crashed container comes again after this; Kubernetes takes 10 s and more, which no test learns anything from.
BACKOFF_SECONDS = 1
# Time for a command in a pod; one may move all that a node keeps.
EXECUTE_SECONDS = 240

PR_SET_NO_NEW_PRIVS = 38


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


# --- what a pod is made of -------------------------------------------------------------------------------------------


def expand(text, variables):
    """Replaces $(NAME) as Kubernetes does: unknown names stay, $$ is one $."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


def service_links(services):
    """Variables that tell of Services, as docker's links once did."""
    variables = {}
    for service in services:
        if service["spec"].get("clusterIP") == "None":
            continue
        prefix = service["metadata"]["name"].upper().replace("-", "_")
        name, port = (service["spec"]["ports"][0][key] for key in ("name", "port"))
        variables[f"{prefix}_SERVICE_HOST"] = "10.96.0.10"
        variables[f"{prefix}_SERVICE_PORT"] = str(port)
        variables[f"{prefix}_SERVICE_PORT_{name.upper()}"] = str(port)
        variables[f"{prefix}_PORT"] = variables[f"{prefix}_PORT_{port}_TCP"] = f"tcp://10.96.0.10:{port}"
        variables[f"{prefix}_PORT_{port}_TCP_ADDR"] = "10.96.0.10"
        variables[f"{prefix}_PORT_{port}_TCP_PORT"] = str(port)
        variables[f"{prefix}_PORT_{port}_TCP_PROTO"] = "tcp"
    return variables


def environment(container, spec, fields, services, config_maps):
    """The variables of a container."""
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": fields["metadata.name"]}
    variables |= {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    if spec.get("enableServiceLinks", True):
        variables |= service_links(services)
    for source in container.get("envFrom", []):
        variables |= config_maps[source["configMapRef"]["name"]]
    for one in container.get("env", []):
        if "valueFrom" in one:
            variables[one["name"]] = fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            variables[one["name"]] = expand(one["value"], variables)
    return variables


def lay_out(directory, data, items, mode, group):
    """Writes the files of a ConfigMap or Secret as the kubelet does: behind links, so that all change at once."""
    content = pathlib.Path(directory, "..first")
    paths = {item["path"]: item["key"] for item in items} if items else {key: key for key in data}
    for path, key in paths.items():
        file = content / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = data[key]
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        file.chmod(mode)
        os.chown(file, 0, group)
    os.symlink("..first", pathlib.Path(directory, "..data"))
    for top in {path.split("/")[0] for path in paths}:
        os.symlink(f"..data/{top}", pathlib.Path(directory, top))


class Image:
    """The root file system of the image, by the script that makes it, and the places for volumes."""

    def __init__(self, directory, binary):
        self.root = pathlib.Path(directory, "image")
        self.root.mkdir()
        run(rendered.ROOT / "deploy" / "image-root.sh", binary, self.root)
        # What a container runtime adds.
        for place in ("proc", "dev", "data", *(f"etc/kentongan/{name}" for name in ("config", "peers", "users", "tls", "operator"))):
            (self.root / place).mkdir()
        for name in ("dev/null", "dev/urandom", "etc/resolv.conf", "etc/hosts"):
            (self.root / name).touch()


def child(description):
    """Becomes the container's process. Runs in a mount name space of its own."""
    root, user = description["root"], description["user"]
    mount = shutil.which("mount")

    def bind(source, place, *, writable=False):
        target = f"{root}/{place.lstrip('/')}"
        run(mount, "--bind", source, target)
        if not writable:
            run(mount, "-o", "remount,bind,ro", source, target)

    run(mount, "--make-rprivate", "/")
    run(mount, "--bind", root, root)
    run(mount, "-t", "proc", "proc", f"{root}/proc")
    for name in ("null", "urandom"):
        bind(f"/dev/{name}", f"/dev/{name}", writable=True)
    for source, place, writable in description["mounts"]:
        bind(source, place, writable=writable)
    run(mount, "-o", "remount,bind,ro", root, root)

    os.chroot(root)
    os.chdir("/")
    if user is not None:
        os.setgroups([description["group"]])
        os.setgid(description["group"])
        os.setuid(user)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    os.execve(description["command"][0], description["command"], description["environment"])


class Sandbox:
    """What a pod has beside its processes: an address of its own, and volumes."""

    numbers = iter(range(2, 250))

    def __init__(self, cluster, name, template, claims):
        number = next(Sandbox.numbers)
        self.cluster, self.spec = cluster, template["spec"]
        self.name, self.labels = name, template["metadata"]["labels"]
        self.net, self.address = f"pod{number}", f"10.77.0.{number}"
        self.directory = pathlib.Path(cluster.directory, f"{name}-{number}")
        self.directory.mkdir()
        self.fields = {"metadata.name": name, "metadata.namespace": NAMESPACE, "status.podIP": self.address}
        run("ip", "netns", "add", self.net)
        run("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", self.net)
        run("ip", "link", "set", f"veth{number}", "master", "br0", "up")
        run("ip", "-n", self.net, "addr", "add", f"{self.address}/16", "dev", "eth0")
        run("ip", "-n", self.net, "link", "set", "eth0", "up")
        run("ip", "-n", self.net, "link", "set", "lo", "up")
        self.volumes = {volume["name"]: self._volume(volume) for volume in self.spec.get("volumes", [])}
        self.volumes |= claims

    def _volume(self, volume):
        directory = self.directory / volume["name"]
        directory.mkdir()
        if "configMap" in volume:
            source, data = volume["configMap"], self.cluster.config_maps[volume["configMap"]["name"]]
        else:
            source, data = volume["secret"], self.cluster.secrets[volume["secret"]["secretName"]]
        lay_out(directory, data, source.get("items"), source.get("defaultMode", 0o644), self.group)
        return directory

    @property
    def group(self):
        return self.spec["securityContext"]["fsGroup"] if self.cluster.has_users else 0

    def start(self, container, log):
        """Starts the container's process."""
        variables = self.environment(container)
        command = [expand(text, variables) for text in [*container["command"], *container.get("args", [])]]
        mounts = [
            (str(self.volumes[one["name"]]), one["mountPath"], not one.get("readOnly", False))
            for one in container.get("volumeMounts", [])
        ]
        for name, text in (
            ("resolv.conf", f"nameserver {GATEWAY}\nsearch {NAMESPACE}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"),
            ("hosts", f"127.0.0.1 localhost\n{self.address} {self.name}\n"),
        ):
            file = self.directory / name
            file.write_text(text, encoding="utf-8")
            mounts.append((str(file), f"/etc/{name}", False))
        description = {
            "root": str(self.cluster.image.root),
            "user": self.spec["securityContext"]["runAsUser"] if self.cluster.has_users else None,
            "group": self.group,
            "mounts": mounts,
            "command": command,
            "environment": variables,
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.net, sys.executable, __file__, json.dumps(description)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def environment(self, container):
        return environment(container, self.spec, self.fields, self.cluster.objects.of("Service"), self.cluster.config_maps)

    def remove(self):
        run("ip", "netns", "delete", self.net)


class Pod:
    """A pod with one container, kept running until it is deleted."""

    def __init__(self, cluster, name, claims):
        self.cluster, self.name = cluster, name
        self.sandbox = Sandbox(cluster, name, cluster.objects.pod, claims)
        self.container = cluster.objects.container
        self.is_ready, self.ready_since, self.exit_codes = False, None, []
        self.is_started = False
        self.deleted = threading.Event()
        self.ended = threading.Event()
        self.log = (cluster.directory / f"{name}.log").open("ab")
        self.process = self.sandbox.start(self.container, self.log)
        threading.Thread(target=self._keep, daemon=True).start()
        threading.Thread(target=self._probe, daemon=True).start()

    @property
    def address(self):
        return self.sandbox.address

    def _keep(self):
        """Starts the container again whenever it ends."""
        while True:
            code = self.process.wait()
            self._set_ready(False)
            self.is_started = False
            if self.deleted.is_set():
                return
            self.exit_codes.append(code)
            self.cluster.say(f"{self.name} ended with {code} and is started again")
            if self.deleted.wait(BACKOFF_SECONDS):
                return
            self.process = self.sandbox.start(self.container, self.log)

    def _probe(self):
        """Does what the three probes say."""
        failures, next_at = {"startupProbe": 0, "livenessProbe": 0, "readinessProbe": 0}, {}
        while not self.deleted.wait(0.1):
            process = self.process
            for name in ["startupProbe"] if not self.is_started else ["livenessProbe", "readinessProbe"]:
                probe, now = self.container[name], time.monotonic()
                if next_at.get(name, 0) > now or process.poll() is not None:
                    continue
                next_at[name] = now + probe.get("periodSeconds", 10)
                succeeded = self.ask(probe)
                failures[name] = 0 if succeeded else failures[name] + 1
                is_failed = failures[name] >= probe.get("failureThreshold", 3)
                if name == "readinessProbe":
                    if succeeded or is_failed:
                        self._set_ready(succeeded)
                elif succeeded:
                    self.is_started = True
                elif is_failed:
                    self.cluster.say(f"{self.name}: {name} failed {failures[name]} times, the container is killed")
                    failures[name] = 0
                    process.terminate()

    def ask(self, probe):
        """Whether a probe succeeds now."""
        port = next(one["containerPort"] for one in self.container["ports"] if one["name"] == probe["httpGet"]["port"])
        try:
            return self.get(port, probe["httpGet"]["path"], probe.get("timeoutSeconds", 1))[0] == 200
        except OSError:
            return False

    def get(self, port, path, timeout=2):
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{port}{path}", timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def _set_ready(self, is_ready):
        if is_ready != self.is_ready:
            self.ready_since = time.monotonic() if is_ready else None
            self.is_ready = is_ready
            if not self.deleted.is_set():
                self.cluster.say(f"{self.name} is {'ready' if is_ready else 'not ready'}")

    def is_available(self):
        """Ready for as long as the StatefulSet wants."""
        since = self.ready_since
        return since is not None and time.monotonic() - since >= self.cluster.objects.stateful_set["spec"]["minReadySeconds"]

    def execute(self, *command):
        """kubectl exec: its output, of both kinds."""
        # A program found by its bare name.
        command = [f"/usr/local/bin/{command[0]}", *command[1:]]
        user = self.sandbox.spec["securityContext"]["runAsUser"] if self.cluster.has_users else 0
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--root", "--wd=/"]
        enter += [f"--setuid={user}", f"--setgid={self.sandbox.group}"]
        done = subprocess.run(
            [shutil.which(enter[0]), *enter[1:], *command],
            env=self.sandbox.environment(self.container), capture_output=True, text=True, timeout=EXECUTE_SECONDS,
        )
        return done.returncode, done.stdout + done.stderr

    def kill(self):
        """The container is gone without a word, and comes again."""
        self.process.send_signal(signal.SIGKILL)

    def delete(self):
        """kubectl delete pod: preStop, SIGTERM, the grace period, SIGKILL. Returns how long it took."""
        began = time.monotonic()
        grace = self.sandbox.spec["terminationGracePeriodSeconds"]
        # No endpoint any more, from now on; and no probe changes that.
        self.deleted.set()
        self._set_ready(False)
        time.sleep(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.process.terminate()
        try:
            self.process.wait(grace - (time.monotonic() - began))
        except subprocess.TimeoutExpired:
            self.cluster.say(f"{self.name} is killed after its grace period")
            self.cluster.overdue.append(self.name)
            self.process.kill()
            self.process.wait()
        self.sandbox.remove()
        self.log.close()
        self.ended.set()
        return time.monotonic() - began


# --- what keeps pods -------------------------------------------------------------------------------------------------


class Cluster:
    """A StatefulSet's controller, and the resolver's knowledge."""

    def __init__(self, objects, secrets, directory, binary, has_users):
        self.objects, self.secrets, self.has_users = objects, secrets, has_users
        self.directory = pathlib.Path(directory)
        self.config_maps = {one["metadata"]["name"]: one["data"] for one in objects.of("ConfigMap")}
        self.image = Image(self.directory, binary)
        self.pods, self.claims, self.doomed, self.overdue = {}, {}, set(), []
        self.began = time.monotonic()
        self.replicas = 0

    def say(self, text):
        print(f"  {time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def initial_replicas(self):
        """What the StatefulSet says, or the autoscaler's minimum."""
        wanted = self.objects.stateful_set["spec"].get("replicas", 1)
        return max([wanted, *(one["spec"]["minReplicas"] for one in self.objects.of("HorizontalPodAutoscaler"))])

    def _create(self, ordinal):
        name = f"{self.objects.stateful_set['metadata']['name']}-{ordinal}"
        claims = {}
        for template in self.objects.stateful_set["spec"]["volumeClaimTemplates"]:
            claim = f"{template['metadata']['name']}-{name}"
            if claim not in self.claims:
                self.claims[claim] = self._new_volume(claim)
            claims[template["metadata"]["name"]] = self.claims[claim]
        self.pods[ordinal] = Pod(self, name, claims)

    def _new_volume(self, claim):
        """An empty file system: with lost+found, and with the group of the pod."""
        directory = self.directory / f"{claim}-{time.monotonic_ns()}"
        directory.mkdir()
        (directory / "lost+found").mkdir(mode=0o700)
        context = self.objects.pod["spec"]["securityContext"]
        os.chown(directory, 0, context["fsGroup"] if self.has_users else 0)
        directory.chmod(0o2775)
        return directory

    def scale(self, replicas):
        """Makes, or deletes, as many pods as it takes, all at once (Parallel)."""
        self.say(f"{self.replicas} -> {replicas} replicas")
        self.replicas = replicas
        going = [pod for ordinal, pod in self.pods.items() if ordinal >= replicas]
        for ordinal in range(replicas):
            if ordinal not in self.pods:
                self._create(ordinal)
        for thread in [threading.Thread(target=pod.delete) for pod in going]:
            thread.start()
        for ordinal in [ordinal for ordinal in self.pods if ordinal >= replicas]:
            self.pods[ordinal].ended.wait()
            del self.pods[ordinal]

    def replace(self, ordinal):
        """kubectl delete pod: another one takes its place, with its claims."""
        pod = self.pods[ordinal]
        self.say(f"{pod.name} is deleted")
        seconds = pod.delete()
        # A claim that is deleted while it is in use goes with the pod that uses it.
        for claim in self.doomed & {f"data-{pod.name}"}:
            self.doomed.remove(claim)
            self.delete_claim(claim)
        self._create(ordinal)
        self.say(f"{pod.name} went within {seconds:.1f} s, and comes again at {self.pods[ordinal].address}")

    def lose(self, ordinal):
        """A machine is gone, with the volume that was on it."""
        pod = self.pods[ordinal]
        pod.kill()
        pod.delete()
        self.delete_claim(f"data-{pod.name}")
        self._create(ordinal)

    def delete_claim(self, claim):
        shutil.rmtree(self.claims.pop(claim))

    def wait_until_available(self, seconds=120):
        """kubectl rollout status."""
        wait_for(
            "all pods available",
            lambda: len(self.pods) == self.replicas and all(pod.is_available() for pod in self.pods.values()),
            seconds,
        )

    def rolling_restart(self):
        """kubectl rollout restart: the last pod first, the next one when it is available."""
        for ordinal in sorted(self.pods, reverse=True):
            self.replace(ordinal)
            self.wait_until_available()

    def endpoints(self, service="kentongan"):
        """Addresses and ports of the ready pods behind a Service."""
        port = self.objects.get("Service", service)["spec"]["ports"][0]["targetPort"]
        number = next(one["containerPort"] for one in self.objects.container["ports"] if one["name"] == port)
        return [(pod.address, number) for pod in list(self.pods.values()) if pod.is_ready]

    def resolve(self, name):
        """Addresses of a name of a headless Service, or of a pod of one; None if there is none."""
        for service in self.objects.of("Service"):
            domain = f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
            if service["spec"].get("clusterIP") != "None" or not name.endswith(domain):
                continue
            is_shown = service["spec"].get("publishNotReadyAddresses", False)
            shown = [pod for pod in list(self.pods.values()) if pod.is_ready or is_shown and not pod.ended.is_set()]
            if name == domain:
                return [pod.address for pod in shown] or None
            if service["metadata"]["name"] == self.objects.stateful_set["spec"]["serviceName"]:
                return [pod.address for pod in shown if name == f"{pod.name}.{domain}"] or None
        return None

    # --- a Job ---

    def run_job(self, objects):
        """Runs the containers of a Job one after the other. Those of kubectl's image are carried out here."""
        (job,) = objects.of("Job")
        template, self.job_log = job["spec"]["template"], ""
        self.config_maps |= {one["metadata"]["name"]: one["data"] for one in objects.of("ConfigMap")}
        sandbox = Sandbox(self, job["metadata"]["name"], template, {})
        try:
            for container in [*template["spec"]["initContainers"], *template["spec"]["containers"]]:
                if container["command"] == ["kubectl"]:
                    variables = sandbox.environment(container)
                    self._kubectl([expand(text, variables) for text in container["args"]])
                    continue
                with (self.directory / "job.log").open("w+b") as log:
                    code = sandbox.start(container, log).wait(300)
                    log.seek(0)
                    said = log.read().decode().strip()
                    self.say(f"Job, {container['name']}: {said}")
                    self.job_log += f"{said}\n"
                    if code != 0:
                        raise RuntimeError(f"{container['name']} ended with {code}: {said}")
        finally:
            sandbox.remove()

    def _kubectl(self, arguments):
        """The few commands of kubectl that the Job uses."""
        self.say(f"Job: kubectl {' '.join(arguments)}")
        self.job_log += f"{' '.join(arguments)}\n"
        match arguments:
            case ["scale", "statefulset/kentongan", current, replicas]:
                current, replicas = (int(text.split("=")[1]) for text in (current, replicas))
                if current != self.replicas:
                    raise RuntimeError(f"Expected replicas to be {current}, was {self.replicas}")
                if replicas != self.replicas:
                    self.scale(replicas)
            case ["wait", "--for=delete", pod, _]:
                name = pod.removeprefix("pod/")
                wait_for(f"no {pod}", lambda: all(one.name != name for one in self.pods.values()))
            case ["delete", "persistentvolumeclaim", claim, "--ignore-not-found"]:
                if claim in self.claims:
                    self.delete_claim(claim)
            case _:
                raise RuntimeError(f"kubectl {arguments} is not known here")

    def stop(self):
        """Everything ends, at once."""
        for pod in self.pods.values():
            pod.deleted.set()
            pod.process.kill()
            pod.process.wait()
            pod.sandbox.remove()
            pod.log.close()


def make_network():
    """A bridge on which every pod is, and the test itself."""
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "addr", "add", f"{GATEWAY}/16", "dev", "br0")
    run("ip", "link", "set", "br0", "up")


def wait_for(what, condition, seconds=60):
    """Waits until a condition holds; returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.05)


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
