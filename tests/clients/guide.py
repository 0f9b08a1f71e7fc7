"""Does what the pages of the guide say, as a reader would, and compares what comes of it.

A block of a page is tried if the words behind its language say so:

    ```sh run          commands, in one shell for all blocks of the page, in a new directory that has the deploy/ of the source tree in it, with
                       `kentongan` in the PATH, and as what ./run.sh builds and runs
    ```sh run fails    the same, but each of its commands, one a line, must fail
    ```sh run until    the same, again and again until they succeed: for what a program in the background needs time for
    ```sh run terminals  each command in a terminal of its own, where it goes on; those of such a block before are closed
    ```text output     what the block before it prints; `...` stands for anything, alone on a line for any lines
    ```toml config     a file of settings, or a part of one, that `kentongan config check --without-files` must find in order
    ```yaml file       a file, of any language, whose first line says in a comment where it is to stand

Blocks that nobody tries are on the list in untried.toml, each with the reason; the other way round, what is on the list is on its page and
not tried. Output, which is `text`, needs no reason.

Each page is tried where nobody else is: in namespaces of its own for the network, so that its ports are free and are reached by nobody
else, and for processes, so that none is left. Two pages want more than that, and are followed by tests that have it: see ELSEWHERE.
"""

import fcntl
import itertools
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GUIDE = ROOT / "docs" / "guide"
UNTRIED = pathlib.Path(__file__).with_name("untried.toml")

# Pages whose blocks are tried where there is a clean root with the package in it, and a cluster of pods.
ELSEWHERE = {"packages.md": "tests/packages/test_page.py", "kubernetes.md": "tests/deploy/page.py"}

# Time within which what a page does in one block has happened.
BLOCK_SECONDS = 60
UNTIL_SECONDS = 50

# `--kill-child`: whatever a page leaves running ends with it.
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
if os.geteuid() != 0:
    UNSHARE.insert(1, "--map-root-user")

# One of a list is indented.
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)

# Where commands should succeed, the first that does not ends the block, and not the shell, which goes on with the page.
ENDS_AT_A_FAILURE = "failures=1; return 0"
COUNTS_FAILURES = "failures=$((failures + 1))"


class Wrong(Exception):
    """What a page says is not so."""


class Block:
    """A block that is tried, and what it is to print.

    `words` are those behind `run`, or say what else it is: `config`, `file`.
    """

    def __init__(self, line, words, text):
        self.line, self.words, self.text = line, words, text
        self.output = None

    def commands(self):
        """One a line, but for lines that go on."""
        text = re.sub(r"\\\n", " ", self.text)
        return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]

    def script(self):
        if "terminals" not in self.words:
            return self.text
        names = (f"terminal-{self.line}-{number}.log" for number in itertools.count(1))
        opened = (f"{command} > {name} 2>&1 &\n" for command, name in zip(self.commands(), names))
        return "kill $(jobs -pr) 2> /dev/null || true; wait || true\n" + "".join(opened)


def blocks(page):
    """The blocks of a page that are tried, in their order."""
    found, last = [], None
    for fence in FENCE.finditer(page):
        line = page.count("\n", 0, fence.start()) + 1
        words, text = fence["info"].split(), textwrap.dedent(fence["text"])
        if words[:2] == ["text", "output"]:
            if last is None:
                raise Wrong(f"line {line}: an output of nothing")
            last.output, last = text, None
            continue
        last = None
        if len(words) > 1:
            last = Block(line, words[2:] if words[:2] == ["sh", "run"] else words[1:], text)
            if not set(last.words) <= {"fails", "until", "terminals", "config", "file"}:
                raise Wrong(f"line {line}: {' '.join(words)!r} is not known")
            found.append(last)
    return found


def untried(page):
    """How the blocks of a page begin that nobody tries. What is indented by four spaces, outside of fences and lists, is one too."""
    fences = [fence for fence in FENCE.finditer(page) if len(fence["info"].split()) < 2 and fence["info"].strip() != "text"]
    found = [textwrap.dedent(fence["text"]).lstrip().split("\n")[0] for fence in fences]
    return found + re.findall(r"(?<=\n\n) {4}([^ -].*)", FENCE.sub("", page))


def pattern(expected):
    """A regular expression for an output with `...` in it."""
    lines = []
    for line in expected.rstrip("\n").split("\n"):
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n")
    return re.compile("".join(lines))


