#!/usr/bin/env python3
"""A server that a broker asks who may come in, and what they may: an example to begin with.

    server.py --users users.json [--listen 127.0.0.1:8100] [--authorization-file FILE] [--certificate FILE --key FILE]

It speaks docs/reference/http-authentication.yaml, both questions under any path. The file of users is read for each question, so
a change counts at once; users that are not in it are left to the broker's other methods. Its passwords stand there as they are:
a server of yours keeps hashes.
"""

import argparse
import hmac
import http.server
import json
import pathlib
import ssl

BODY_BYTES_MAX = 1024 * 1024


def decide(users, question):
    """The answer to a question."""
    is_login = question["ask"] == "login"
    user = users.get(question.get("username") if is_login else question["identity"])
    if user is None:
        return {"result": "ignore"}
    if user.get("blocked"):
        return {"result": "deny"}
    if is_login and not hmac.compare_digest(question.get("password", "").encode(), user["password"].encode()):
        return {"result": "deny"}
    return {"result": "allow", **{key: user[key] for key in ("superuser", "acl", "expires") if key in user}}


class Handler(http.server.BaseHTTPRequestHandler):
    # Connections are kept alive: the broker asks often.
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413, {})
        body = self.rfile.read(length)
        expected = self.server.authorization
        if expected and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected.encode()):
            return self.answer(401, {})
        try:
            question = json.loads(body)
            users = json.loads(self.server.users.read_text(encoding="utf-8"))
            answer = decide(users, question)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            # Nothing is decided, and the broker lets nobody in.
            self.log_error("%s", repr(error))
            return self.answer(500, {})
        self.answer(200, answer)

    def answer(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        """Says nothing of what went well."""


class Server(http.server.ThreadingHTTPServer):
    # A fleet that comes back comes at once.
    request_queue_size = 1024


def serve(arguments):
    host, port = arguments.listen.rsplit(":", 1)
    server = Server((host, int(port)), Handler)
    server.users = arguments.users
    secret = arguments.authorization_file
    server.authorization = secret and secret.read_text(encoding="utf-8").strip()
    scheme = "http"
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)
        # The handshake belongs to the connection's thread, not to the one that accepts.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    print(f"listening on {scheme}://{host}:{server.server_port}", flush=True)
    server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=pathlib.Path, required=True, help="users, as users.json has them")
    parser.add_argument("--listen", default="127.0.0.1:8100", metavar="ADDRESS:PORT")
    parser.add_argument("--authorization-file", type=pathlib.Path, help="the Authorization header that the broker must send")
    parser.add_argument("--certificate", help="PEM; without it, HTTP is not encrypted")
    parser.add_argument("--key", help="PEM")
    try:
        serve(parser.parse_args())
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
