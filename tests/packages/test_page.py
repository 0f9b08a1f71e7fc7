"""docs/guide/packages.md, followed word by word by root in a clean root."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

from clean_root import FIRST, LATER, REPOSITORY, CleanRoot, bring_up_loopback

sys.path.insert(0, str(REPOSITORY / "tests" / "clients"))

import guide  # noqa: E402

PAGE = REPOSITORY / "docs" / "guide" / "packages.md"

# Who asks for more rights has them already.
SUDO = """#!/bin/sh
exec "$@"
"""
# What it is told goes to the test, which is the service manager here.
SYSTEMCTL = """#!/bin/sh
echo "$*" > /run/systemctl.asked
read -r code < /run/systemctl.answered
exit "$code"
"""


def setUpModule():
    bring_up_loopback()


class Page(CleanRoot):
    def setUp(self):
        super().setUp()
        for name, text in [("sudo", SUDO), ("systemctl", SYSTEMCTL)]:
            program = self.root / "usr/local/bin" / name
            program.write_text(text, encoding="utf-8")
            program.chmod(0o755)
        for name in ["asked", "answered"]:
            os.mkfifo(self.root / f"run/systemctl.{name}")
        self.manager = threading.Thread(target=self.manage, daemon=True)
        self.manager.start()
        self.addCleanup(self.end_managing)
        # As every system has it.
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
        self.here = self.root / "root" / "here"
        self.here.mkdir()

    def manage(self):
        """Does what `systemctl` is told to, until it is told to end."""
        while asked := (self.root / "run/systemctl.asked").read_text(encoding="utf-8").split():
            try:
                match asked:
                    case ["reload", "kentongan"]:
                        self.unit.reload()
                    case ["restart", "kentongan"]:
                        self.restart()
                    case ["daemon-reload"]:
                        pass
                    case _:
                        raise AssertionError(f"systemctl {asked} is not known here")
                code = 0
            except BaseException as error:  # Whatever it is, who asked must hear of it.
                print(f"systemctl {asked}: {error!r}", flush=True)
                code = 1
            (self.root / "run/systemctl.answered").write_text(f"{code}\n", encoding="utf-8")

    def end_managing(self):
        """What it has open would keep the root from being unmounted."""
        (self.root / "run/systemctl.asked").write_text("\n", encoding="utf-8")
        self.manager.join()

    def restart(self):
        if self.unit is not None:
            self.assertEqual(self.unit.stop(), 0)
        self.serve()

    def test_each_block_does_what_the_page_says(self):
        text = PAGE.read_text(encoding="utf-8")
        packages = re.findall(r"^sudo apt-get install \./(\S+\.deb)$", text, re.M)
        for source, name in zip([FIRST, LATER], packages, strict=True):
            shutil.copy(source, self.here / name)
        inside = f"cd /{self.here.relative_to(self.root)} && exec bash --noprofile --norc"
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        shell = guide.Shell(self.here, ["chroot", str(self.root), "sh", "-c", inside], environment)
        # In this order, last first: what it is in is unmounted afterwards.
        self.addCleanup(shell.process.wait)
        self.addCleanup(shell.process.kill)
        self.addCleanup(shell.process.stdin.close)
        for number, block in enumerate(guide.blocks(text)):
            # systemd, which the package's scripts would ask to, stops and starts the broker.
            if "apt-get remove" in block.text:
                self.assertEqual(self.unit.stop(), 0)
            try:
                guide.run_block(shell, self.here, number, block)
            except guide.Wrong as wrong:
                self.fail(f"packages.md, line {block.line}:\n{block.text}\n{wrong}\n{self.unit.logged() if self.unit and self.unit.process else ''}")
            if "apt-get install" in block.text:
                self.restart()

    def test_it_says_what_the_package_needs_and_where_it_was_tried(self):
        text = PAGE.read_text(encoding="utf-8")
        fields = subprocess.run(["dpkg-deb", "--field", FIRST], check=True, capture_output=True, text=True).stdout
        self.assertIn(re.search(r"libc6 \(>= [\d.]+\)", fields)[0], text)
        maintainer = re.search(r"^Maintainer: (.*)$", fields, re.M)[1]
        self.assertIn(f"`{maintainer}`", text)
        tried = re.search(r"\*\*It was tried on Debian (\d+)\*\*", text)[1]
        # Made here, it is tried in a root of the same.
        here = re.search(r'^VERSION_ID="(\d+)"$', pathlib.Path("/etc/os-release").read_text(encoding="utf-8"), re.M)[1]
        if tried != here:
            self.skipTest("this machine is of another release than the page's")


if __name__ == "__main__":
    unittest.main()
