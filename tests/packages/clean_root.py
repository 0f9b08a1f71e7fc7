"""A clean root of a test's own, in which the package is installed and its unit started."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from unit import Unit

PACKAGES = pathlib.Path(os.environ["KENTONGAN_PACKAGES"])
FIRST, LATER = PACKAGES / "first.deb", PACKAGES / "later.deb"
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
SETTINGS = "etc/kentongan/kentongan.toml"


def bring_up_loopback():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class CleanRoot(unittest.TestCase):
    def setUp(self):
        """The clean root with a layer of its own over it."""
        base = PACKAGES / "roots"
        layers = pathlib.Path(tempfile.mkdtemp(dir=base))
        for name in ["upper", "work", "root"]:
            (layers / name).mkdir(mode=0o755)
        self.root = layers / "root"
        options = f"lowerdir={base / 'root'},upperdir={layers / 'upper'},workdir={layers / 'work'}"
        self.mount("-t", "overlay", "-o", options, "overlay", self.root)
        self.mount("-t", "proc", "proc", self.root / "proc")
        (self.root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        (self.root / "usr/sbin/policy-rc.d").chmod(0o755)
        self.unit = None

    def mount(self, *arguments):
        subprocess.run(["mount", *arguments], check=True)
        self.addCleanup(subprocess.run, ["umount", arguments[-1]], check=True)

    def inside(self, *command, text=None):
        """Runs a command in the root, and returns what it printed."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        stdin = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            ["chroot", self.root, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **stdin,
        )
        self.assertEqual(done.returncode, 0, f"{command}: {done.stdout}")
        return done.stdout

    def install(self, later=False):
        source = LATER if later else FIRST
        target = self.root / "tmp" / source.name
        shutil.copy(source, target)
        # Enter, if dpkg asks what to do about settings that were changed: its default.
        self.inside("apt-get", "install", "--yes", f"/tmp/{target.name}", text="\n")

    def serve(self):
        self.unit = Unit(self.root, "kentongan.service")
        self.addCleanup(self.unit.stop)
        self.unit.start()

    def add(self, name, text):
        path = self.root / "etc/kentongan" / name
        path.write_text(text, encoding="utf-8")
        return path

    def owner(self, path):
        """Mode and owner, by name, as the root has them."""
        return self.inside("stat", "--format", "%a %U:%G", f"/{path}").strip()
