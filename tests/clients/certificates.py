"""Certificates for one run, by openssl."""

import pathlib
import subprocess


def certificate(directory, name="server", subject="127.0.0.1", names="DNS:localhost,IP:127.0.0.1"):
    """A certificate that signs itself, and its key: for a server of these names, and a client called `subject`."""
    chain, key = pathlib.Path(directory, f"{name}.crt"), pathlib.Path(directory, f"{name}.key")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    whose = ["-subj", f"/CN={subject}", "-addext", f"subjectAltName={names}"]
    # Whoever trusts it as an authority and as a server's own certificate at once wants it to be no authority.
    whose += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(["openssl", "req", *kind, *whose, "-keyout", key, "-out", chain], check=True, capture_output=True)
    return chain, key
