"""What an operator does with the package, each test in a clean root of its own."""

import re
import shutil
import socket
import subprocess
import unittest

from clean_root import FIRST, REPOSITORY, SETTINGS, CleanRoot, bring_up_loopback

# Not 127.0.0.1, so that only a listener for every address answers there: another machine, as it were.
OUTSIDE = "127.0.0.2"


def setUpModule():
    bring_up_loopback()


def mosquitto(*arguments, host="127.0.0.1"):
    """One of its clients: what it printed, or None if it failed."""
    program, *rest = arguments
    done = subprocess.run(
        [program, "-h", host, *rest], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, text=True,
    )
    return done.stdout if done.returncode == 0 else None


def connects(port, host=OUTSIDE):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


class Package(CleanRoot):
    def test_what_is_in_it(self):
        """The program without debuggers' part, pages, completions, licences of others; and nothing newer than it depends on."""
        listed = subprocess.run(["dpkg-deb", "--contents", FIRST], check=True, capture_output=True, text=True).stdout
        sizes = {line.split()[5]: int(line.split()[2]) for line in listed.splitlines()}
        self.assertLess(sizes["./usr/bin/kentongan"], 60_000_000)
        for path in [
            "usr/share/man/man1/kentongan.1", "usr/share/man/man1/kentongan-cluster-drain.1", "usr/share/man/man5/kentongan.toml.5",
            "usr/share/bash-completion/completions/kentongan", "usr/share/zsh/vendor-completions/_kentongan",
            "usr/share/fish/vendor_completions.d/kentongan.fish", "usr/share/doc/kentongan/copyright",
            "usr/share/doc/kentongan/third-party-licences.txt",
        ]:
            self.assertGreater(sizes.get(f"./{path}", 0), 0, path)
        self.install()
        symbols = subprocess.run(["objdump", "-T", self.root / "usr/bin/kentongan"], check=True, capture_output=True, text=True).stdout
        newest = max(tuple(map(int, version.split("."))) for version in re.findall(r"\(GLIBC_([\d.]+)\)", symbols))
        depends = subprocess.run(["dpkg-deb", "--field", FIRST, "Depends"], check=True, capture_output=True, text=True).stdout
        self.assertLessEqual(newest, tuple(map(int, re.search(r"libc6 \(>= ([\d.]+)\)", depends)[1].split("."))))

    def test_unit_is_hardened(self):
        """systemd finds nothing wrong with the unit, and less exposed than 2.0 of 10."""
        self.install()
        verify = ["systemd-analyze", "verify", f"--root={self.root}", "--man=no", "--recursive-errors=no", "kentongan.service"]
        done = subprocess.run(verify, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        unit = self.root / "usr/lib/systemd/system/kentongan.service"
        security = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit]
        done = subprocess.run(security, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_fresh_install_serves_this_machine_only(self):
        self.install()
        self.assertEqual(self.owner(SETTINGS), "640 root:kentongan")
        self.assertEqual(self.owner("etc/kentongan/users"), "640 root:kentongan")
        self.assertIn("in order", self.inside("kentongan", "config", "check", f"/{SETTINGS}"))
        self.serve()
        self.assertEqual(self.unit.user_of_process(), (self.unit.uid, "0" * 16))
        self.assertNotEqual(self.unit.uid, 0)
        self.assertIsNotNone(mosquitto("mosquitto_pub", "-t", "plant/temp", "-m", "21", "-q", "1", "-r"))
        self.assertEqual(mosquitto("mosquitto_sub", "-t", "plant/temp", "-C", "1", "-W", "10"), "21\n")
        self.assertFalse(connects(1883))
        self.assertEqual(self.owner("var/lib/kentongan"), "700 kentongan:kentongan")
        self.assertEqual(self.owner("var/lib/kentongan/log").split()[1], "kentongan:kentongan")
        self.unit.expect("WATCHDOG=1")
        self.unit.reload()
        self.assertEqual(self.unit.stop(), 0)

    def test_each_example_in_the_settings_can_be_used(self):
        self.install()
        path = self.root / SETTINGS
        text, examples = re.subn(r"^# (?=\[|[a-z_]+ = )", "", path.read_text(encoding="utf-8"), flags=re.M)
        self.assertGreater(examples, 10)
        path.write_text(text, encoding="utf-8")
        self.assertIn("in order", self.inside("kentongan", "config", "check", "--without-files", f"/{SETTINGS}"))

    def test_user_data_opens_a_cloud_machine(self):
        """The user data of docs/guide/quickstart.md, from where the package is there: it opens both ports, by what examples/open.toml says too."""
        page = (REPOSITORY / "docs/guide/quickstart.md").read_text(encoding="utf-8")
        script = re.search(r"^curl [^\n]*/(kentongan_[^\n]*\.deb)\n(.*?)^```", page, re.M | re.S)
        shutil.copy(FIRST, self.root / "tmp" / script[1])
        self.inside("sh", "-euc", f"cd /tmp\n{script[2]}")
        dropped = (self.root / "etc/kentongan/kentongan.toml.d/open.toml").read_text(encoding="utf-8")
        example = (REPOSITORY / "deploy/debian/examples/open.toml").read_text(encoding="utf-8")
        self.assertEqual(re.sub(r"^#.*\n", "", example, flags=re.M).strip(), dropped.strip())
        self.serve()
        # As `telnet HOST 1883` does.
        self.assertTrue(connects(1883) and connects(8089))
        subscriber = subprocess.Popen(
            ["mosquitto_sub", "-h", OUTSIDE, "-t", "test", "-C", "1", "-W", "20"], stdout=subprocess.PIPE, text=True,
        )
        web = ["kentongan", "pub", "-L", f"ws://{OUTSIDE}:8089/test", "-m", "mqtt test", "-r"]
        self.inside(*web)
        self.assertEqual(subscriber.communicate(timeout=30)[0], "mqtt test\n")

    def test_users_as_the_settings_say(self):
        self.install()
        path = self.root / SETTINGS
        text = re.sub(r'^# (?=\[auth\]|password_file|\[\[listener\]\]\n# address = "0\.0\.0\.0:1883")', "", path.read_text(encoding="utf-8"), flags=re.M)
        path.write_text(text.replace('# address = "0.0.0.0:1883"', 'address = "0.0.0.0:1883"'), encoding="utf-8")
        self.inside("kentongan", "passwd", "/etc/kentongan/users", "ana", text="tabuh\n")
        self.serve()
        self.assertIsNone(mosquitto("mosquitto_pub", "-t", "a", "-m", "1", host=OUTSIDE))
        self.inside("kentongan", "passwd", "/etc/kentongan/users", "budi", text="kentong\n")
        self.assertEqual(self.owner("etc/kentongan/users"), "640 root:kentongan")
        self.unit.reload()
        for user, password in [("ana", "tabuh"), ("budi", "kentong")]:
            login = ["-u", user, "-P", password]
            self.assertIsNotNone(mosquitto("mosquitto_pub", *login, "-t", "a", "-m", "1", "-q", "1", host=OUTSIDE), user)
        self.assertIsNone(mosquitto("mosquitto_pub", "-t", "a", "-m", "1", host=OUTSIDE))

    def test_upgrade_keeps_what_was_changed(self):
        self.install()
        changed = (self.root / SETTINGS).read_text(encoding="utf-8") + "\n[log]\nfilter = \"debug\"\n"
        (self.root / SETTINGS).write_text(changed, encoding="utf-8")
        dropped = self.add("kentongan.toml.d/ours.toml", "[session]\nreceive_maximum = 7\n")
        self.serve()
        self.assertIsNotNone(mosquitto("mosquitto_pub", "-t", "plant/temp", "-m", "21", "-q", "1", "-r"))
        self.assertEqual(self.unit.stop(), 0)

        self.install(later=True)
        self.assertIn("0.2.0-1", self.inside("dpkg-query", "--show", "kentongan"))
        self.assertEqual((self.root / SETTINGS).read_text(encoding="utf-8"), changed)
        self.assertIn("A later version", (self.root / f"{SETTINGS}.dpkg-dist").read_text(encoding="utf-8"))
        self.assertEqual(self.owner(SETTINGS), "640 root:kentongan")
        self.assertTrue(dropped.exists())
        self.serve()
        self.assertEqual(mosquitto("mosquitto_sub", "-t", "plant/temp", "-C", "1", "-W", "10"), "21\n")

    def test_settings_that_nobody_changed_are_renewed(self):
        self.install()
        self.install(later=True)
        self.assertIn("A later version", (self.root / SETTINGS).read_text(encoding="utf-8"))
        self.assertEqual(self.owner(SETTINGS), "640 root:kentongan")

    def test_remove_leaves_and_purge_takes_what_is_the_users(self):
        self.install()
        key = self.add("server.key", "a key\n")
        self.serve()
        self.assertEqual(self.unit.stop(), 0)
        self.inside("apt-get", "remove", "--yes", "kentongan")
        self.assertFalse((self.root / "usr/bin/kentongan").exists())
        for left in [SETTINGS, "etc/kentongan/users", "var/lib/kentongan"]:
            self.assertTrue((self.root / left).exists(), left)
        self.inside("apt-get", "purge", "--yes", "kentongan")
        for gone in [SETTINGS, "etc/kentongan/users", "etc/kentongan/kentongan.toml.d", "var/lib/kentongan", "var/log/kentongan"]:
            self.assertFalse((self.root / gone).exists(), gone)
        self.assertTrue(key.exists(), "what was put there by hand stays")
        self.assertEqual(self.inside("dpkg-query", "--show", "--showformat=${db:Status-Status}", "libc6"), "installed")


if __name__ == "__main__":
    unittest.main()
