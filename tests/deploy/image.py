"""deploy/Dockerfile as it stands, built by buildah, and the image that comes of it, run by podman.

No registry is asked for anything. In the place of the image that has the Rust toolchain there is one of this machine's programs, in
which `cargo build` takes the program that is built already; every other line of the file is carried out. KENTONGAN names the binary.

It must run as root, in name spaces of its own (network, mounts, processes): run.py sees to it.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
import unittest

import rendered
from kubelet import run, wait_for

ROOT = rendered.ROOT
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BROKER = os.environ.get("KENTONGAN", "kentongan")
SECONDS = 60

# How podman runs it here: without what is a privilege, and without limits above those of whoever runs the test.
RUN = ["--network", "host", "--cgroups", "disabled", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--pull", "never"]
RUN += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]

# What the first stage uses of its image, beside cargo. ldd is a script of bash's.
PROGRAMS = ("bash", "cat", "cp", "dirname", "find", "grep", "install", "ldd", "mkdir", "sh", "strip")

# Says what it was asked for and what it was given, for the test, and where the program would be puts one.
CARGO = """#!/bin/sh
set -eu
echo "cargo was asked: $*"
find . -type f | while read -r file; do echo "cargo was given: $file"; done
mkdir -p target/release
cp /built/kentongan target/release/kentongan
"""


def dockerfile():
    """The file's instructions, each in one line."""
    lines = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    return [re.sub(r"\s+", " ", line) for line in lines if line and not line.startswith("#")]


def usage(tool):
    """The command that the head of the file says how to `tool` with: its arguments."""
    (line,) = re.findall(rf"^#   docker {tool} (.*?)(?:  .*)?$", DOCKERFILE.read_text(encoding="utf-8"), re.M)
    return shlex.split(line)


def toolchain():
    return tomllib.loads((ROOT / "rust-toolchain.toml").read_text(encoding="utf-8"))["toolchain"]["channel"]


def copy_program(root, program, name):
    """A program and the libraries that it is linked with, at the same places."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    for file in (str(program), *re.findall(r"(/\S+) \(0x", listed)):
        target = root / (name if file == str(program) else file.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(file, target)


class Builder:
    """buildah and podman, with a store of their own."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.store = ["--root", str(self.directory / "store"), "--runroot", "/run/containers-test", "--storage-driver", "vfs"]

    def buildah(self, *arguments):
        return self.command("buildah", *self.store, *arguments)

    def podman(self, *arguments):
        return self.command("podman", *self.podman_command(*arguments)[1:])

    def podman_command(self, *arguments):
        options = ["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--log-level", "error"]
        return ["podman", *self.store, *options, *arguments]

    def command(self, *command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode != 0:
            raise AssertionError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def make_toolchain(self, name):
        """The stand-in for the image that the first stage begins with."""
        root = self.directory / "toolchain"
        for program in PROGRAMS:
            copy_program(root, shutil.which(program), f"bin/{program}")
        cargo = root / "usr" / "local" / "bin" / "cargo"
        cargo.parent.mkdir(parents=True, exist_ok=True)
        cargo.write_text(CARGO, encoding="utf-8")
        cargo.chmod(0o755)
        # With the libraries that it wants, and without what debuggers want, which would only be copied to and fro.
        copy_program(root, BROKER, "built/kentongan")
        self.command("strip", "--strip-debug", "-o", str(root / "built" / "kentongan"), BROKER)
        authorities = root / "etc" / "ssl" / "certs" / "ca-certificates.crt"
        authorities.parent.mkdir(parents=True)
        authorities.write_text("the authorities\n", encoding="utf-8")
        container = self.buildah("from", "scratch")
        self.buildah("add", container, str(root), "/")
        self.buildah("config", "--env", "PATH=/usr/local/bin:/bin", container)
        self.buildah("commit", "--rm", container, name)
        shutil.rmtree(root)

    def make_source(self):
        """A checkout with what else lies in one."""
        source = self.directory / "source"
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )
        files = {file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file()}
        for file in files:
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
        beside = (".git/config", ".venv/pyvenv.cfg", "target/debug/kentongan", "kentongan-data/log")
        for file in (*beside, "tests/clients/node_modules/mqtt/package.json"):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_text("not for the image\n", encoding="utf-8")
        return source, files


def setUpModule():
    global builder, name, log, files
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("ip", "link", "set", "lo", "up")
    # crun takes either kind of cgroups, but not both at once.
    if os.path.ismount("/sys/fs/cgroup/unified"):
        run("umount", "/sys/fs/cgroup/unified")
    directory = tempfile.TemporaryDirectory(prefix="kentongan-image-", ignore_cleanup_errors=True)
    unittest.addModuleCleanup(directory.cleanup)
    builder = Builder(directory.name)
    (base,) = [line.split()[1] for line in dockerfile() if line.startswith("FROM") and "scratch" not in line]
    builder.make_toolchain(base.replace("${RUST}", toolchain()))
    source, files = builder.make_source()
    arguments = usage("build")
    name = arguments[arguments.index("-t") + 1]
    command = ["buildah", *builder.store, "build", "--isolation", "chroot", "--pull-never", "--format", "docker", *arguments]
    done = subprocess.run(command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS)
    log = done.stdout
    if done.returncode != 0:
        raise AssertionError(log)
    shutil.rmtree(source)


