# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made by `certtool` once a test session, good ones and bad ones.

`Authority.issue` makes one; `Directory` lays them out as QEMU's objects want them.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 60

EXPIRED = 'activation_date = "2004-02-29 16:21:42"\nexpiration_date = "2005-02-28 16:21:42"'
NOT_YET = 'activation_date = "2103-02-28 16:21:42"\nexpiration_date = "2104-02-28 16:21:42"'
VALID = 'activation_date = "2004-02-29 16:21:42"\nexpiration_date = "2104-02-28 16:21:42"'

CA = "ca\ncert_signing_key\ncrl_signing_key"
SERVER = "tls_www_server\nsigning_key"
CLIENT = "tls_www_client\nsigning_key"
#: For names that the server has.
LOCAL = 'dns_name = "localhost"\nip_address = "127.0.0.1"\nip_address = "::1"'

#: `extendedKeyUsage` with one purpose, as DER.
_PURPOSES = {"server": "300a06082b06010505070301", "client": "300a06082b06010505070302"}


def critical_purpose(name: str) -> str:
    """Return template lines for a purpose that is marked critical."""
    return f'add_critical_extension = "2.5.29.37 0x{_PURPOSES[name]}"'


def certtool(*words: str | Path) -> None:
    """Run certtool; what it says is shown where it fails."""
    done = subprocess.run(
        ["certtool", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Maker:
    """Makes certificates in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = 0

    def key(self, *options: str) -> Path:
        """Make a private key."""
        path = self._new("key.pem")
        certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path, *options)
        return path

    def authority(self, name: str, options: str = CA, dates: str = VALID) -> Certificate:
        """Make a certificate that signs itself."""
        key, cert = self.key(), self._new("cert.pem")
        template = self._template(name, options, dates)
        certtool(
            *("--generate-self-signed", "--load-privkey", key, "--template", template),
            *("--outfile", cert),
        )
        return Certificate(cert, key)

    def issue(
        self,
        authority: Certificate,
        name: str,
        options: str,
        dates: str = VALID,
        key: Path | None = None,
    ) -> Certificate:
        """Make a certificate that `authority` signs."""
        key, cert = key or self.key(), self._new("cert.pem")
        template = self._template(name, options, dates)
        certtool(
            *("--generate-certificate", "--load-privkey", key, "--template", template),
            *("--load-ca-certificate", authority.cert, "--load-ca-privkey", authority.key),
            *("--outfile", cert),
        )
        return Certificate(cert, key)

    def revoke(self, authority: Certificate, *revoked: Certificate) -> Path:
        """Make a revocation list."""
        template, lists = self._new("template"), self._new("certs.pem")
        template.write_text("crl_next_update = 36500\ncrl_number = 1\n")
        lists.write_text("".join(each.cert.read_text() for each in revoked))
        path = self._new("crl.pem")
        certtool(
            *("--generate-crl", "--load-ca-certificate", authority.cert),
            *("--load-ca-privkey", authority.key, "--load-certificate", lists),
            *("--template", template, "--outfile", path),
        )
        return path

    def encrypt(self, key: Path, password: str) -> Path:
        """Encrypt a private key."""
        path = self._new("key.pem")
        certtool(
            *("--to-p8", "--load-privkey", key, "--outfile", path, "--password", password),
            *("--pkcs-cipher", "aes-256"),
        )
        return path

    def _template(self, name: str, options: str, dates: str) -> Path:
        path = self._new("template")
        path.write_text(f'cn = "{name}"\n{options}\n{dates}\nserial = {1000 + self._count}\n')
        return path

    def _new(self, suffix: str) -> Path:
        self._count += 1
        return self.directory / f"{self._count}-{suffix}"


def lay_out(
    directory: Path,
    *,
    ca: Path | None = None,
    crl: Path | None = None,
    server: Certificate | None = None,
    client: Certificate | None = None,
    dh: Path | None = None,
) -> Path:
    """Copy certificates to where an object with `dir` looks for them; private keys are 0600."""
    directory.mkdir(exist_ok=True)
    named = {"ca-cert.pem": ca, "ca-crl.pem": crl, "dh-params.pem": dh}
    for role, each in (("server", server), ("client", client)):
        if each is not None:
            named |= {f"{role}-cert.pem": each.cert, f"{role}-key.pem": each.key}
    for name, source in named.items():
        if source is not None:
            shutil.copyfile(source, directory / name)
            (directory / name).chmod(0o600 if name.endswith("-key.pem") else 0o644)
    return directory


class States:
    """An authority and certificates of it in all states."""

    def __init__(self, directory: Path) -> None:
        make = self.make = Maker(directory)
        self.ca = make.authority("the authority")
        self.other_ca = make.authority("another authority")
        self.server = make.issue(self.ca, "localhost", f"{SERVER}\n{LOCAL}")
        self.client = make.issue(self.ca, "alice", CLIENT)

    def servers(self) -> dict[str, Certificate]:
        """Return certificates of servers, none of them quite right, by what is wrong."""
        make, ca = self.make, self.ca
        key = self.server.key
        return {
            "expired": make.issue(ca, "localhost", f"{SERVER}\n{LOCAL}", EXPIRED, key),
            "not-yet": make.issue(ca, "localhost", f"{SERVER}\n{LOCAL}", NOT_YET, key),
            "other-host": make.issue(ca, "elsewhere", f'{SERVER}\ndns_name = "elsewhere"', key=key),
            "other-ca": make.issue(self.other_ca, "localhost", f"{SERVER}\n{LOCAL}", key=key),
            "is-ca": make.issue(ca, "localhost", f"{CA}\n{LOCAL}", key=key),
            "usage": make.issue(ca, "localhost", f"encryption_key\n{LOCAL}", key=key),
            "purpose": make.issue(
                ca, "localhost", f"signing_key\n{critical_purpose('client')}\n{LOCAL}", key=key
            ),
            "no-purpose": make.issue(ca, "localhost", LOCAL, key=key),
        }

    def clients(self) -> dict[str, Certificate]:
        """Return certificates of clients, none of them quite right, by what is wrong."""
        make, ca = self.make, self.ca
        key = self.client.key
        return {
            "expired": make.issue(ca, "alice", CLIENT, EXPIRED, key),
            "not-yet": make.issue(ca, "alice", CLIENT, NOT_YET, key),
            "other-ca": make.issue(self.other_ca, "alice", CLIENT, key=key),
            "is-ca": make.issue(ca, "alice", CA, key=key),
            "usage": make.issue(ca, "alice", "encryption_key", key=key),
            "purpose": make.issue(
                ca, "alice", f"signing_key\n{critical_purpose('server')}", key=key
            ),
        }

    def authorities(self) -> dict[str, Path]:
        """Return certificates that can't be an authority's, by what is wrong."""
        make = self.make
        return {
            "expired": make.authority("old", dates=EXPIRED).cert,
            "not-yet": make.authority("new", dates=NOT_YET).cert,
            "no-ca": make.authority("none", options=SERVER).cert,
            "usage": make.authority("unable", options="ca\nsigning_key").cert,
        }


PASSWORD = "123456"
PSK = "0123456789abcdef0123456789abcdef"


class Places:
    """Directories as QEMU's objects want them, by what is in them."""

    def __init__(self, directory: Path, states: States) -> None:
        self._directory = directory
        self.states = states
        # QEMU makes parameters of its own where there are none, which takes time.
        self._dh = states.make.directory / "dh-params.pem"
        certtool("--get-dh-params", "--sec-param", "medium", "--outfile", self._dh)
        ca, server, client = states.ca.cert, states.server, states.client
        make = states.make
        self._lay("good", ca=ca, server=server, client=client)
        for name, each in states.servers().items():
            self._lay(f"server-{name}", ca=ca, server=each, client=client)
        for name, each in states.clients().items():
            self._lay(f"client-{name}", ca=ca, server=server, client=each)
        for name, path in states.authorities().items():
            self._lay(f"ca-{name}", ca=path, server=server)
        crl = make.revoke(states.ca, server, client)
        self._lay("revoked", ca=ca, crl=crl, server=server, client=client)
        encrypted = Certificate(server.cert, make.encrypt(server.key, PASSWORD))
        self._lay("encrypted", ca=ca, server=encrypted)
        self._lay("mismatch", ca=ca, server=Certificate(server.cert, client.key))
        self._lay("no-ca", server=server)
        self._lay("ca-only", ca=ca)
        self._lay("empty")
        self._lay("no-key", ca=ca, server=server, client=client)
        for role in ("server", "client"):
            (self["no-key"] / f"{role}-key.pem").unlink()
        for file in ("ca-cert", "ca-crl", "server-cert", "server-key", "dh-params"):
            self._break(file, ca, server)
        self._lay("psk")
        (self["psk"] / "keys.psk").write_text(
            f"qemu:{PSK}\nbob:{PSK[::-1]}\n\nnothing\nzz:zz\nodd:123\nempty:\nspace: 6f4b\n"
        )
        (self["psk"] / "keys.psk").chmod(0o600)

    def __getitem__(self, name: str) -> Path:
        return self._directory / name

    @property
    def names(self) -> list[str]:
        """All of them."""
        found = (path.name for path in self._directory.iterdir())
        return sorted(name for name in found if name != "made")

    def _break(self, file: str, ca: Path, server: Certificate) -> None:
        """Make directories in which one file is not what it should be."""
        empty = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
        for kind, content in (("text", "garbage"), ("cut", empty), ("void", "")):
            path = self._lay(f"{kind}-{file}", ca=ca, server=server) / f"{file}.pem"
            path.write_text(content)
            path.chmod(0o600)
        path = self._lay(f"directory-{file}", ca=ca, server=server) / f"{file}.pem"
        path.unlink(missing_ok=True)
        path.mkdir()

    def _lay(
        self,
        name: str,
        *,
        ca: Path | None = None,
        crl: Path | None = None,
        server: Certificate | None = None,
        client: Certificate | None = None,
    ) -> Path:
        where = self._directory / name
        return lay_out(where, ca=ca, crl=crl, server=server, client=client, dh=self._dh)
