"""`kentongan passwd` at a terminal, where it asks for the password.

KENTONGAN names the binary.
"""

import os
import pathlib
import pty
import signal
import subprocess
import tempfile
import termios
import unittest

from support import wait_for

KENTONGAN = os.environ["KENTONGAN"]


def passwd(*arguments):
    """Changes a file without a terminal."""
    subprocess.run([KENTONGAN, "passwd", *arguments], check=True, stdin=subprocess.DEVNULL)


class Asked:
    """The program in the foreground of a terminal of its own."""

    def __init__(self, *arguments):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.execv(KENTONGAN, [KENTONGAN, "passwd", *arguments])
        self.said = ""

    def wait_for(self, text):
        """Reads on until it has said that; what it said before is forgotten."""
        while text not in self.said:
            self.said += os.read(self.terminal, 1024).decode()
        self.said = self.said.partition(text)[2]

    def type(self, text):
        os.write(self.terminal, text.encode())

    def shows_what_is_typed(self):
        return bool(termios.tcgetattr(self.terminal)[3] & termios.ECHO)

    def end(self):
        """Waits until it ends by itself; returns its exit code."""

        def ended():
            process, status = os.waitpid(self.process, os.WNOHANG)
            return process and [os.waitstatus_to_exitcode(status)]

        return wait_for("its end", ended)[0]

    def close(self):
        os.close(self.terminal)


class Passwd(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-passwd-")
        self.addCleanup(directory.cleanup)
        self.file = str(pathlib.Path(directory.name, "users"))
        passwd("-c", "-H", "sha512", "-b", self.file, "ana", "tabuh")

    def asked(self, *arguments):
        asked = Asked(*arguments)
        self.addCleanup(asked.close)
        asked.wait_for("Password: ")
        return asked

    def users(self):
        lines = pathlib.Path(self.file).read_text(encoding="utf-8").splitlines()
        return [line.partition(":")[0] for line in lines]

    def test_what_others_change_while_it_asks_stays(self):
        asked = self.asked("-H", "sha512", self.file, "budi")
        passwd("-H", "sha512", "-b", self.file, "citra", "bedug")
        passwd("-D", self.file, "ana")
        asked.type("kentong\n")
        asked.wait_for("Reenter password: ")
        asked.type("kentong\n")
        self.assertEqual(asked.end(), 0)
        self.assertTrue(asked.shows_what_is_typed())
        self.assertEqual(self.users(), ["citra", "budi"])

    def test_the_terminal_is_as_before_when_it_is_ended(self):
        def type_ctrl_c(asked):
            asked.type("half a pass\x03")

        def terminate(asked):
            os.kill(asked.process, signal.SIGTERM)

        for end, code in ((type_ctrl_c, 130), (terminate, 143)):
            with self.subTest(end=end.__name__):
                asked = self.asked(self.file, "budi")
                self.assertFalse(asked.shows_what_is_typed())
                end(asked)
                self.assertEqual(asked.end(), code)
                self.assertTrue(asked.shows_what_is_typed())
                self.assertEqual(self.users(), ["ana"])


if __name__ == "__main__":
    unittest.main()
