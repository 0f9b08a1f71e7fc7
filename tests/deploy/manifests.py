"""What must hold of the rendered manifests, so that Kubernetes takes them and the broker works by them."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
import unittest

import jsonschema
import kubernetes_validate
import yaml

import kubelet
import rendered
from rendered import OVERLAYS, selects

DEPLOY = rendered.ROOT / "deploy"
BROKER = os.environ.get("KENTONGAN", "kentongan")

# The oldest version that the manifests are for (preStop.sleep is on from then on), and the newest that there are schemas of.
KUBERNETES = ("1.30", "1.37")

# What other projects define. Their schemas come with their operators; here is what is used of them.
NAME = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
OTHERS = {
    "monitoring.coreos.com/v1 PodMonitor": {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", "podMetricsEndpoints"],
        "properties": {
            "selector": {"type": "object", "required": ["matchLabels"]},
            "podMetricsEndpoints": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    # Rules and dashboards name a node by `instance`, which would be an address.
                    "required": ["port", "path", "relabelings"],
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string"},
                        "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                        "relabelings": {
                            "const": [{"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "instance"}]
                        },
                    },
                },
            },
        },
    },
    "monitoring.coreos.com/v1 PrometheusRule": {
        "type": "object",
        "additionalProperties": False,
        "required": ["groups"],
        "properties": {
            "groups": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "rules"],
                    "properties": {
                        # One of a map: two of the same name are refused.
                        "name": {"type": "string", "minLength": 1},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["alert", "expr"],
                                "properties": {
                                    "alert": {"type": "string"},
                                    "expr": {"type": "string"},
                                    "for": {"type": "string", "pattern": "^[0-9]+[smh]$"},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "cert-manager.io/v1 Issuer": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "selfSigned": {"type": "object"},
            "ca": {"type": "object", "required": ["secretName"], "properties": {"secretName": {"type": "string"}}},
        },
    },
    "cert-manager.io/v1 Certificate": {
        "type": "object",
        "additionalProperties": False,
        "required": ["secretName", "issuerRef"],
        "properties": {
            "secretName": {"type": "string"},
            "issuerRef": NAME,
            "isCA": {"type": "boolean"},
            "commonName": {"type": "string"},
            "duration": {"type": "string", "pattern": "^[0-9]+h$"},
            "dnsNames": {"type": "array", "items": {"type": "string"}},
            "usages": {
                "type": "array",
                "items": {"enum": ["digital signature", "key encipherment", "server auth", "client auth"]},
            },
            "privateKey": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]},
                    "size": {"type": "integer"},
                    "rotationPolicy": {"enum": ["Never", "Always"]},
                },
            },
        },
    },
}


def everything():
    """All renderings, by name."""
    renderings = {name: rendered.overlay(name) for name in OVERLAYS}
    return {**renderings, "production with cert-manager": rendered.with_cert_manager(), "remove-node": rendered.removal()}


def renderings():
    """Those with nodes."""
    return {name: objects for name, objects in everything().items() if name != "remove-node"}


def seconds_before_kill(objects):
    return objects.pod["spec"]["terminationGracePeriodSeconds"]


def settings(objects, ordinal=0):
    """What the broker makes of files and variables, as `kentongan config show` prints it."""
    name = f"kentongan-{ordinal}"
    fields = {"metadata.name": name, "metadata.namespace": kubelet.NAMESPACE, "status.podIP": "10.0.0.1"}
    maps = {one["metadata"]["name"]: one["data"] for one in objects.of("ConfigMap")}
    variables = kubelet.environment(objects.container, objects.pod["spec"], fields, objects.of("Service"), maps)
    (config,) = [one for one in objects.pod["spec"]["volumes"] if one["name"] == "config"]
    with tempfile.TemporaryDirectory() as directory:
        data = maps[config["configMap"]["name"]]
        kubelet.lay_out(directory, data, config["configMap"]["items"], 0o644, os.getgid())
        variables["KENTONGAN_CONFIG"] = variables["KENTONGAN_CONFIG"].replace("/etc/kentongan/config", directory)
        done = subprocess.run([BROKER, "config", "show", "--effective"], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tomllib.loads(done.stdout)


class Manifests(unittest.TestCase):
    def for_each(self, renderings, test):
        for name, objects in renderings.items():
            with self.subTest(name):
                test(objects)

    def test_every_object_is_valid(self):
        def check(objects):
            for one in objects:
                kind = f"{one['apiVersion']} {one['kind']}"
                with self.subTest(f"{kind} {one['metadata']['name']}"):
                    if kind in OTHERS:
                        self.assertEqual(one.keys(), {"apiVersion", "kind", "metadata", "spec"})
                        jsonschema.validate(one["spec"], OTHERS[kind])
                        continue
                    for version in KUBERNETES:
                        kubernetes_validate.validate(one, version, strict=True)

        self.for_each(everything(), check)

    def test_objects_are_what_the_guide_says(self):
        kinds = {name: sorted({one["kind"] for one in objects}) for name, objects in everything().items()}
        single = ["ConfigMap", "Service", "StatefulSet"]
        cluster = sorted([*single, "PodDisruptionBudget"])
        production = sorted([*cluster, "HorizontalPodAutoscaler", "NetworkPolicy", "PodMonitor", "PrometheusRule"])
        self.assertEqual(kinds["single"], single)
        self.assertEqual(kinds["cluster"], cluster)
        self.assertEqual(kinds["production"], production)
        self.assertEqual(kinds["production with cert-manager"], sorted([*production, "Certificate", "Issuer"]))
        self.assertEqual(kinds["remove-node"], ["ConfigMap", "Job", "Role", "RoleBinding", "ServiceAccount"])

    def test_the_alerts_are_those_of_prometheus(self):
        done = subprocess.run([sys.executable, DEPLOY / "prometheus" / "generate.py", "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
        found = {name: [one["spec"] for one in objects.of("PrometheusRule")] for name, objects in renderings().items()}
        self.assertEqual({name for name, specs in found.items() if specs}, {"production", "production with cert-manager"})
        for name, specs in found.items():
            for spec in specs:
                self.assertEqual(spec, alerts, name)

    def test_the_broker_takes_the_settings_of_every_pod(self):
        def check(objects):
            for ordinal in (0, 4):
                self.assertEqual(settings(objects, ordinal)["node"], f"kentongan-{ordinal}")

        self.for_each(renderings(), check)

    def test_ports_are_those_of_the_broker(self):
        def check(objects):
            shown = settings(objects)
            listening = {int(one["address"].rsplit(":", 1)[1]) for one in shown["listener"]}
            listening.add(int(shown["http"]["address"].rsplit(":", 1)[1]))
            if "address" in shown.get("cluster", {}):
                listening.add(int(shown["cluster"]["address"].rsplit(":", 1)[1]))
            ports = {one["name"]: one["containerPort"] for one in objects.container["ports"]}
            self.assertEqual(set(ports.values()), listening)
            for service in objects.of("Service"):
                for port in service["spec"]["ports"]:
                    self.assertEqual(port["port"], ports[port["targetPort"]], service["metadata"]["name"])
            for policy in objects.of("NetworkPolicy"):
                for rule in policy["spec"]["ingress"]:
                    self.assertTrue({one["port"] for one in rule["ports"]} <= ports.keys())
            for monitor in objects.of("PodMonitor"):
                self.assertEqual([one["port"] for one in monitor["spec"]["podMetricsEndpoints"]], ["http"])

        self.for_each(renderings(), check)

    def test_selectors_fit_the_pods_and_nothing_else(self):
        def check(objects):
            labels = objects.pod["metadata"]["labels"]
            selectors = [objects.stateful_set["spec"]["selector"]]
            selectors += [one["spec"]["selector"] for kind in ("Service", "PodDisruptionBudget", "PodMonitor") for one in objects.of(kind)]
            selectors += [one["spec"]["podSelector"] for one in objects.of("NetworkPolicy")]
            affinity = objects.pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
            selectors += [
                one.get("podAffinityTerm", one)["labelSelector"] for terms in affinity.values() for one in terms
            ]
            selectors += [one["labelSelector"] for one in objects.pod["spec"].get("topologySpreadConstraints", [])]
            (job,) = rendered.removal().of("Job")
            for selector in selectors:
                self.assertTrue(selects(selector, labels), selector)
                self.assertFalse(selects(selector, job["spec"]["template"]["metadata"]["labels"]), selector)

        self.for_each(renderings(), check)

    def test_nodes_find_each_other_before_they_are_ready(self):
        def check(objects):
            service = objects.get("Service", objects.stateful_set["spec"]["serviceName"])
            self.assertEqual(service["spec"]["clusterIP"], "None")
            self.assertTrue(service["spec"]["publishNotReadyAddresses"])
            self.assertEqual(objects.stateful_set["spec"]["podManagementPolicy"], "Parallel")
            cluster = settings(objects)["cluster"]
            if "address" in cluster:
                seeds = [f"kentongan-{ordinal}.{service['metadata']['name']}:7001" for ordinal in range(3)]
                self.assertEqual(cluster["seeds"], seeds)
                for ordinal in range(3):
                    self.assertEqual(settings(objects, ordinal)["cluster"]["advertise"], seeds[ordinal])

        self.for_each(renderings(), check)

    def test_a_single_node_has_no_address_for_others(self):
        self.assertNotIn("address", settings(rendered.overlay("single"))["cluster"])

    def test_the_grace_period_is_longer_than_what_an_end_takes(self):
        def check(objects):
            moving = settings(objects)["moving"]
            pause = objects.container["lifecycle"]["preStop"]["sleep"]["seconds"]
            self.assertGreaterEqual(seconds_before_kill(objects), pause + moving["stop_seconds_max"] + 20)
            # 80 % of the time is for moving clients: so many go without haste.
            self.assertGreaterEqual(moving["stop_seconds_max"] * 0.8 * moving["clients_per_second"], 40_000)

        self.for_each(renderings(), check)

    def test_probes_ask_what_the_broker_serves(self):
        def check(objects):
            paths = {name: objects.container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
            self.assertEqual({one["port"] for one in paths.values()}, {"http"})
            # pods.py asks them; that liveness does not depend on others is tested there.
            self.assertEqual([one["path"] for one in paths.values()], ["/livez", "/livez", "/readyz"])
            readiness = objects.container["readinessProbe"]
            noticed = readiness["periodSeconds"] * readiness["failureThreshold"]
            self.assertLessEqual(noticed, objects.container["lifecycle"]["preStop"]["sleep"]["seconds"])

        self.for_each(renderings(), check)

    def test_memory_is_bounded_below_what_the_kernel_kills_for(self):
        def check(objects):
            resources = objects.container["resources"]
            limit, request = (kubelet_quantity(resources[kind]["memory"]) for kind in ("limits", "requests"))
            shown = settings(objects)
            self.assertLess(shown["limits"]["memory_bytes_high_water"] * 1.2, limit * 0.8)
            self.assertLess(shown["session"]["queue_memory_bytes_max"], request)

        self.for_each(renderings(), check)

    def test_every_volume_is_mounted_and_every_file_of_the_settings_is_there(self):
        # What the guide makes.
        by_hand = {
            "kentongan-peers": {"ca.crt", "kentongan-0.crt", "kentongan-0.key"},
            "kentongan-users": {"passwords"},
            "kentongan-tls": {"tls.crt", "tls.key"},
        }
        by_cert_manager = {**by_hand, "kentongan-peers": {"ca.crt", "tls.crt", "tls.key"}}

        def check(objects):
            made = by_cert_manager if objects.of("Certificate") else by_hand
            mounts = {one["name"]: one["mountPath"] for one in objects.container["volumeMounts"]}
            volumes = {one["name"]: one for one in objects.pod["spec"]["volumes"]}
            claims = {one["metadata"]["name"] for one in objects.stateful_set["spec"]["volumeClaimTemplates"]}
            self.assertEqual(mounts.keys(), volumes.keys() | claims)
            self.assertEqual(settings(objects)["data_dir"], mounts["data"])
            files = set()
            for name, volume in volumes.items():
                if "secret" in volume:
                    files |= {f"{mounts[name]}/{key}" for key in made[volume["secret"]["secretName"]]}
                    self.assertEqual(volume["secret"]["defaultMode"], 0o440)
            for path in re.findall(r'"(/etc/kentongan/[^"]+)"', json.dumps(settings(objects))):
                if "/config/" not in path:
                    self.assertIn(path, files)

        self.for_each(renderings(), check)

    def test_pods_have_no_rights_that_they_do_not_need(self):
        def check(objects):
            (workload,) = objects.of("StatefulSet") or objects.of("Job")
            spec = workload["spec"]["template"]["spec"]
            self.assertTrue(spec["securityContext"]["runAsNonRoot"])
            self.assertNotEqual(spec["securityContext"]["runAsUser"], 0)
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            # pods.py shows that the broker stands them, too.
            self.assertFalse(spec["enableServiceLinks"])
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                context = container["securityContext"]
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                self.assertIn("memory", container["resources"]["limits"])

        self.for_each(everything(), check)

    def test_variables_stand_before_those_that_name_them(self):
        def check(objects):
            known = set()
            for one in objects.container["env"]:
                self.assertTrue(set(re.findall(r"\$\((\w+)\)", one.get("value", ""))) <= known, one["name"])
                known.add(one["name"])

        self.for_each(renderings(), check)

    def test_the_majority_of_three_is_kept(self):
        def check(objects):
            (budget,) = objects.of("PodDisruptionBudget")
            self.assertEqual(budget["spec"]["maxUnavailable"], 1)
            self.assertGreater(objects.stateful_set["spec"]["minReadySeconds"], 0)

        self.for_each({name: one for name, one in renderings().items() if name != "single"}, check)
        production = rendered.overlay("production")
        affinity = production.pod["spec"]["affinity"]["podAntiAffinity"]
        self.assertEqual([*affinity], ["requiredDuringSchedulingIgnoredDuringExecution"])
        self.assertEqual(
            [one["topologyKey"] for one in production.pod["spec"]["topologySpreadConstraints"]],
            ["topology.kubernetes.io/zone"],
        )

    def test_an_overlay_can_be_applied_over_the_one_before(self):
        # The API server refuses a change of anything else in a StatefulSet.
        may_change = {
            *("replicas", "ordinals", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy"),
            *("minReadySeconds", "revisionHistoryLimit"),
        }

        def fixed(objects):
            return {key: value for key, value in objects.stateful_set["spec"].items() if key not in may_change}

        self.assertEqual(fixed(rendered.overlay("production")), fixed(rendered.overlay("cluster")))

    def test_nothing_but_the_job_takes_nodes_away(self):
        production = rendered.overlay("production")
        (autoscaler,) = production.of("HorizontalPodAutoscaler")
        spec = autoscaler["spec"]
        self.assertEqual(spec["behavior"]["scaleDown"], {"selectPolicy": "Disabled"})
        self.assertEqual(spec["minReplicas"], len(settings(production)["cluster"]["seeds"]))
        # Else every `kubectl apply` would scale in.
        self.assertNotIn("replicas", production.stateful_set["spec"])
        target = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": production.stateful_set["metadata"]["name"]}
        self.assertEqual(spec["scaleTargetRef"], target)
        names = rendered.with_cert_manager().get("Certificate", "kentongan-peers")["spec"]["dnsNames"]
        self.assertEqual(names, [f"kentongan-{ordinal}" for ordinal in range(9)])
        self.assertLessEqual(spec["maxReplicas"], len(names))
        self.assertEqual(
            rendered.overlay("cluster").stateful_set["spec"]["persistentVolumeClaimRetentionPolicy"],
            {"whenScaled": "Retain", "whenDeleted": "Retain"},
        )

    def test_the_network_policy_lets_in_clients_peers_and_metrics_only(self):
        production = rendered.overlay("production")
        (policy,) = production.of("NetworkPolicy")
        broker, stranger = production.pod["metadata"]["labels"], {"app": "other"}
        (job,) = rendered.removal().of("Job")
        operations = job["spec"]["template"]["metadata"]["labels"]

        def may(rules, port, labels, namespace, direction):
            """Whether a pod of these labels, in this name space or (None) the broker's, may be there."""
            for rule in rules:
                if port not in [one["port"] for one in rule["ports"]]:
                    continue
                if direction not in rule:
                    return True
                for one in rule[direction]:
                    of = one.get("namespaceSelector")
                    fits_namespace = namespace is None if of is None else selects(of, {"kubernetes.io/metadata.name": namespace})
                    if fits_namespace and selects(one.get("podSelector", {}), labels):
                        return True
            return False

        ingress, egress = policy["spec"]["ingress"], policy["spec"]["egress"]
        self.assertEqual(policy["spec"]["policyTypes"], ["Ingress", "Egress"])
        cases = [
            ("mqtts", stranger, "elsewhere", True),
            ("peers", broker, None, True),
            ("peers", operations, None, True),
            ("peers", stranger, None, False),
            ("peers", broker, "elsewhere", False),
            ("http", stranger, "monitoring", True),
            ("http", stranger, None, False),
            ("http", broker, None, False),
            ("http", operations, None, False),
            ("http", stranger, "elsewhere", False),
            ("mqtt", stranger, "elsewhere", False),
        ]
        for port, labels, namespace, expected in cases:
            self.assertEqual(may(ingress, port, labels, namespace, "from"), expected, (port, labels, namespace))
        self.assertTrue(may(egress, "peers", broker, None, "to"))
        # Whoever answers for names: not everywhere a pod that a selector meets.
        for port in (53, 5353):
            self.assertTrue(may(egress, port, stranger, "elsewhere", "to"))
        self.assertFalse(may(egress, "peers", stranger, "elsewhere", "to"))

    def test_the_job_checks_removes_scales_waits_and_deletes_in_this_order(self):
        (job,) = rendered.removal().of("Job")
        spec = job["spec"]["template"]["spec"]
        names = [one["name"] for one in [*spec["initContainers"], *spec["containers"]]]
        self.assertEqual(names, ["check", "remove", "scale", "wait", "delete"])
        (removed,) = rendered.removal().of("ConfigMap")
        self.assertEqual(removed["data"], {"NODE": "kentongan-4", "FROM": "5", "TO": "4"})
        rules = rendered.removal().get("Role", "kentongan-remove-node")["rules"]
        self.assertEqual({verb for rule in rules for verb in rule["verbs"]} & {"*", "create"}, set())

    def test_what_the_guide_has_users_write_can_be_built(self):
        blocks = rendered.guide("yaml")
        self.assertEqual(len(blocks), 6)
        for text in blocks:
            with self.subTest(text):
                rendered.with_kustomization(text, **{"production.toml": "[session]\nreceive_maximum = 7\n"})
        mine = rendered.with_kustomization(blocks[0])
        without = rendered.with_kustomization(blocks[1])
        self.assertEqual([one for one in without if one["kind"] == "PodMonitor"], [])
        self.assertEqual(len(without), len(mine) - 1)
        self.assertEqual(mine.container["image"], f"registry.example.org/{rendered.overlay('production').container['image']}")
        (claim,) = mine.stateful_set["spec"]["volumeClaimTemplates"]
        self.assertEqual(claim["spec"]["resources"]["requests"]["storage"], "100Gi")
        own, _ = [text for text in blocks if "production.toml" in text]
        maps = rendered.with_kustomization(own, **{"production.toml": "[session]\n"}).of("ConfigMap")
        self.assertEqual(maps[0]["data"]["production.toml"], "[session]\n")

    def test_all_images_of_ours_are_one(self):
        images = {
            container["image"]
            for objects in everything().values()
            for workload in [*objects.of("StatefulSet"), *objects.of("Job")]
            for container in [*workload["spec"]["template"]["spec"]["containers"],
                              *workload["spec"]["template"]["spec"].get("initContainers", [])]
            if "kubectl" not in container["image"]
        }
        version = tomllib.loads(pathlib.Path(rendered.ROOT, "Cargo.toml").read_text(encoding="utf-8"))
        self.assertEqual(images, {f"kentongan:{version['workspace']['package']['version']}"})


def kubelet_quantity(text):
    """Bytes of a quantity such as 2Gi."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", text).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


if __name__ == "__main__":
    unittest.main()
