"""Ports for servers that are started later, or never."""

import secrets
import socket

# Below what the system gives away by itself, and below the ports of local stacks.
FIRST_PORT = 10_000
PORT_COUNT = 9_000


def free_port() -> int:
    """A port of loopback at which nobody listens, and which nobody is given by chance."""
    while True:
        port = FIRST_PORT + secrets.randbelow(PORT_COUNT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
