"""Jobs of strangers, for the tests of what bounds them."""

from __future__ import annotations

import os


def echo(payload: bytes) -> bytes:
    return payload


def process(payload: bytes) -> bytes:
    return str(os.getpid()).encode()


def endless(payload: bytes) -> bytes:
    while True:
        pass


def huge(payload: bytes) -> bytes:
    return bytes(8 << 30)


def faulty(payload: bytes) -> bytes:
    raise ValueError(payload.decode())


def loud(payload: bytes) -> bytes:
    print("not a reply", flush=True)
    os.write(1, b"nor this\n")
    return b"quiet"
