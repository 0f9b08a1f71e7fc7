#!/usr/bin/env python3
"""Tests of the Debian package: installed in a clean root, upgraded and purged, its broker started as the unit says.

    run.py --package FILE [--suite trixie] [TEST...]

tools/deb.sh makes the package. The root is one of this machine's release of Debian, unless --suite names another one. Runs as
root, in name spaces of its own. A TEST is such as test_package.Package.test_upgrade_keeps_what_was_changed. Ends with `total: N passed, N failed`.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def suite_of_debian():
    """The release of this machine, so that what was linked here runs there."""
    release = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    return re.search(r"^VERSION_CODENAME=(\S+)", release, re.M)[1]


def make_later_package(first, later):
    """The same a version later, that of the guide, with another file of settings in it."""
    with tempfile.TemporaryDirectory(prefix="kentongan-later-") as tree:
        tree = pathlib.Path(tree)
        subprocess.run(["dpkg-deb", "--raw-extract", first, tree], check=True)
        control = tree / "DEBIAN/control"
        text, versions = re.subn(r"^Version: .*$", "Version: 0.2.0-1", control.read_text(encoding="utf-8"), flags=re.M)
        assert versions == 1
        control.write_text(text, encoding="utf-8")
        with open(tree / "etc/kentongan/kentongan.toml", "a", encoding="utf-8") as settings:
            settings.write("\n# A later version says more.\n")
        build = ["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, later]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)


def make_root(directory, suite):
    """A system with nothing in it but apt, and what the package needs."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "root", directory], check=True)
    options = ["--variant=apt", "--include=adduser,procps", "--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"']
    options.append('--aptopt=Acquire::Retries "3"')
    subprocess.run(["mmdebstrap", "--quiet", *options, suite, directory / "root"], check=True)


def count(output):
    """How many tests passed and failed, by what unittest says."""
    ran = re.search(r"^Ran (\d+) tests? in", output, re.M)
    if ran is None:
        return 0, 1
    bad = len(set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+)", output, re.M)))
    return max(int(ran[1]) - bad, 0), bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", metavar="FILE", required=True)
    parser.add_argument("--suite", default=suite_of_debian())
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
        (directory / "roots").mkdir()
        shutil.copy(arguments.package, directory / "first.deb")
        make_later_package(directory / "first.deb", directory / "later.deb")
        make_root(directory / "roots", arguments.suite)
        try:
            return run(directory, arguments.tests)
        finally:
            subprocess.run(["umount", directory / "roots"], check=True)


def run(directory, tests):
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-m", "unittest", "-v", *(tests or ["test_package", "test_page"])]
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
