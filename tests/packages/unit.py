"""A service manager for one unit, as far as the tests need systemd: it makes the unit's directories, becomes its user in the root
where it is installed, starts ExecStart, and hears what the service says."""

import os
import pathlib
import re
import resource
import shlex
import signal
import socket
import subprocess
import tempfile

SECONDS = 30


class Unit:
    def __init__(self, root, name):
        self.root = root
        self.settings = {}
        # What `systemctl edit` makes is laid over it.
        drop_ins = sorted((root / "etc/systemd/system" / f"{name}.d").glob("*.conf"))
        for file in [root / "usr/lib/systemd/system" / name, *drop_ins]:
            for line in file.read_text(encoding="utf-8").splitlines():
                if match := re.match(r"(\w+)=(.*)", line):
                    self.settings[match[1]] = match[2]
        # By the root's own numbers.
        lines = (root / "etc/passwd").read_text(encoding="utf-8").splitlines()
        (user,) = [line.split(":") for line in lines if line.startswith(self.settings["User"] + ":")]
        self.uid, self.gid = int(user[2]), int(user[3])
        self.process = None
        self.log = None

    def directory(self, kind, parent):
        directory = self.root / parent / self.settings[kind]
        if not directory.exists():
            directory.mkdir(mode=int(self.settings.get(kind + "Mode", "0755"), 8))
            os.chown(directory, self.uid, self.gid)
        return directory

    def start(self):
        """Starts it, and returns when it says READY=1."""
        self.directory("StateDirectory", "var/lib")
        self.directory("LogsDirectory", "var/log")
        runtime = self.directory("RuntimeDirectory", "run")
        path = runtime / "notify"
        path.unlink(missing_ok=True)
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(path))
        os.chown(path, self.uid, self.gid)
        self.notices.settimeout(SECONDS)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "NOTIFY_SOCKET": f"/run/{self.settings['RuntimeDirectory']}/notify",
            # Faster than the unit's, which is looked at elsewhere.
            "WATCHDOG_USEC": "2000000",
        }
        assert self.settings["CapabilityBoundingSet"] == self.settings["AmbientCapabilities"]
        given = ["+" + name.lower().removeprefix("cap_") for name in self.settings["AmbientCapabilities"].split()]
        ambient = [f"--ambient-caps={','.join(given)}"] if given else []
        assert self.settings["NoNewPrivileges"] == "yes"
        descriptors = min(int(self.settings["LimitNOFILE"]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        command = ["prlimit", f"--nofile={descriptors}", "chroot", str(self.root), "setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"]
        command += ["--clear-groups", f"--bounding-set={','.join(['-all', *given])}", f"--inh-caps={','.join(['-all', *given])}", *ambient]
        command += ["--no-new-privs", *shlex.split(self.settings["ExecStart"])]
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            command, env=environment, umask=int(self.settings["UMask"], 8), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )
        self.expect("READY=1")

    def expect(self, wanted):
        """Waits for a notice, between any number that feed the watchdog."""
        while True:
            try:
                notice = self.notices.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"no {wanted}; the log says:\n{self.logged()}") from None
            if notice.startswith(wanted):
                return notice
            assert notice == "WATCHDOG=1", f"{notice}, not {wanted}"

    def reload(self):
        assert self.settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
        self.process.send_signal(signal.SIGHUP)
        self.expect("RELOADING=1\nMONOTONIC_USEC=")
        self.expect("READY=1")

    def stop(self):
        """Ends it as systemd does, and returns its exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        code = self.process.wait(SECONDS)
        self.process = None
        if code == 0:
            self.expect("STOPPING=1")
        self.notices.close()
        self.log.close()
        return code

    def logged(self):
        self.log.seek(0)
        return self.log.read()

    def user_of_process(self):
        """The user, and the capabilities that it could get."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"^Uid:\s+(\d+)", status, re.M)[1]), re.search(r"^CapBnd:\s+(\w+)", status, re.M)[1]
