#!/usr/bin/env python3
"""Tests of the Debian package: made, installed in a clean root, upgraded and purged, its broker started as the unit says.

    run.py --target target --profile quick [TEST...]

The program of that profile must be built. Runs as root, in name spaces of its own. A TEST is such as
test_package.Package.test_upgrade_keeps_what_was_changed. Ends with `total: N passed, N failed`.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent


def suite_of_debian():
    """The release of this machine, so that what was linked here runs there."""
    release = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    return re.search(r"^VERSION_CODENAME=(\S+)", release, re.M)[1]


def make_package(directory, target, profile):
    environment = {**os.environ, "CARGO_TARGET_DIR": os.path.abspath(target)}
    command = [REPOSITORY / "tools/deb.sh", "--profile", profile, "--fast", "--output", directory, "--quiet"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def make_later_package(directory):
    """The same a version later, with another file of settings in it."""
    (first,) = pathlib.Path(directory).glob("*.deb")
    tree = pathlib.Path(directory, "later")
    subprocess.run(["dpkg-deb", "--raw-extract", first, tree], check=True)
    control = tree / "DEBIAN/control"
    text, versions = re.subn(r"^Version: .*$", "Version: 9.0.0-1", control.read_text(encoding="utf-8"), flags=re.M)
    assert versions == 1
    control.write_text(text, encoding="utf-8")
    with open(tree / "etc/kentongan/kentongan.toml", "a", encoding="utf-8") as settings:
        settings.write("\n# A later version says more.\n")
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, directory], check=True, stdout=subprocess.DEVNULL)


def make_root(directory):
    """A system with nothing in it but apt, and what the package needs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "root", directory], check=True)
    options = ["--variant=apt", "--include=adduser,procps", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    subprocess.run(["mmdebstrap", "--quiet", *options, suite_of_debian(), directory / "root"], check=True)


def count(output):
    """How many tests passed and failed, by what unittest says."""
    ran = re.search(r"^Ran (\d+) tests? in", output, re.M)
    if ran is None:
        return 0, 1
    bad = len(set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+)", output, re.M)))
    return max(int(ran[1]) - bad, 0), bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", metavar="DIRECTORY", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("tests", nargs="*", metavar="TEST")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run.py: only root can install a package in a root of its own")
    # Mounts that end with this process.
    if "KENTONGAN_TEST_HAS_MOUNTS" not in os.environ:
        os.environ["KENTONGAN_TEST_HAS_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="kentongan-packages-") as directory:
        directory = pathlib.Path(directory)
        (directory / "debs").mkdir()
        (directory / "roots").mkdir()
        make_package(directory / "debs", arguments.target, arguments.profile)
        make_later_package(directory / "debs")
        make_root(directory / "roots")
        try:
            return run(directory, arguments.tests)
        finally:
            subprocess.run(["umount", directory / "roots"], check=True)


def run(directory, tests):
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-m", "unittest", "-v", *(tests or ["test_package"])]
    environment = {**os.environ, "KENTONGAN_PACKAGES": str(directory), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    process = subprocess.run(
        command, cwd=HERE, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    print(process.stdout, end="")
    passed, failed = count(process.stdout)
    if process.returncode != 0:
        failed = max(failed, 1)
    print(f"total: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
