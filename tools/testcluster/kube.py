"""A Kubernetes control plane of our own: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on loopback.

RBAC is on, and so are OwnerReferencesPermissionEnforcement and Pod Security. There are no nodes: `node.py` stands in.
`Cluster` is what anybody does with a cluster that a kubeconfig names; `ControlPlane` has the processes too, so that
tests can kill them.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import urllib3
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from testcluster import processes
from testcluster.api import Api, Object

POOL_LABEL = "finetune.study/test-pool"
"""Nodes with this label take the pods of one namespace only: tests share a cluster and not their nodes."""
NODE_SELECTOR = "scheduler.alpha.kubernetes.io/node-selector"
"""What the admission plugin PodNodeSelector reads of a namespace."""

COMPONENTS = ("etcd", "apiserver", "controller-manager", "scheduler")
RESTART_SECONDS = 0.5
START_SECONDS = 60.0
"""How long a component may take to be ready, on the busiest machine."""

# Of what people and programs do, one line a request; the control plane's own traffic is not counted.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "users": ["system:apiserver", "system:kube-scheduler", "system:kube-controller-manager"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/version", "/openapi*"]},
        {"level": "Metadata"},
    ],
}


class StartError(Exception):
    """A component did not come up. The message ends with the last lines of its log."""


class Cluster:
    """A cluster that is reached through a kubeconfig, whose user may do everything."""

    def __init__(self, kubeconfig: Path, *, kubectl: Path | None = None, audit_log: Path | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.audit_log = audit_log
        """Where the API server notes every request, if it is ours."""
        self._kubectl = kubectl
        self._api: Api | None = None

    @property
    def api(self) -> Api:
        """The API as the kubeconfig's user."""
        if self._api is None:
            self._api = Api(self.kubeconfig)
        return self._api

    @property
    def url(self) -> str:
        """The address of the API server."""
        return str(_current(self.kubeconfig)["cluster"]["server"])

    def kubectl(
        self,
        *arguments: str,
        text: str | None = None,
        kubeconfig: Path | None = None,
        directory: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with a text for `-f -`, in a directory or in ours.

        Raises:
            AssertionError: It failed, and that was not asked for.
        """
        program = self._kubectl or shutil.which("kubectl")
        assert program is not None, "there must be a kubectl in the PATH"
        result = subprocess.run(
            [program, *arguments],
            input=text,
            env={**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result

    def apply(self, *objects: Mapping[str, Any], kubeconfig: Path | None = None) -> str:
        """Apply manifests on the server, as `kubectl apply --server-side` does; return its words."""
        # As JSON: in PyYAML's words "1e-3" needs no quotes, in kubectl's it does.
        text = "\n---\n".join(json.dumps(dict(each)) for each in objects)
        return self.kubectl("apply", "--server-side", "-f", "-", text=text, kubeconfig=kubeconfig).stdout

    def create_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> str:
        """Create a namespace whose pods go to nodes of its own, and wait until pods may be created in it."""
        self.api.create(
            "/api/v1/namespaces",
            {
                "metadata": {
                    "name": name,
                    "labels": dict(labels or {}),
                    "annotations": {NODE_SELECTOR: f"{POOL_LABEL}={name}"},
                }
            },
        )
        self.api.wait_for(f"/api/v1/namespaces/{name}/serviceaccounts", "default", _is_there)
        return name

    def delete_namespace(self, name: str) -> None:
        """Begin to delete a namespace; the controllers do the rest."""
        self.api.delete(f"/api/v1/namespaces/{name}")

    def service_account_token(self, namespace: str, name: str, *, seconds: int = 3600) -> str:
        """Ask for a token of a service account, as the kubelet does for a pod."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"spec": {"expirationSeconds": seconds}}
        return str(self.api.create(path, request)["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str, directory: Path) -> Path:
        """Write a kubeconfig of a service account, for a program that is to run with its rights only."""
        token = self.service_account_token(namespace, name, seconds=24 * 3600)
        return self.token_kubeconfig(f"{namespace}-{name}", token, directory)

    def token_kubeconfig(self, name: str, token: str, directory: Path) -> Path:
        """Write a kubeconfig with a bearer token."""
        return _write_kubeconfig(
            directory / f"{name}.kubeconfig", cluster=_current(self.kubeconfig)["cluster"], user={"token": token}
        )

    def audited(self, **wanted: str) -> Iterator[Object]:
        """Return the requests that were answered so far, oldest first: `audited(verb="create", resource="jobs")`.

        `verb`, `resource`, `namespace` and `user` may be asked for. A watch is noted when it ends.
        """
        assert self.audit_log is not None, "the API server must be ours to tell its requests"
        for line in self.audit_log.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                event = json.loads(line)
                reference = event.get("objectRef", {})
                found = {
                    "verb": event["verb"],
                    "resource": reference.get("resource", ""),
                    "namespace": reference.get("namespace", ""),
                    "user": event["user"].get("username", ""),
                }
                if wanted.items() <= found.items():
                    yield event

    def refused(self, user: str) -> Iterator[Object]:
        """Return the requests that a user had no right to make, oldest first.

        What an API server refuses that has just got to know an API, and does not know yet who may own what, is none.
        """
        for event in self.audited(user=user):
            status = event["responseStatus"]
            if status.get("code") == 403 and "cannot find RESTMapping" not in status.get("message", ""):
                yield event


class ControlPlane(Cluster):
    """A cluster whose processes are ours. Everything of it lies in one directory.

    Args:
        directory: Certificates, data and logs; must be empty or hold an earlier one's.
        programs: Directory with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl.
        users: Groups by user name; each gets a kubeconfig from `user_kubeconfig` besides.
        node_grace_seconds: A node that is silent for so long is NotReady (Kubernetes' default: 50).
        toleration_seconds: Pods of such a node are deleted after so long (Kubernetes' default: 300).
        flags: Further flags by component, such as `{"apiserver": ["--max-requests-inflight=40"]}`.
    """

    def __init__(
        self,
        directory: Path,
        programs: Path,
        *,
        node_grace_seconds: int = 16,
        toleration_seconds: int = 5,
        flags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(
            directory / "admin.kubeconfig", kubectl=programs / "kubectl", audit_log=directory / "audit.log"
        )
        self.directory = directory
        self.programs = programs
        self._node_grace_seconds = node_grace_seconds
        self._toleration_seconds = toleration_seconds
        self._flags = flags or {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._authority: Authority | None = None
        self._ports = dict(zip((*COMPONENTS, "etcd-peers"), processes.pick_ports(5), strict=True))

    def __enter__(self) -> ControlPlane:
        self.start_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    # Life

    def start_all(self) -> None:
        """Start everything; returns when pods may be created.

        Raises:
            StartError: A component did not come up.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_credentials()
        try:
            for name in COMPONENTS:
                self._spawn(name)
                if name == "apiserver":
                    self._wait_until_ready(name)
            for name in ("controller-manager", "scheduler"):
                self._wait_until_ready(name)
            self.api.wait_for("/api/v1/namespaces/default/serviceaccounts", "default", _is_there)
        except BaseException:
            self.stop_all()
            raise

    def stop_all(self) -> None:
        """End everything at once; the data stays in the directory."""
        if self._api is not None:
            self._api.close()
        for name in reversed(COMPONENTS):
            self.kill(name)

    def start(self, name: str) -> None:
        """Start a component that is stopped; returns when it is ready."""
        assert name not in self._running, f"{name} must be stopped"
        self._spawn(name)
        self._wait_until_ready(name)

    def stop(self, name: str) -> None:
        """Ask a component to end, as a rollout does, and wait for it."""
        if (process := self._running.pop(name, None)) is not None:
            processes.end(process, grace_seconds=20.0)

    def kill(self, name: str) -> None:
        """Kill a component with SIGKILL; nothing where it is down."""
        if (process := self._running.pop(name, None)) is not None:
            processes.kill(process)

    def restart(self, name: str) -> None:
        """Kill a component and start it again at once."""
        self.kill(name)
        self.start(name)

    def freeze(self, name: str) -> None:
        """Stop a component from answering while its connections stay open, as behind a dead link."""
        self._running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen component go on."""
        self._running[name].send_signal(signal.SIGCONT)

    def pid(self, name: str) -> int:
        """Return the process of a component."""
        return self._running[name].pid

    def log(self, name: str) -> Path:
        """Return the log of a component."""
        return self.directory / f"{name}.log"

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Return a certificate and its key for a server on loopback whom the cluster trusts by `ca.crt`."""
        assert self._authority is not None
        return self._authority.issue(name, ())

    def user_kubeconfig(self, name: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig of a person, who has no rights but what RBAC gives them and their groups."""
        assert self._authority is not None
        certificate, key = self._authority.issue(name, groups)
        return _write_kubeconfig(
            self.directory / f"user-{name.replace(':', '-')}.kubeconfig",
            cluster=_current(self.kubeconfig)["cluster"],
            user={"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)},
        )

    # Processes

    def _spawn(self, name: str) -> None:
        command = [*self._commands()[name], *self._flags.get(name, ())]
        process = self._running[name] = processes.spawn(command, log=self.log(name), directory=self.directory)
        threading.Thread(target=self._supervise, args=(name, process), name=f"supervise-{name}", daemon=True).start()

    def _supervise(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Start a component again that ended by itself, as its kubelet would: controllers do when refused."""
        process.wait()
        time.sleep(RESTART_SECONDS)
        if self._running.get(name) is process:
            self._spawn(name)

    def _commands(self) -> dict[str, list[str | Path]]:
        ports = self._ports
        etcd = f"http://127.0.0.1:{ports['etcd']}"
        peers = f"http://127.0.0.1:{ports['etcd-peers']}"

        def controller(name: str, program: str) -> list[str | Path]:
            uses = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
            return [
                self.programs / program,
                *(f"--{use}={name}.kubeconfig" for use in uses),
                "--bind-address=127.0.0.1",
                f"--secure-port={ports[name]}",
                f"--tls-cert-file={name}.crt",
                f"--tls-private-key-file={name}.key",
                "--leader-elect=false",
                "--profiling=false",
            ]

        return {
            "etcd": [
                self.programs / "etcd",
                "--name=test",
                "--data-dir=etcd",
                "--unsafe-no-fsync",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=test={peers}",
                "--log-level=warn",
            ],
            "apiserver": [
                self.programs / "kube-apiserver",
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                f"--secure-port={ports['apiserver']}",
                # Loopback can't be the address of a Service, so nobody writes that Service's endpoints.
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement,PodNodeSelector",
                f"--default-not-ready-toleration-seconds={self._toleration_seconds}",
                f"--default-unreachable-toleration-seconds={self._toleration_seconds}",
                "--client-ca-file=ca.crt",
                "--token-auth-file=tokens.csv",
                "--tls-cert-file=apiserver.crt",
                "--tls-private-key-file=apiserver.key",
                "--kubelet-client-certificate=kubelet-client.crt",
                "--kubelet-client-key=kubelet-client.key",
                "--kubelet-preferred-address-types=InternalIP",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-account-key-file=service-accounts.pub",
                "--service-account-signing-key-file=service-accounts.key",
                "--audit-policy-file=audit-policy.json",
                "--audit-log-path=audit.log",
                "--allow-privileged=true",
                "--profiling=false",
            ],
            "controller-manager": [
                *controller("controller-manager", "kube-controller-manager"),
                "--use-service-account-credentials=true",
                "--service-account-private-key-file=service-accounts.key",
                "--root-ca-file=ca.crt",
                "--allocate-node-cidrs=false",
                # With the default of 20 the controllers' first tokens alone take five seconds.
                "--kube-api-qps=200",
                "--kube-api-burst=400",
                f"--node-monitor-grace-period={self._node_grace_seconds}s",
                "--node-monitor-period=2s",
            ],
            "scheduler": controller("scheduler", "kube-scheduler"),
        }

    def _wait_until_ready(self, name: str) -> None:
        scheme = "http" if name == "etcd" else "https"
        path = {"etcd": "health", "apiserver": "readyz"}.get(name, "healthz")
        url = f"{scheme}://127.0.0.1:{self._ports[name]}/{path}"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if _answers(url, self.directory / "ca.crt"):
                return
            time.sleep(0.05)
        tail = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-5:])
        raise StartError(f"{name} did not come up in {START_SECONDS:g} s; {self.log(name)} ends with:\n{tail}")

    # Credentials

    def _write_credentials(self) -> None:
        directory = self.directory
        authority = self._authority = Authority.load(directory)
        server = {"server": f"https://127.0.0.1:{self._ports['apiserver']}"}
        cluster = {**server, "certificate-authority-data": _base64((directory / "ca.crt").read_bytes())}
        for name, subject, groups in (
            ("admin", "test-admin", ("system:masters",)),
            ("apiserver", "kube-apiserver", ()),
            ("kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",)),
            ("controller-manager", "system:kube-controller-manager", ()),
            ("scheduler", "system:kube-scheduler", ()),
        ):
            certificate, key = authority.issue(subject, groups)
            (directory / f"{name}.crt").write_bytes(certificate)
            _write_secret(directory / f"{name}.key", key)
            user = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
            _write_kubeconfig(directory / f"{name}.kubeconfig", cluster=cluster, user=user)
        if not (directory / "service-accounts.key").exists():
            signer = ec.generate_private_key(ec.SECP256R1())
            _write_secret(directory / "service-accounts.key", _private_pem(signer))
            (directory / "service-accounts.pub").write_bytes(
                signer.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
        if not (directory / "tokens.csv").exists():
            token = f'{secrets.token_urlsafe(24)},test-admin-token,test-admin-token,"system:masters"\n'
            _write_secret(directory / "tokens.csv", token.encode())
        (directory / "audit-policy.json").write_text(json.dumps(_AUDIT_POLICY))


def _answers(url: str, authority: Path) -> bool:
    """Tell whether a health endpoint says that all is well."""
    with urllib3.PoolManager(ca_certs=str(authority)) as pool, contextlib.suppress(urllib3.exceptions.HTTPError):
        return pool.request("GET", url, retries=False, timeout=2.0).status == HTTPStatus.OK
    return False


def _is_there(found: Object | None) -> bool:
    return found is not None


class Authority:
    """The certificate authority of one cluster."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Read the authority of a directory, or make it."""
        if (directory / "ca.crt").exists():
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            return cls(x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes()), key)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
        certificate = (
            _begin(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        (directory / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_secret(directory / "ca.key", _private_pem(key))
        return cls(certificate, key)

    def issue(self, name: str, groups: Sequence[str]) -> tuple[bytes, bytes]:
        """Return a certificate and its key, for a user of these groups and for a server on loopback."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
        hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = (
            _begin(x509.Name(subject), self._certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def _begin(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The controller manager reads SEC 1 and PKCS 8 alike.
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _write_kubeconfig(path: Path, *, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": dict(cluster)}],
        "users": [{"name": "user", "user": dict(user)}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
        "current-context": "test",
    }
    _write_secret(path, yaml.safe_dump(content).encode())
    return path


def _current(kubeconfig: Path) -> dict[str, Any]:
    """Return cluster and user of the current context."""
    content = yaml.safe_load(kubeconfig.read_text())
    context = next(each["context"] for each in content["contexts"] if each["name"] == content["current-context"])
    return {
        kind: next(each[kind] for each in content[f"{kind}s"] if each["name"] == context[kind])
        for kind in ("cluster", "user")
    }
