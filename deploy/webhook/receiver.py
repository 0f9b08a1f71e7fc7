#!/usr/bin/env python3
"""A server that a broker tells what happens to its clients: an example to begin with.

    receiver.py --secret-file FILE [--listen 127.0.0.1:8101] [--certificate FILE --key FILE]

It believes what is signed as Standard Webhooks has it (https://www.standardwebhooks.com), and prints each event as a line of JSON.
Requests that come again, because the answer got lost, are printed once. Each way of not being believed has a status of its own: 400 for
what is no such request, 401 for a signature that is wrong, and 409 for one that is too old, which somebody may have kept.
"""

import argparse
import base64
import collections
import hashlib
import hmac
import http.server
import json
import pathlib
import ssl
import sys
import threading
import time

BODY_BYTES_MAX = 16 * 1024 * 1024

# How far the sender's clock may be off, and how old a request may be.
TOLERANCE_SECONDS = 300

# Numbers of requests that are remembered: more than can come within that time.
REMEMBERED_MAX = 10_000


class NotBelieved(Exception):
    """Why a request is not believed; with its status."""

    def __init__(self, status, why):
        super().__init__(why)
        self.status = status


def key_of(secret):
    """The key: what follows `whsec_` is base64, any other text is the key itself."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    return secret.encode()


def verify(key, headers, body, now):
    """Returns the number of a request that is signed with `key`, or raises NotBelieved."""
    number, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not number or not timestamp.isascii() or not timestamp.isdigit():
        raise NotBelieved(400, "no webhook-id, or no webhook-timestamp that is one")
    signed = b".".join([number.encode(), timestamp.encode(), body])
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    # There may be several, while a secret is replaced by another.
    signatures = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(one.encode(), expected.encode()) for one in signatures):
        raise NotBelieved(401, "the signature is wrong")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise NotBelieved(409, "it is too old, or comes from the future")
    return number


class Handler(http.server.BaseHTTPRequestHandler):
    # The connection is kept alive: the broker has one, and uses it again.
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        try:
            number = verify(self.server.key, self.headers, body, time.time())
            if self.server.is_new(number):
                self.server.on_batch(json.loads(body))
        except NotBelieved as why:
            self.log_error("%s", why)
            return self.answer(why.status)
        except (ValueError, KeyError) as error:
            self.log_error("%s", repr(error))
            return self.answer(400)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code="-", size="-"):
        """Says nothing of what went well."""


class Receiver(http.server.ThreadingHTTPServer):
    """`on_batch` is called with each batch once."""

    def __init__(self, address, key, on_batch):
        super().__init__(address, Handler)
        self.key, self.on_batch = key, on_batch
        self.remembered = collections.OrderedDict()
        self.lock = threading.Lock()

    def is_new(self, number):
        with self.lock:
            if number in self.remembered:
                return False
            self.remembered[number] = None
            if len(self.remembered) > REMEMBERED_MAX:
                self.remembered.popitem(last=False)
            return True


def show(batch):
    """What a receiver of yours would do something with."""
    if batch["left_out"]:
        print(json.dumps({"event": "left_out", "node": batch["node"], "events": batch["left_out"]}), flush=True)
    for event in batch["events"]:
        print(json.dumps(event), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secret-file", type=pathlib.Path, required=True, help="what requests are signed with")
    parser.add_argument("--listen", default="127.0.0.1:8101", metavar="ADDRESS:PORT")
    parser.add_argument("--certificate", help="PEM; without it, HTTP is not encrypted")
    parser.add_argument("--key", help="PEM")
    arguments = parser.parse_args()
    host, port = arguments.listen.rsplit(":", 1)
    key = key_of(arguments.secret_file.read_text(encoding="utf-8").removesuffix("\n"))
    receiver = Receiver((host, int(port)), key, show)
    scheme = "http"
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)
        # The handshake belongs to the connection's thread, not to the one that accepts.
        receiver.socket = context.wrap_socket(receiver.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    print(f"listening on {scheme}://{host}:{receiver.server_port}", file=sys.stderr, flush=True)
    try:
        receiver.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
