"""The manifests as `kubectl kustomize` renders them."""

import functools
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy" / "k8s"
OVERLAYS = ("single", "cluster", "production")
KUBECTL = os.environ.get("KUBECTL", "kubectl")
HELM = os.environ.get("HELM", "helm")


def render(directory):
    """The objects that a directory with a kustomization.yaml stands for."""
    done = subprocess.run([KUBECTL, "kustomize", directory], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{directory}: {done.stderr}")
    return Objects(yaml.safe_load_all(done.stdout))


@functools.cache
def overlay(name):
    return render(MANIFESTS / "overlays" / name)


@functools.cache
def removal():
    return render(MANIFESTS / "operations" / "remove-node")


@functools.cache
def with_cert_manager():
    """The overlay `production` with certificates by cert-manager, as the guide says."""
    (text,) = [one for one in guide("yaml") if "components:" in one]
    return with_kustomization(text)


def guide(kind):
    """The blocks of docs/guide/kubernetes.md that are of this kind."""
    text = (ROOT / "docs" / "guide" / "kubernetes.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}(?: [a-z ]+)?\n(.*?)^```$", text, re.M | re.S)


def with_kustomization(text, **files):
    """What a kustomization.yaml of the guide makes, in a directory beside deploy/."""
    with tempfile.TemporaryDirectory(dir=ROOT, prefix="mine-") as directory:
        for name, content in {"kustomization.yaml": text, **files}.items():
            pathlib.Path(directory, name).write_text(content, encoding="utf-8")
        return render(directory)


class Objects(list):
    """Objects, to be found by kind and name."""

    def of(self, kind):
        return [one for one in self if one["kind"] == kind]

    def get(self, kind, name):
        found = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
        return found[0]

    @property
    def stateful_set(self):
        return self.get("StatefulSet", "kentongan")

    @property
    def pod(self):
        """What every pod of the StatefulSet is made by."""
        return self.stateful_set["spec"]["template"]

    @property
    def container(self):
        (container,) = self.pod["spec"]["containers"]
        return container


def selects(selector, labels):
    """Whether a selector of labels (a plain map, or with matchLabels) fits."""
    wanted = selector.get("matchLabels", selector)
    return wanted.items() <= labels.items()


def chart(*values):
    """The Helm chart with these files of values and settings (KEY=VALUE)."""
    directory = ROOT / "deploy" / "helm" / "kentongan"
    command = [HELM, "template", "kentongan", directory]
    for one in values:
        command += ["--set", one] if "=" in one else ["--values", directory / one]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return Objects(one for one in yaml.safe_load_all(done.stdout) if one)