class Shell:
    """One bash for a whole page."""

    def __init__(self, directory, command=("bash", "--noprofile", "--norc"), environment=None):
        """`command` is a bash that begins in this directory, if by another name of it."""
        self.directory = directory
        self.status_read, status_write = os.pipe()
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            pass_fds=[status_write],
            text=True,
        )
        self.status_fd = status_write
        os.set_blocking(self.status_read, False)

    def tell(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def run(self, number, block):
        """How many commands failed, and what they printed."""
        on_failure = COUNTS_FAILURES if "fails" in block.words else ENDS_AT_A_FAILURE
        script, printed = (self.directory / f".block-{number}{end}" for end in ("", ".out"))
        # Its own end is none that the trap should count.
        script.write_text(f"{block.script()}true\n", encoding="utf-8")
        # What it leaves in the background must not hold the pipe of the statuses.
        self.tell(f"failures=0; trap '{on_failure}' ERR; . ./{script.name} > {printed.name} 2>&1 < /dev/null {self.status_fd}>&-\n")
        self.tell(f"echo $failures >&{self.status_fd}\n")
        deadline = time.monotonic() + BLOCK_SECONDS
        answer = b""
        while not answer.endswith(b"\n"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Wrong(f"it did not come to its end; it printed:\n{printed.read_text(errors='replace')}")
            try:
                answer += os.read(self.status_read, 100)
            except BlockingIOError:
                time.sleep(0.01)
        return int(answer), printed.read_text(encoding="utf-8", errors="replace")


def run_shell_block(shell, number, block):
    deadline = time.monotonic() + UNTIL_SECONDS
    while True:
        failures, printed = shell.run(number, block)
        wrong = what_is_wrong(block, failures, printed)
        if wrong is None:
            return
        if "until" not in block.words or time.monotonic() > deadline:
            raise Wrong(wrong)
        time.sleep(0.1)


def what_is_wrong(block, failures, printed):
    """What is not as the page says; None if all is."""
    if "fails" in block.words and failures != len(block.commands()):
        return f"{failures} of {len(block.commands())} commands failed, all should; they printed:\n{printed}"
    if "fails" not in block.words and failures > 0:
        return f"it failed and printed:\n{printed}"
    if block.output is not None and not pattern(block.output).fullmatch(printed):
        return f"it should print:\n{block.output}\nand printed:\n{printed}"
    return None


def run_file_block(directory, block):
    named = re.match(r"(?:#|//) (\S+)\n", block.text)
    if named is None:
        raise Wrong("its first line does not say where it is to stand")
    path = directory / named[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def run_config_block(directory, number, block):
    path = directory / f".block-{number}.toml"
    path.write_text(block.text, encoding="utf-8")
    done = subprocess.run(["kentongan", "config", "check", "--without-files", path], cwd=directory, capture_output=True, text=True)
    if done.returncode != 0:
        raise Wrong(f"these settings are not in order: {done.stderr}")


def bring_up_loopback():
    """What `ip link set lo up` does, where there is no `ip`."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sh14x", b"lo", 0))
        _, flags = struct.unpack("16sh14x", request)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", flags | up))


def run_block(shell, directory, number, block):
    """Tries one, by the shell of its page."""
    if "config" in block.words:
        run_config_block(directory, number, block)
    elif "file" in block.words:
        run_file_block(directory, block)
    else:
        run_shell_block(shell, number, block)


def run_page(path, directory):
    """Tries every block of a page; how many there were."""
    page = path.read_text(encoding="utf-8")
    shell, found = Shell(directory), blocks(page)
    for number, block in enumerate(found):
        try:
            run_block(shell, directory, number, block)
        except Wrong as wrong:
            logs = "".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in directory.glob("*.log"))
            raise Wrong(f"{path.name}, line {block.line}:\n{block.text}\n{wrong}\n{logs}") from None
    return len(found)


def inside(page, binary):
    """The whole of it, in namespaces of its own."""
    bring_up_loopback()
    with tempfile.TemporaryDirectory(prefix="kentongan-guide-") as directory:
        directory = pathlib.Path(directory).resolve()
        programs, work = directory / "bin", directory / "work"
        programs.mkdir()
        work.mkdir()
        (programs / "kentongan").symlink_to(binary)
        (work / "deploy").symlink_to(ROOT / "deploy")
        built = work / "target" / "release"
        built.mkdir(parents=True)
        (built / "kentongan").symlink_to(binary)
        (work / "run.sh").write_text('#!/bin/sh\nexec kentongan "$@"\n', encoding="utf-8")
        (work / "run.sh").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KENTONGAN_")}
        os.environ.clear()
        os.environ.update(kept, PATH=f"{programs}:{kept['PATH']}:{pathlib.Path(sys.executable).parent}", HOME=str(directory), LC_ALL="C.UTF-8")
        try:
            print(f"{run_page(pathlib.Path(page), work)} blocks")
        except Wrong as wrong:
            sys.exit(f"{wrong}")


def pages():
    """The README, and the guide's."""
    return [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]


class Pages(unittest.TestCase):
    """What is tried of all pages, and what is not."""

    def test_each_page_is_tried_somewhere(self):
        for path in pages():
            with self.subTest(path.name):
                self.assertNotEqual(blocks(path.read_text(encoding="utf-8")), [], "a page of which nothing is tried")
        for name, test in ELSEWHERE.items():
            with self.subTest(name):
                self.assertIn(name, (ROOT / test).read_text(encoding="utf-8"))

    def test_each_block_is_tried_or_there_is_a_reason(self):
        reasons = tomllib.loads(UNTRIED.read_text(encoding="utf-8"))
        self.assertEqual(set(reasons) - {path.name for path in pages()}, set(), "there are no such pages")
        for path in pages():
            with self.subTest(path.name):
                found = untried(path.read_text(encoding="utf-8"))
                self.assertEqual(sorted(found), sorted(reasons.get(path.name, {})))
        for reason in (reason for page in reasons.values() for reason in page.values()):
            self.assertGreater(len(reason.split()), 3, f"no reason: {reason}")


class Guide(unittest.TestCase):
    """A page a test."""

    def follow(self, path):
        if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
            self.skipTest("this machine gives no namespaces, and a page may need any port")
        if os.geteuid() != 0 and "\nnginx " in path.read_text(encoding="utf-8"):
            self.skipTest("NGINX takes on another user, which only root may do")
        command = [*UNSHARE, sys.executable, __file__, str(path), os.environ["KENTONGAN"]]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"\b[1-9]\d* blocks", "a page of which nothing is tried")


def add_tests():
    """A test for the README, and for each page that is tried here."""
    for path in pages():
        if path.name not in ELSEWHERE:
            name = "test_" + path.stem.lower().replace("-", "_")
            setattr(Guide, name, lambda self, path=path: self.follow(path))


add_tests()


if __name__ == "__main__":
    inside(*sys.argv[1:])
