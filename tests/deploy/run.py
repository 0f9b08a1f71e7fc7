#!/usr/bin/env python3
"""Tests of what is in deploy/.

    run.py --broker target/debug/kentongan [manifests] [chart] [pods] [page] [compose] [observability] [image]

Without names: all suites. Those from `pods` on run in name spaces of their own, as root in there; if it is started by root, the pods'
processes have the user that the manifests say. `image` wants root itself, else by sudo. Ends with `total: N passed, N failed`.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent

SUITES = {
    "manifests": "manifests.py",
    "chart": "chart.py",
    "pods": "pods.py",
    "page": "page.py",
    "compose": "compose.py",
    "observability": "observability.py",
    "image": "image.py",
}
# Those that make networks and mounts, or want every port to be free.
APART = {"pods", "page", "compose", "observability", "image"}
# Those that wait for most of their time: beside the others, and what they say comes at the end.
ASIDE = {"page"}
# Those that have users of their own.
BY_ROOT = {"image"}
SUITE_SECONDS = 900


def count(output):
    """How many tests passed and failed, by what unittest says."""
    ran = re.search(r"^Ran (\d+) tests? in", output, re.M)
    if ran is None:
        return 0, 1
    bad = len(set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+)", output, re.M)))
    return max(int(ran[1]) - bad, 0), bad


def command(name, tests, environment):
    """How a suite is started."""
    command = [sys.executable, str(HERE / SUITES[name]), "-v", *tests]
    if name not in APART:
        return command
    apart = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() == 0:
        return ["unshare", *apart, *command]
    if name in BY_ROOT:
        # sudo has an environment of its own.
        ours = [f"{variable}={environment[variable]}" for variable in ("KENTONGAN", "PATH")]
        return ["sudo", "env", *ours, "unshare", *apart, *command]
    return ["unshare", "--user", "--map-root-user", *apart, *command]


def run(suite, environment, show):
    """Runs one, such as pods:Pods.test_one_node. Returns what it said, which is printed at once if it is to be shown, how many passed and how many failed."""
    name, _, test = suite.partition(":")
    began, output = time.monotonic(), []

    def say(line):
        output.append(line)
        if show:
            print(line, end="", flush=True)

    process = subprocess.Popen(
        command(name, [test] if test else [], environment),
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for line in process.stdout:
        say(line)
    good, bad = count("".join(output))
    if process.wait() != 0:
        bad = max(bad, 1)
    say(f"{name}: {good} passed, {bad} failed ({time.monotonic() - began:.1f} s)\n")
    return "".join(output), good, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", metavar="BINARY", required=True)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="a suite, or SUITE:TEST, such as pods:Pods.test_one_node")
    arguments = parser.parse_args()
    environment = {
        **os.environ,
        "KENTONGAN": os.path.abspath(arguments.broker),
        "KENTONGAN_TEST_HAS_USERS": "1" if os.geteuid() == 0 else "0",
        # Those of the same virtual environment come first: kubectl, helm.
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    wanted = arguments.suites or SUITES
    for suite in wanted:
        if suite.partition(":")[0] not in SUITES:
            sys.exit(f"run.py: no suite {suite}; there are: {', '.join(SUITES)}")
    aside = [suite for suite in wanted if suite.partition(":")[0] in ASIDE]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        behind = [pool.submit(run, suite, environment, False) for suite in aside]
        counts = [run(suite, environment, True) for suite in wanted if suite not in aside]
        for running in behind:
            output, *numbers = running.result()
            print(output, end="", flush=True)
            counts.append(("", *numbers))
    passed, failed = (sum(one[index] for one in counts) for index in (1, 2))
    print(f"total: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
