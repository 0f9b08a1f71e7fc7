"""Tokens that PyJWT makes, shown by paho: each algorithm, what a token grants, and its end. A broker of its own."""

import json
import os
import pathlib
import tempfile
import time
import unittest

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from run import Kentongan
from support import V5, V311, Client, unique, wait_for

KENTONGAN = os.environ["KENTONGAN"]

SECRET = b"a secret of this suite that is long enough for all of the three"

SETTINGS = """
allow_anonymous = false
[[listener]]
address = "127.0.0.1:0"
authentication = ["jwt"]
[auth.jwt]
secret_file = "{0}/secret"
public_key_file = "{0}/keys.pem"
jwks_file = "{0}/keys.json"
audience = "mqtt"
leeway_seconds = 0
"""


class Tokens(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-tokens-")
        cls.addClassCleanup(directory.cleanup)
        cls.rsa, cls.named = (rsa.generate_private_key(65537, bits) for bits in (2048, 3072))
        cls.p256, cls.p384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))
        cls.ed = ed25519.Ed25519PrivateKey.generate()
        of_file = [key.public_key() for key in (cls.rsa, cls.p256, cls.p384, cls.ed)]
        pem = b"".join(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in of_file)
        jwk = {**RSAAlgorithm.to_jwk(cls.named.public_key(), as_dict=True), "kid": "named", "use": "sig", "alg": "PS384"}
        path = pathlib.Path(directory.name)
        (path / "secret").write_bytes(SECRET)
        (path / "keys.pem").write_bytes(pem)
        (path / "keys.json").write_text(json.dumps({"keys": [jwk]}), encoding="utf-8")
        (path / "kentongan.toml").write_text(SETTINGS.format(directory.name), encoding="utf-8")
        cls.broker = Kentongan(KENTONGAN, directory.name, settings=path / "kentongan.toml")
        cls.addClassCleanup(cls.broker.stop)
        host, port = cls.broker.address.rsplit(":", 1)
        cls.address = (host, int(port))

    def connect(self, token, version=V5, **more):
        client = Client(version, address=self.address, credentials=("whoever", token), **more)
        self.addCleanup(client.paho.loop_stop)
        self.addCleanup(client.paho.disconnect)
        return client

    @staticmethod
    def claims(**more):
        return {"sub": "ana", "aud": "mqtt", "exp": time.time() + 60, **more}

    def test_each_algorithm(self):
        keys = {
            **dict.fromkeys(("HS256", "HS384", "HS512"), SECRET),
            **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), self.rsa),
            "ES256": self.p256,
            "ES384": self.p384,
            "EdDSA": self.ed,
        }
        for algorithm, key in keys.items():
            for version in (V311, V5):
                with self.subTest(algorithm=algorithm, version=version):
                    self.connect(jwt.encode(self.claims(), key, algorithm), version)

    def test_a_name_selects_a_key_and_the_key_its_algorithm(self):
        named = {"kid": "named"}
        self.connect(jwt.encode(self.claims(), self.named, "PS384", headers=named))
        for token in (
            jwt.encode(self.claims(), self.named, "RS256", headers=named),
            jwt.encode(self.claims(), ec.generate_private_key(ec.SECP256R1()), "ES256"),
            jwt.encode(self.claims(aud="other"), self.rsa, "RS256"),
            jwt.encode(self.claims(exp=time.time() - 1), self.rsa, "RS256"),
            jwt.encode(self.claims(), None, "none"),
        ):
            with self.subTest(token=token), self.assertRaises(ConnectionError):
                self.connect(token)

    def test_what_a_token_grants(self):
        mine, other = unique("mine"), unique("other")
        rules = {"all": [f"{mine}/%c/#"], "sub": [f"{other}/+"]}
        client = self.connect(jwt.encode(self.claims(acl=rules), self.p256, "ES256"), client_id=unique("dev"))
        own = f"{mine}/{client.client_id}"
        self.assertFalse(client.subscribe(f"{own}/#", 1).is_failure)
        self.assertFalse(client.subscribe(f"{other}/x", 1).is_failure)
        self.assertTrue(client.subscribe(f"{mine}/#", 1).is_failure)
        client.publish(f"{own}/x", "hers", 1)
        self.assertEqual(client.take(1)[0].payload, b"hers")

    def test_the_end_of_a_token(self):
        client = self.connect(jwt.encode(self.claims(exp=time.time() + 2), self.ed, "EdDSA"))
        reason = wait_for("DISCONNECT", lambda: client.disconnected)
        self.assertEqual(reason.value, 0xA0)


if __name__ == "__main__":
    unittest.main()
