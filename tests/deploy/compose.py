"""deploy/compose/compose.yaml without containers: held against the Compose specification, and what its services say run as processes.

Each service has a root file system of its own (this machine's, with a layer over it), in which its volumes are mounted where the
file says; all share one network, as they do there. Programs are this machine's: other versions than those of the images. Grafana
is not run. It must run in name spaces of its own (network, mounts, processes): run.py sees to it.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request

import jsonschema
import yaml

import kubelet
import rendered
from kubelet import wait_for

BROKER = os.environ.get("KENTONGAN", "kentongan")
HAS_USERS = os.environ.get("KENTONGAN_TEST_HAS_USERS") == "1"
FILE = rendered.ROOT / "deploy" / "compose" / "compose.yaml"
PROMETHEUS = "http://127.0.0.1:9090"
READY_SECONDS = 60

# How the images of others start their programs.
PROGRAMS = {
    "docker.io/library/haproxy": ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"],
    "docker.io/prom/prometheus": ["prometheus"],
}
NOT_RUN = {"grafana"}


def setUpModule():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def compose():
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def image():
    """What the Dockerfile's last stage says: instructions by their names."""
    text = (rendered.ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Z]+) (.*)$", text[text.rindex("\nFROM ") :], re.M))


class Service:
    """A process that has what its service says."""

    def __init__(self, name, said, directory):
        self.root, self.log = directory / name / "root", directory / f"{name}.log"
        for part in ("root", "upper", "work"):
            (directory / name / part).mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={directory / name / 'upper'},workdir={directory / name / 'work'}"
        kubelet.run("mount", "-t", "overlay", "-o", layers, "overlay", self.root)
        kubelet.run("mount", "--rbind", "/proc", self.root / "proc")
        kubelet.run("mount", "--rbind", "/dev", self.root / "dev")
        own = image()
        is_ours = said["image"].startswith("kentongan:")
        user = own["USER"].split(":") if is_ours and HAS_USERS else None
        if is_ours:
            self.bind(BROKER, json.loads(own["ENTRYPOINT"])[0], "ro")
        for volume in said.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                source = FILE.parent / source
            else:
                # A volume that is new has the owner of what the image has there.
                source = directory / f"volume-{source}"
                source.mkdir()
                os.chown(source, *map(int, user or (0, 0)))
            self.bind(source, target, *mode)
        if said.get("read_only"):
            kubelet.run("mount", "-o", "remount,bind,ro", self.root, self.root)
        command = json.loads(own["ENTRYPOINT"]) if is_ours else PROGRAMS[said["image"].rsplit(":", 1)[0]]
        environment = {"PATH": os.environ["PATH"], **said.get("environment", {})}
        if is_ours:
            environment |= dict(one.split("=", 1) for one in own["ENV"].split())
        # `chroot` goes to /, and the image says where to begin.
        arguments = ["chroot", *([f"--userspec={':'.join(user)}", "--groups="] if user else []), self.root]
        arguments += ["sh", "-c", f'cd {own["WORKDIR"] if is_ours else "/"} && exec "$@"', "sh", *command, *said.get("command", [])]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def bind(self, source, target, mode="rw"):
        place = self.root / target.lstrip("/")
        source = pathlib.Path(source).resolve()
        if source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        kubelet.run("mount", "--bind", source, place)
        if mode == "ro":
            kubelet.run("mount", "-o", "remount,bind,ro", source, place)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Compose(unittest.TestCase):
    def test_it_is_as_the_compose_specification_says(self):
        # The schema comes with a program that checks by it.
        package = importlib.util.find_spec("check_jsonschema")
        schema = pathlib.Path(package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
        validator = jsonschema.validators.validator_for(read := json.loads(schema.read_text(encoding="utf-8")))(read)
        self.assertEqual([error.message for error in validator.iter_errors(compose())], [])
        wrong = compose()
        wrong["services"]["node-1"]["comand"] = []
        self.assertFalse(validator.is_valid(wrong))

    def test_its_services_work_together(self):
        temporary = tempfile.TemporaryDirectory(prefix="kentongan-compose-", ignore_cleanup_errors=True)
        self.addCleanup(temporary.cleanup)
        directory = pathlib.Path(temporary.name)
        # Layers cannot lie over the file system that they are of.
        kubelet.run("mount", "-t", "tmpfs", "-o", "mode=0755", "layers", directory)
        self.addCleanup(kubelet.run, "umount", "--lazy", directory)
        self.services, said = {}, compose()["services"]
        self.assertEqual({one.get("network_mode") for name, one in said.items() if name != "haproxy"}, {"service:haproxy"})
        for name, one in said.items():
            if name not in NOT_RUN:
                self.services[name] = Service(name, one, directory)
                self.addCleanup(self.services[name].stop)
        pub = [BROKER, "pub", "-p", "2883", "-t", "plant/1/temp", "-m", "21", "-q", "1", "-r"]
        self.wait_for("a message", lambda: subprocess.run(pub, capture_output=True).returncode == 0)
        sub = subprocess.run([BROKER, "sub", "-p", "2883", "-t", "plant/1/temp", "-C", "1", "-W", "20"], capture_output=True, text=True)
        self.assertEqual(sub.stdout, "21\n", sub.stderr)
        query = urllib.parse.urlencode({"query": 'sum(up{job="kentongan"})'})

        def nodes_seen():
            try:
                with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{query}", timeout=5) as answer:
                    result = json.load(answer)["data"]["result"]
            except OSError:
                return False
            return result and result[0]["value"][1] == "3"

        self.wait_for("three nodes in Prometheus", nodes_seen)
        with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/rules", timeout=5) as answer:
            self.assertNotEqual(json.load(answer)["data"]["groups"], [], "the alerts are not read")
        # Whatever is reached from outside is served, at every address.
        listening = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
        for port in (one.split(":")[-1] for one in said["haproxy"]["ports"]):
            if port != "3000":
                self.assertRegex(listening, rf"(?:0\.0\.0\.0|\*):{port}\s")

    def wait_for(self, what, condition):
        def is_there():
            for name, service in self.services.items():
                log = service.log.read_text(encoding="utf-8", errors="replace")[-3000:]
                assert service.process.poll() is None, f"{name} has ended:\n{log}"
            return condition()

        wait_for(what, is_there, READY_SECONDS)


if __name__ == "__main__":
    unittest.main()