class Build(unittest.TestCase):
    """What the first stage does."""

    def test_the_toolchain_is_the_one_of_the_source(self):
        self.assertIn(f"ARG RUST={toolchain()}", dockerfile())

    def test_the_program_that_is_built_is_one_that_there_is(self):
        (asked,) = re.findall(r"^cargo was asked: (.*)$", log, re.M)
        self.assertEqual(asked, "build --locked --release --package kentongan --bin kentongan")
        manifest = tomllib.loads((ROOT / "broker" / "Cargo.toml").read_text(encoding="utf-8"))
        self.assertEqual(manifest["package"]["name"], "kentongan")
        self.assertIn("kentongan", [binary["name"] for binary in manifest["bin"]])

    def test_the_whole_source_is_built_and_nothing_else(self):
        given = {file.removeprefix("./") for file in re.findall(r"^cargo was given: (.*)$", log, re.M)}
        self.assertEqual(given, files)

    def test_a_library_that_is_not_there_is_missed_when_the_image_is_made(self):
        with tempfile.TemporaryDirectory() as directory:
            program = pathlib.Path(directory, "kentongan")
            program.write_bytes(pathlib.Path(BROKER).read_bytes().replace(b"libgcc_s.so", b"libgcc_z.so"))
            program.chmod(0o755)
            command = [ROOT / "deploy" / "image-root.sh", program, pathlib.Path(directory, "root")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        self.assertEqual(done.returncode, 1)
        self.assertIn("libgcc_z.so.1", done.stderr)


class Image(unittest.TestCase):
    """What comes of it."""

    def config(self):
        return json.loads(builder.podman("image", "inspect", name))[0]

    def test_it_has_the_program_and_its_libraries_and_nothing_else(self):
        container = builder.buildah("from", "--pull-never", name)
        self.addCleanup(builder.buildah, "rm", container)
        root = pathlib.Path(builder.buildah("mount", container))
        found = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
        libraries = {file for file in found if re.fullmatch(r"(usr/)?lib(64)?/.*\.so[.0-9]*", file)}
        self.assertGreater(len(libraries), 0)
        rest = {"usr/local/bin/kentongan", "etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"}
        self.assertEqual(found - libraries, rest)
        self.assertIn("kentongan:x:10001:10001:", (root / "etc/passwd").read_text(encoding="utf-8"))
        data = (root / "data").stat()
        self.assertEqual((data.st_uid, data.st_gid), (10001, 10001))

    def test_it_is_configured_as_the_manifests_take_it_for(self):
        config = self.config()["Config"]
        self.assertEqual(config["Volumes"], {"/data": {}})
        self.assertEqual(config["StopSignal"], "SIGTERM")
        exposed = {int(port.removesuffix("/tcp")) for port in config["ExposedPorts"]}
        for overlay in map(rendered.overlay, rendered.OVERLAYS):
            security, container = overlay.pod["spec"]["securityContext"], overlay.container
            self.assertEqual(config["User"], f"{security['runAsUser']}:{security['runAsGroup']}")
            self.assertEqual(container["command"][:1], config["Entrypoint"])
            self.assertIn("/data", [mount["mountPath"] for mount in container["volumeMounts"]])
            by_name = {port["name"]: port["containerPort"] for port in container["ports"]}
            self.assertLessEqual({by_name[port] for port in ("mqtt", "peers", "http") if port in by_name}, exposed)


class Running(unittest.TestCase):
    """The command of the file's head, with podman."""

    @contextlib.contextmanager
    def container(self):
        with tempfile.TemporaryFile("w+") as output:
            command = builder.podman_command("run", "--rm", "--name", "tried", *RUN, *usage("run"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                yield process
            except AssertionError as error:
                output.seek(0)
                raise AssertionError(f"{error}; the container said: {output.read()}") from error
            finally:
                if process.poll() is None:
                    subprocess.run(builder.podman_command("stop", "--time", "20", "tried"), capture_output=True, timeout=SECONDS)
                process.wait(SECONDS)

    def client(self, program, *arguments):
        command = [f"mosquitto_{program}", "-h", "127.0.0.1", "-p", "1883", "-V", "5", "-t", "plant/1", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)

    def test_it_is_used_with_a_root_that_cannot_be_written_and_by_no_root(self):
        self.assertIn("--read-only", usage("run"))
        with self.container() as process:
            retain = ("pub", "-m", "before", "-q", "1", "-r")
            wait_for("a message is taken", lambda: self.client(*retain).returncode == 0, 20)
            (number,) = builder.podman("ps", "--format", "{{.Pid}}").split()
            status = pathlib.Path("/proc", number, "status").read_text(encoding="utf-8")
            self.assertEqual(re.findall(r"^Uid:\t(\d+)", status, re.M), ["10001"])
            self.assertEqual(re.findall(r"^CapEff:\t(\w+)", status, re.M), ["0" * 16])
            mounts = pathlib.Path("/proc", number, "mounts").read_text(encoding="utf-8")
            (root,) = re.findall(r"^\S+ / \S+ (\S+)", mounts, re.M)
            self.assertIn("ro", root.split(","))
            heard = self.client("sub", "-C", "1", "-W", "10")
            self.assertEqual((heard.returncode, heard.stdout), (0, "before\n"))
            builder.podman("stop", "--time", "20", "tried")
            # It ended by itself when it was told to: neither killed (137) nor in error.
            self.assertEqual(process.wait(SECONDS), 0)
        with self.container():
            # What it kept is in the volume.
            wait_for("what was retained", lambda: self.client("sub", "-C", "1", "-W", "2").stdout == "before\n", 20)

    def test_its_tag_is_the_version_of_the_program(self):
        said = builder.podman("run", "--rm", *RUN, "--read-only", name, "--version")
        version = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
        self.assertEqual(said.split()[:2], ["kentongan", version])
        self.assertEqual(name, f"kentongan:{version}")


if __name__ == "__main__":
    unittest.main()
