"""The example of an authentication server (deploy/http-authentication), asked by the broker, and both held against the OpenAPI document.

KENTONGAN names the binary.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

import jsonschema
import openapi_spec_validator
import paho.mqtt.client as paho
import yaml

from certificates import certificate
from own_broker import OwnBroker
from support import DEADLINE_SECONDS, V5, V311, unique, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "deploy" / "http-authentication"
DOCUMENT = yaml.safe_load((ROOT / "docs" / "reference" / "http-authentication.yaml").read_text(encoding="utf-8"))
NOT_AUTHORIZED, UNAVAILABLE = 0x87, 0x88


def example():
    spec = importlib.util.spec_from_file_location("http_authentication_server", EXAMPLE / "server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def validator(schema):
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(whole)


class Example:
    """The example's program, with users of a test's own."""

    def __init__(self, directory, *flags):
        self.users = pathlib.Path(directory, "users.json")
        self.users.write_text((EXAMPLE / "users.json").read_text(encoding="utf-8"), encoding="utf-8")
        command = [sys.executable, EXAMPLE / "server.py", "--users", self.users, "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def change(self, name, **what):
        """Users are read again for each question: as a whole, so that none sees half of them."""
        users = json.loads(self.users.read_text(encoding="utf-8"))
        users[name] = {**users.get(name, {}), **what}
        new = self.users.with_suffix(".new")
        new.write_text(json.dumps(users), encoding="utf-8")
        new.replace(self.users)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Visitor:
    """A paho client that remembers what it was told."""

    def __init__(self, port, user=None, password=None, version=V5, client_id=None):
        self.reason, self.ended, self.granted, self.messages = None, None, {}, []
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id or unique("http"), protocol=version, reconnect_on_failure=False
        )
        self.paho.username_pw_set(user, password)
        self.paho.on_connect = lambda _client, _data, _flags, reason, _properties: setattr(self, "reason", reason)
        self.paho.on_disconnect = lambda _client, _data, _flags, reason, _properties: setattr(self, "ended", reason)
        self.paho.on_subscribe = lambda _client, _data, mid, reasons, _properties: self.granted.update({mid: reasons})
        self.paho.on_message = lambda _client, _data, message: self.messages.append(message.topic)
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        wait_for("CONNACK", lambda: self.reason is not None)

    def subscribe(self, topic_filter):
        _, mid = self.paho.subscribe(topic_filter, 1)
        wait_for("SUBACK", lambda: mid in self.granted)
        return self.granted[mid][0].value

    def close(self):
        self.paho.disconnect()
        self.paho.loop_stop()


class Document(unittest.TestCase):
    def test_the_document_is_openapi_and_its_examples_are_what_it_says(self):
        openapi_spec_validator.validate(DOCUMENT)
        for path in DOCUMENT["paths"].values():
            request = path["post"]["requestBody"]["content"]["application/json"]
            answer = path["post"]["responses"]["200"]["content"]["application/json"]
            for content in (request, answer):
                for one in content.get("examples", {}).values():
                    validator(content["schema"]["$ref"].rsplit("/", 1)[1]).validate(one["value"])

    def test_what_the_broker_refuses_the_document_does_not_allow(self):
        answer = validator("Answer")
        rule = {"permission": "allow", "action": "all", "topic": "a"}
        for allowed in (
            {"result": "allow", "acl": [rule, {**rule, "qos": [0, 1], "retain": "all"}]},
            {"result": "allow", "acl": {}},
            {"result": "allow", "superuser": False, "acl": {"all": ["#"]}},
        ):
            answer.validate(allowed)
        for refused in (
            {},
            {"result": "maybe"},
            {"result": "allow", "unless": "it rains"},
            {"result": "allow", "superuser": True, "acl": {}},
            {"result": "allow", "expires": 0},
            {"result": "allow", "identity": ""},
            {"result": "allow", "identity": "a\u0000"},
            {"result": "allow", "acl": "a"},
            {"result": "allow", "acl": {"publish": ["a"]}},
            {"result": "allow", "acl": [{**rule, "topics": ["b"]}]},
            {"result": "allow", "acl": [{**rule, "qos": 3}]},
        ):
            self.assertFalse(answer.is_valid(refused), refused)


class Conformity(unittest.TestCase):
    """The example in this process, where what is said can be looked at."""

    @classmethod
    def setUpClass(cls):
        module = example()
        cls.said = said = []

        class Recording(module.Handler):
            def answer(self, status, answer):
                said.append((status, answer))
                super().answer(status, answer)

        decide = module.decide

        def recorded(users, question):
            said.append(("question", question))
            return decide(users, question)

        module.decide = recorded
        server = module.Server(("127.0.0.1", 0), Recording)
        server.users, server.authorization = EXAMPLE / "users.json", None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cls.addClassCleanup(server.shutdown)
        directory = tempfile.TemporaryDirectory(prefix="kentongan-http-")
        cls.addClassCleanup(directory.cleanup)
        url = f"http://127.0.0.1:{server.server_port}"
        settings = f'[auth.http]\nurl = "{url}/mqtt"\nrights_url = "{url}/rights"\nrights_seconds = 1\n'
        cls.broker = OwnBroker(directory.name, [""], settings)
        cls.addClassCleanup(cls.broker.stop)

    def test_every_question_and_answer_is_as_the_document_says(self):
        port = self.broker.ports[0]
        visitors = [Visitor(port, "ana", "tabuh", version) for version in (V5, V311)]
        visitors += [Visitor(port, "operator", "kentong"), Visitor(port, "eve", "x"), Visitor(port, "ana", "x")]
        visitors += [Visitor(port, "nobody", "x"), Visitor(port)]
        wait_for("rights", lambda: any(what == "question" and said["ask"] == "rights" for what, said in self.said))
        for visitor in visitors:
            visitor.close()
        questions = [said for what, said in self.said if what == "question"]
        self.assertEqual({question["ask"] for question in questions}, {"login", "rights"})
        for question in questions:
            validator("Login" if question["ask"] == "login" else "Rights").validate(question)
        answers = [said for what, said in self.said if what == 200]
        self.assertEqual({answer["result"] for answer in answers}, {"allow", "deny", "ignore"})
        for answer in answers:
            validator("Answer").validate(answer)


class Program(unittest.TestCase):
    """The example as its users start it: with TLS, and a secret."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-http-")
        cls.addClassCleanup(directory.cleanup)
        chain, key = certificate(directory.name)
        secret = pathlib.Path(directory.name, "secret")
        secret.write_text("Bearer bale-3f9\n", encoding="utf-8")
        cls.example = Example(
            directory.name, "--certificate", chain, "--key", key, "--authorization-file", secret
        )
        cls.addClassCleanup(cls.example.stop)
        url = cls.example.url
        cls.settings = f'ca_file = "{chain}"\nheader_value_file = "{secret}"\nremember_seconds = 0\nremember_denied_seconds = 0\n'
        own = f'[auth.http]\nurl = "{url}/mqtt"\nrights_url = "{url}/rights"\nrights_seconds = 1\n{cls.settings}'
        cls.broker = OwnBroker(directory.name, [""], own)
        cls.addClassCleanup(cls.broker.stop)
        cls.port = cls.broker.ports[0]

    def visit(self, *arguments, **more):
        visitor = Visitor(self.port, *arguments, **more)
        self.addCleanup(visitor.close)
        return visitor

    def test_who_comes_in_and_who_does_not(self):
        self.assertEqual(self.visit("ana", "tabuh").reason.value, 0)
        self.assertEqual(self.visit("ana", "wrong").reason.value, NOT_AUTHORIZED)
        self.assertEqual(self.visit("eve", "x").reason.value, NOT_AUTHORIZED)
        self.assertTrue(self.visit("stranger", "x").reason.is_failure)
        self.assertEqual(self.visit("ana", "tabuh", version=V311).reason.value, 0)

    def test_rights_come_with_the_login_and_are_taken_while_it_lasts(self):
        self.example.change("budi", password="x", acl={"sub": ["a/#", "b"]})
        budi, operator = self.visit("budi", "x"), self.visit("operator", "kentong")
        self.assertEqual([budi.subscribe(one) for one in ("a/#", "b", "c")], [1, 1, NOT_AUTHORIZED])
        operator.paho.publish("a/1", "x", 1).wait_for_publish(DEADLINE_SECONDS)
        wait_for("a message", lambda: budi.messages == ["a/1"])
        self.example.change("budi", acl={"sub": ["b"]})
        self.broker.wait_for_metric('kentongan_http_auth_rights_total{outcome="changed"}', 1)
        for topic in ("a/2", "b"):
            operator.paho.publish(topic, "x", 1).wait_for_publish(DEADLINE_SECONDS)
        wait_for("another", lambda: budi.messages[-1] == "b")
        self.assertEqual(budi.messages, ["a/1", "b"])
        self.example.change("budi", blocked=True)
        wait_for("the end", lambda: budi.ended is not None)
        self.assertEqual(budi.ended.value, NOT_AUTHORIZED)

    def test_a_server_that_is_not_trusted_or_does_not_know_the_broker_lets_nobody_in(self):
        url = f'[auth.http]\nurl = "{self.example.url}/mqtt"\n'
        for lines, text in (("", "certificate"), (self.settings.replace("header_value_file", "#"), "status 401")):
            with self.subTest(text), tempfile.TemporaryDirectory(prefix="kentongan-http-") as directory:
                broker = OwnBroker(directory, [""], url + lines)
                try:
                    visitor = Visitor(broker.ports[0], "ana", "tabuh")
                    visitor.close()
                    self.assertEqual(visitor.reason.value, UNAVAILABLE)
                    broker.wait_for_log("decided nothing", text)
                finally:
                    broker.stop()


if __name__ == "__main__":
    unittest.main()
