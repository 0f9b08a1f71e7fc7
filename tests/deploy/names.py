"""A resolver for the names that Kubernetes' DNS would know: those of headless Services and of the pods behind them."""

import socket
import struct
import threading

DOMAIN = "svc.cluster.local"

TYPE_A = 1
NAME_ERROR = 3


def parse_question(packet):
    """The name that is asked for, its type, and the question as it stood there."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode("ascii"))
        at += 1 + packet[at]
    (kind,) = struct.unpack_from(">H", packet, at + 1)
    return ".".join(labels).lower(), kind, packet[12 : at + 5]


def answer(packet, resolve):
    """An answer to a question; `resolve` gives the addresses of a name, or None if there is no such name."""
    name, kind, question = parse_question(packet)
    addresses = resolve(name)
    # No address of the type that was asked for is no error.
    records = addresses if addresses and kind == TYPE_A else []
    flags = 0x8580 | (NAME_ERROR if addresses is None else 0)
    head = packet[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
    body = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", TYPE_A, 1, 0, 4) + socket.inet_aton(one) for one in records)
    return head + question + body


class Resolver:
    """Answers on port 53 of an address, as long as it lives."""

    def __init__(self, address, resolve):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.resolve = resolve
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            packet, client = self.socket.recvfrom(4096)
            self.socket.sendto(answer(packet, self.resolve), client)
