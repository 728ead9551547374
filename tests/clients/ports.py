"""Ports for clients that listen."""
import random
import socket


def free_port() -> int:
    """Not one of those that the kernel hands out: `local_port="auto"` finds one of them, and another program may have it
    before kr8s listens there."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                return port
