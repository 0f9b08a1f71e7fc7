"""A broker of a suite's own, with the listeners that it wants.

KENTONGAN names the binary.
"""

import os
import pathlib
import urllib.request

from run import Kentongan
from support import DEADLINE_SECONDS, wait_for


class OwnBroker(Kentongan):
    """A process whose listeners, on ports of the system's choice, have these lines more each; `beside` are other settings."""

    def __init__(self, directory, listeners, beside=""):
        self.directory = directory
        settings = pathlib.Path(directory, "kentongan.toml")
        text = beside + "".join(f'[[listener]]\naddress = "127.0.0.1:0"\n{lines}\n' for lines in listeners)
        settings.write_text(text, encoding="utf-8")
        super().__init__(os.environ["KENTONGAN"], directory, settings)
        wait_for("all listeners", lambda: len(self.addresses) == len(listeners))

    @property
    def ports(self):
        return [int(address.rsplit(":", 1)[1]) for address in self.addresses]

    def wait_for_log(self, *texts):
        """Waits for a line with all of these texts in it."""

        def find():
            self.log.flush()
            lines = pathlib.Path(self.directory, "broker.log").read_text(encoding="utf-8").splitlines()
            return next((line for line in lines if all(text in line for text in texts)), None)

        return wait_for(f"a line of the log with {texts}", find)

    def wait_for_metric(self, series, value):
        """Waits until /metrics, which is up to a second behind, says so."""

        def holds():
            text = urllib.request.urlopen(f"http://{self.http}/metrics", timeout=DEADLINE_SECONDS).read().decode()
            return f"{series} {value}" in text.splitlines()

        wait_for(f"{series} {value}", holds)
