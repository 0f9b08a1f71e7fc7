"""The Helm chart renders the objects of the overlays, each of them, and no other."""

import unittest

import rendered

CLUSTER = "values-cluster.yaml"
PRODUCTION = "values-production.yaml"


def comparable(objects):
    """Objects by kind and name, without what says in either way that the configuration has changed."""
    (config,) = [one for one in objects.of("ConfigMap")]
    name, result = config["metadata"]["name"], {}
    for one in objects:
        if one is config:
            one["metadata"]["name"] = "kentongan-config"
        if one["kind"] == "StatefulSet":
            template = one["spec"]["template"]
            template["metadata"].pop("annotations", None)
            for volume in template["spec"]["volumes"]:
                if volume.get("configMap", {}).get("name") == name:
                    volume["configMap"]["name"] = "kentongan-config"
            spec, container = template["spec"], template["spec"]["containers"][0]
            # Their order means nothing. That of variables does.
            spec["volumes"].sort(key=lambda volume: volume["name"])
            container["volumeMounts"].sort(key=lambda mount: mount["name"])
            container["ports"].sort(key=lambda port: port["name"])
        if one["kind"] == "Service":
            one["spec"]["ports"].sort(key=lambda port: port["name"])
            # What Kubernetes takes when nothing is said.
            one["spec"].setdefault("type", "ClusterIP")
        result[one["kind"], one["metadata"]["name"]] = one
    return result


class Chart(unittest.TestCase):
    maxDiff = None

    def assert_same(self, chart, overlay):
        chart, overlay = comparable(chart), comparable(overlay)
        self.assertEqual(sorted(chart), sorted(overlay))
        for key, expected in overlay.items():
            with self.subTest(key):
                self.assertEqual(chart[key], expected)

    def overlay(self, name):
        """A rendering of its own: it is changed here."""
        return rendered.render(rendered.MANIFESTS / "overlays" / name)

    def test_without_values_it_is_a_single_node(self):
        self.assert_same(rendered.chart(), self.overlay("single"))

    def test_cluster(self):
        self.assert_same(rendered.chart(CLUSTER), self.overlay("cluster"))

    def test_production(self):
        self.assert_same(rendered.chart(CLUSTER, PRODUCTION), self.overlay("production"))

    def test_half_of_the_values_let_nobody_in(self):
        self.assertIn("allow_anonymous = true", str(rendered.chart().of("ConfigMap")))
        self.assertNotIn("allow_anonymous = true", str(rendered.chart("cluster=true", "replicas=3").of("ConfigMap")))
        with self.assertRaisesRegex(AssertionError, "production is for a cluster"):
            rendered.chart(PRODUCTION)

    def test_as_many_nodes_as_never_form_a_cluster_are_refused(self):
        with self.assertRaisesRegex(AssertionError, "3 nodes that do not know each other"):
            rendered.chart("replicas=3")
        for values in [("cluster=true",), (CLUSTER, "replicas=2"), (CLUSTER, "replicas=0"), (CLUSTER, PRODUCTION, "replicas=1")]:
            with self.assertRaisesRegex(AssertionError, "a cluster forms of three nodes"):
                rendered.chart(*values)
        self.assertEqual(rendered.chart(CLUSTER, "replicas=5").of("StatefulSet")[0]["spec"]["replicas"], 5)

    def test_production_with_cert_manager(self):
        chart = rendered.chart(CLUSTER, PRODUCTION, "certManager.enabled=true")
        self.assert_same(chart, rendered.with_cert_manager.__wrapped__())

    def test_a_changed_setting_restarts_the_pods(self):
        def checksum(*values):
            return rendered.chart(*values).pod["metadata"]["annotations"]["checksum/config"]

        self.assertEqual(checksum(CLUSTER), checksum(CLUSTER))
        self.assertNotEqual(checksum(CLUSTER), checksum(CLUSTER, 'config=[session]\nreceive_maximum = 7'))


if __name__ == "__main__":
    unittest.main()
