#!/usr/bin/env python3
"""Writes the object for the Prometheus operator (PrometheusRule) that has the alerts of alerts.yml.

    deploy/prometheus/generate.py            after a change of alerts.yml
    deploy/prometheus/generate.py --check    whether it is what alerts.yml says
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
OBJECT = HERE.parent / "k8s" / "overlays" / "production" / "prometheus-rule.yaml"

HEAD = """\
# Written by deploy/prometheus/generate.py from alerts.yml beside it: change that one. A Prometheus whose `ruleSelector` asks for a label
# wants it here.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: kentongan
spec:
"""


def content():
    lines = (HERE / "alerts.yml").read_text(encoding="utf-8").splitlines()
    return HEAD + "".join(f"  {line}\n" for line in lines if not line.startswith("#"))


def main():
    if sys.argv[1:] != ["--check"]:
        OBJECT.write_text(content(), encoding="utf-8")
    elif not OBJECT.exists() or OBJECT.read_text(encoding="utf-8") != content():
        sys.exit(f"{OBJECT.name} is not what alerts.yml says; run deploy/prometheus/generate.py")


if __name__ == "__main__":
    main()
