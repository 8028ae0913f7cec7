"""The S3 server of `s3_server.py`, keeping a line of every request that it gets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_SERVE = """
import sys
import moto.moto_server.threaded_moto_server as moto_server

log, make_server = open(sys.argv[1], "a", buffering=1), moto_server.make_server

def make_logging_server(host, port, app, *arguments, **options):
    def logging_app(environ, start_response):
        log.write("%(REQUEST_METHOD)s %(PATH_INFO)s?%(QUERY_STRING)s\\n" % environ)
        return app(environ, start_response)

    return make_server(host, port, logging_app, *arguments, **options)

moto_server.make_server = make_logging_server
server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()  # ends with the process that started this one, however that ends
"""


class RequestLog:
    """What a server was asked for since it began."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def counts(self) -> Counter[str]:
        """Requests by kind: PUT, GET, HEAD, LIST, DELETE."""
        lines = self._file.read_text(encoding="utf-8").splitlines()
        return Counter("LIST" if "list-type=2" in line else line.split(" ")[0] for line in lines)


@contextlib.contextmanager
def serving_counted(log: Path) -> Iterator[tuple[str, RequestLog]]:
    """The URL of a server that holds nothing yet, and the log of its requests, kept in the file
    `log`."""
    log.touch()
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), RequestLog(log)
        finally:
            process.kill()
