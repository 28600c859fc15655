"""The certificates of a cluster, made with openssl: one authority signs for everybody."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster import layout
from tests.conformance import tools

# That of the system may add extensions of its own.
_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]


def _certificate(place: Path, name: str, subject: str, *extensions: str, authority: str = "") -> None:
    signed = ["-CA", f"{place}/{authority}.crt", "-CAkey", f"{place}/{authority}.key"] if authority else []
    added = [part for extension in extensions for part in ("-addext", extension)]
    files = ["-keyout", f"{place}/{name}.key", "-out", f"{place}/{name}.crt"]
    config = ["-config", f"{place}/openssl.cnf"]
    tools.run(["openssl", "req", "-x509", *config, *_KEY, *signed, *added, *files, "-subj", subject])


def _client(directory: Path, name: str, user: str, *groups: str) -> None:
    """A certificate for a user, and the kubeconfig that uses it."""
    place = layout.certificates(directory)
    subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
    uses = ("basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth")
    _certificate(place, name, subject, *uses, authority="ca")
    server = f"https://{layout.CONTROL}:{layout.API_PORT}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": server, "certificate-authority": f"{place}/ca.crt"},
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate": f"{place}/{name}.crt",
                    "client-key": f"{place}/{name}.key",
                },
            }
        ],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "current-context": "test",
    }
    layout.kubeconfig(directory, name).write_text(json.dumps(document, indent=1))


def make(directory: Path, nodes: list[layout.Place]) -> None:
    """Authority, API server, service accounts, and a kubeconfig for each who talks to the API server."""
    place = layout.certificates(directory)
    place.mkdir(0o700)
    (place / "openssl.cnf").write_text(_CONFIG)
    for name in ("ca", "front"):
        uses = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
        _certificate(place, name, f"/CN={name}", *uses)
    kubernetes = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    hosts = [*kubernetes, f"kubernetes.default.svc.{layout.DOMAIN}", "localhost"]
    names = [f"DNS:{name}" for name in hosts]
    names += [f"IP:{address}" for address in (layout.CONTROL, layout.API_SERVICE, "127.0.0.1")]
    _certificate(
        place,
        "apiserver",
        "/CN=kube-apiserver",
        "basicConstraints=critical,CA:FALSE",
        f"subjectAltName={','.join(names)}",
        authority="ca",
    )
    uses = ("basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth")
    _certificate(place, "front-proxy", "/CN=front-proxy", *uses, authority="front")
    key = place / "accounts.key"
    tools.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key])
    tools.run(["openssl", "pkey", "-in", key, "-pubout", "-out", place / "accounts.pub"])
    _client(directory, "admin", "admin", "system:masters")
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        _client(directory, name, f"system:{name}")
    for node in nodes:
        _client(directory, node.name, f"system:node:{node.name}", "system:nodes")
