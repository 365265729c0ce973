"""A Kerberos realm of the tests' own: a real KDC on a free port of 127.0.0.1, and tickets of it.

:mod:`tests.support.requirements` lists what it needs; :func:`paramiko_with_gssapi` builds a Python extension.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LAB = Path(os.environ.get("TEST_LAB") or REPOSITORY / ".lab") / "kerberos"
NAME = "EG.TEST"
PASSWORD = "correct horse battery staple"
# The last paramiko that can do GSS-API; what it has in common with the installed one is taken from there.
PACKAGES = ("paramiko==4.0.0", "gssapi==1.12.0", "decorator==5.3.1", "pyasn1==0.6.1")

_CLIENT = """
[libdefaults]
 default_realm = {name}
 dns_lookup_kdc = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 {name} = {{
  kdc = 127.0.0.1:{port}
 }}
"""
_SERVER = """
[kdcdefaults]
 kdc_listen = 127.0.0.1:{port}
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 {name} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/acl
 }}
[logging]
 kdc = FILE:{folder}/kdc.log
"""


class Realm:
    """The realm :data:`NAME`, with everything it has in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which Kerberos programs find the realm, and servers their keys."""
        return {"KRB5_CONFIG": str(self.folder / "krb5.conf"), "KRB5_KTNAME": str(self.folder / "keytab")}

    def start(self) -> None:
        """Make the realm's database and start its KDC."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for file, text in (("krb5.conf", _CLIENT), ("kdc.conf", _SERVER)):
            (self.folder / file).write_text(text.format(name=NAME, port=port, folder=self.folder))
        self._run("kdb5_util", "create", "-s", "-r", NAME, "-P", PASSWORD)
        self._process = subprocess.Popen(
            ["krb5kdc", "-n"], env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self.stop()
                    raise
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the KDC."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def add_host(self, name: str) -> None:
        """Give a host its keys."""
        self._run("kadmin.local", "addprinc", "-randkey", f"host/{name}")
        self._run("kadmin.local", "ktadd", "-k", str(self.folder / "keytab"), f"host/{name}")

    def ticket(self, user: str) -> Path:
        """Make a user, and return a file with a ticket that can be handed on."""
        self._run("kadmin.local", "addprinc", "-pw", PASSWORD, user)
        cache = self.folder / f"ticket-{user}"
        self._run("kinit", "-f", "-c", str(cache), user, text=f"{PASSWORD}\n")
        return cache

    def _run(self, *command: str, text: str = "") -> None:
        done = subprocess.run(
            command, env=self._environment(), input=text, text=True, capture_output=True, timeout=30, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr or done.stdout}")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf")}


@contextmanager
def realm() -> Iterator[Realm]:
    """Have a :class:`Realm` up, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="eg-krb5-") as folder:
        running = Realm(Path(folder))
        running.start()
        try:
            yield running
        finally:
            running.stop()


def paramiko_with_gssapi() -> Path:
    """Return a directory for ``PYTHONPATH`` with a paramiko that logs in by Kerberos; kept between runs."""
    LAB.mkdir(parents=True, exist_ok=True)
    site = LAB / "-".join((sys.implementation.cache_tag or "", *PACKAGES)).replace("==", "-")
    with (LAB / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not site.exists():
            unfinished = LAB / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(unfinished)]
            done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"pip failed:\n{done.stderr[-4000:]}")
            unfinished.rename(site)
    return site
