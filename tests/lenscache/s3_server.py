"""A real S3 server on this machine, for tests and benchmarks: moto, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDBYTHETEST",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+of/the+test",
    "AWS_SESSION_TOKEN": "planted-session-token-of-the-test",
}
"""Credentials that the server takes, as it takes any; they must never show anywhere."""

_SERVE = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()  # ends with the process that started this one, however that ends
"""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The URL of a server that holds nothing yet."""
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets to work with such a server; no configuration file of this machine plays a
    part."""
    return {
        **SECRETS,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def connect(endpoint: str) -> Any:
    """A client of Amazon's own library, which shares no code with how stores are read and
    written."""
    return boto3.client("s3", endpoint_url=endpoint)


def objects(client: Any, bucket: str, prefix: str) -> dict[str, bytes]:
    """Every object below a prefix, by its key without the prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


def upload(client: Any, bucket: str, prefix: str, tree: dict[str, bytes]) -> None:
    """Put objects below a prefix."""
    for name, data in tree.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
