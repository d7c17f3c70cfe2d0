"""A pod's containers as processes of this machine: environment, volumes and command as the kubelet would make them.

There is no image: programs are those of this machine. There are no mounts either, so that no root is needed: a volume
is a directory, and where command, arguments or environment name a path below its mount, they get that directory. What
programs look for by themselves in a pod, the service account's token, `in_pod.py` shows to the operator.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from testcluster import processes
from testcluster.api import Api, Object

REPOSITORY = Path(__file__).resolve().parent.parent.parent
POD_MARK = "STAND_IN_POD"
"""Environment variable by which every process of a pod is found, whatever session it has made for itself."""


SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
SERVICE_ACCOUNT_DIRECTORY = "STAND_IN_SERVICE_ACCOUNT"
"""Environment variable with the directory that stands for what is mounted there."""

TERMINATION_MESSAGE_BYTES = 2048


class ConfigError(Exception):
    """A container can't be made as its pod asks: the kubelet's CreateContainerConfigError."""


OPERATOR_IMAGE = "finetune-study-operator"


@dataclass(frozen=True, kw_only=True)
class Image:
    """What every image holds; only the operator's has another entry point."""

    entrypoint: Sequence[str] = (sys.executable, "-m", "trial_trainer")
    operator: Sequence[str] = (sys.executable, "-m", "testcluster.in_pod")
    """The entry point of images with the operator's name, whatever their registry, tag or digest."""
    environment: Mapping[str, str] = field(
        default_factory=lambda: {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / name) for name in ("operator", "trainer", "tools")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    )

    def find_entrypoint(self, name: str) -> Sequence[str]:
        """Return the entry point of an image of some name."""
        repository = name.rpartition("/")[2].partition("@")[0].partition(":")[0]
        return self.operator if repository == OPERATOR_IMAGE else self.entrypoint


def resolve_environment(api: Api, pod: Object, container: Object, *, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the variables that a container's `envFrom` and `env` give it.

    Raises:
        ConfigError: A secret or config map, or a key of it, is missing.
    """
    namespace = pod["metadata"]["namespace"]
    environment: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for kind, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if kind in source:
                data = _read_data(api, namespace, resource, source[kind])
                environment |= {source.get("prefix", "") + key: value.decode() for key, value in (data or {}).items()}
    for variable in container.get("env", ()):
        if "valueFrom" not in variable:
            environment[variable["name"]] = _expand(variable.get("value", ""), environment)
        elif (value := _resolve_source(api, pod, container, variable["valueFrom"], host)) is not None:
            environment[variable["name"]] = value
    return environment


def _resolve_source(api: Api, pod: Object, container: Object, source: Object, host: str) -> str | None:
    for kind, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if kind in source:
            reference = source[kind]
            data = _read_data(api, pod["metadata"]["namespace"], resource, reference)
            if data is not None and reference["key"] in data:
                return data[reference["key"]].decode()
            if reference.get("optional"):
                return None
            word = {"configmaps": "ConfigMap", "secrets": "Secret"}[resource]
            raise ConfigError(
                f"couldn't find key {reference['key']} in {word} {pod['metadata']['namespace']}/{reference['name']}"
            )
    if "fieldRef" in source:
        return resolve_field(pod, source["fieldRef"]["fieldPath"], host)
    if "resourceFieldRef" in source:
        kind, resource = source["resourceFieldRef"]["resource"].split(".", 1)
        return str(container.get("resources", {}).get(kind, {}).get(resource, "0"))
    raise ConfigError(f"stand-in nodes know no environment from {', '.join(source)}")


def resolve_field(pod: Object, path: str, host: str = "127.0.0.1") -> str:
    """Return what the downward API says of a pod."""
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.*)'\]", path)
    if keyed:
        return str(pod["metadata"].get(keyed[1], {}).get(keyed[2], ""))
    if path in {"metadata.labels", "metadata.annotations"}:
        entries = pod["metadata"].get(path.split(".")[1], {})
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    if path in {"status.hostIP", "status.hostIPs"}:
        return host
    if path in {"status.podIP", "status.podIPs"}:
        return str(pod.get("status", {}).get("podIP", host))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def _read_data(api: Api, namespace: str, resource: str, reference: Object) -> dict[str, bytes] | None:
    found = api.get(f"/api/v1/namespaces/{namespace}/{resource}/{reference['name']}")
    if found is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{resource.removesuffix("s")} "{reference["name"]}" not found')
    if resource == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` where the name is known; `$$` is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)", replace, text)


class StartError(Exception):
    """A container's program can't be started."""


class ProcessPod:
    """The containers of one pod as processes.

    Args:
        place: A directory for this pod alone: volumes, HOME, logs.
        on_exit: Told the container, its exit code, why, and its last words, from a thread of its own.
    """

    def __init__(
        self, api: Api, pod: Object, place: Path, image: Image, on_exit: Callable[[str, int, str, str], None]
    ) -> None:
        self._api = api
        self._pod = pod
        self._place = place
        self._image = image
        self._on_exit = on_exit
        self._mounts: dict[str, Path] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed_for_memory: set[str] = set()

    def log(self, container: str) -> Path:
        """Return the file with a container's output."""
        return self._place / f"{container}.log"

    def start(self, container: Object) -> None:
        """Start one container.

        Raises:
            ConfigError: It can't be made as its pod asks.
            StartError: Its program is not there.
        """
        name = container["name"]
        variables = resolve_environment(self._api, self._pod, container)
        mounts = self._mount(container)
        for each in ("home", "tmp", "work"):
            (self._place / each).mkdir(parents=True, exist_ok=True)
        environment = {
            **self._image.environment,
            **self._point_to_server(mounts),
            "HOME": str(self._place / "home"),
            "TMPDIR": str(mounts.get("/tmp", self._place / "tmp")),
            "HOSTNAME": self._pod["metadata"]["name"],
            **{key: self._localise(value, mounts) for key, value in variables.items()},
            POD_MARK: self._pod["metadata"]["uid"],
        }
        words = list(container.get("command", ())) or list(self._image.find_entrypoint(container["image"]))
        words += list(container.get("args", ()))
        command = [self._localise(_expand(word, variables), mounts) for word in words]
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            why = (
                f"stat {command[0]}: no such file or directory"
                if "/" in command[0]
                else "executable file not found in $PATH"
            )
            raise StartError(f'exec: "{command[0]}": {why}')
        directory = Path(self._localise(container.get("workingDir", ""), mounts) or self._place / "work")
        process = processes.spawn(
            [program, *command[1:]], log=self.log(name), environment=environment, directory=directory
        )
        self._processes[name] = process
        threading.Thread(target=self._wait, args=(container, process), name=f"wait-{name}", daemon=True).start()

    def _point_to_server(self, mounts: Mapping[str, Path]) -> dict[str, str]:
        """Return where a container finds the API server, and what is mounted to be known there."""
        server = urlsplit(self._api.url)
        account = mounts.get(SERVICE_ACCOUNT)
        return {
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(server.port),
            **({SERVICE_ACCOUNT_DIRECTORY: str(account)} if account is not None else {}),
        }

    def terminate(self) -> None:
        """Send SIGTERM to the first process of each container, as a container runtime does."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill everything in every container."""
        for process in self._processes.values():
            processes.signal_group(process, signal.SIGKILL)

    def kill_if_too_large(self) -> None:
        """Kill containers that use more memory than their limit, as the kernel would."""
        for container in self._pod["spec"]["containers"]:
            limit = container.get("resources", {}).get("limits", {}).get("memory")
            process = self._processes.get(container["name"])
            if limit is None or process is None or process.poll() is not None:
                continue
            if _count_memory(self._pod["metadata"]["uid"]) > parse_bytes(limit):
                self._killed_for_memory.add(container["name"])
                processes.signal_group(process, signal.SIGKILL)

    def find_full_volume(self) -> tuple[str, str] | None:
        """Return the name and the limit of an emptyDir that holds more than it may."""
        for volume in self._pod["spec"].get("volumes", ()):
            limit = volume.get("emptyDir", {}).get("sizeLimit")
            place = self._mounts.get(volume["name"])
            if limit is not None and place is not None and _count_files(place) > parse_bytes(limit):
                return volume["name"], limit
        return None

    def _wait(self, container: Object, process: subprocess.Popen[bytes]) -> None:
        name = container["name"]
        code = process.wait()
        # A container ends with its first process, and takes the others along.
        processes.signal_group(process, signal.SIGKILL)
        if all(each.poll() is not None for each in self._processes.values()):
            for pid in find_marked(self._pod["metadata"]["uid"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        code = 128 - code if code < 0 else code
        is_killed = name in self._killed_for_memory
        reason = "OOMKilled" if is_killed else "Completed" if code == 0 else "Error"
        self._on_exit(name, code, reason, self._last_words(container, code))

    def _last_words(self, container: Object, code: int) -> str:
        """Return a container's termination message."""
        for file in (self._place / f"{container['name']}.termination", self.log(container["name"])):
            if text := file.read_bytes()[-TERMINATION_MESSAGE_BYTES:].decode(errors="replace") if file.exists() else "":
                return text
            if code == 0 or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
                break
        return ""

    # Volumes

    def _mount(self, container: Object) -> dict[str, Path]:
        """Return what stands for each mount path of a container, and for the file of its last words."""
        sources = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", ())}
        mounts = {}
        for mount in container.get("volumeMounts", ()):
            name = mount["name"]
            if name not in self._mounts:
                self._mounts[name] = self._make_volume(name, sources[name])
            below = mount.get("subPath", "")
            mounts[mount["mountPath"].rstrip("/")] = self._mounts[name] / below if below else self._mounts[name]
        last_words = container.get("terminationMessagePath", "/dev/termination-log")
        mounts[last_words] = self._place / f"{container['name']}.termination"
        return mounts

    def _make_volume(self, name: str, volume: Object) -> Path:
        namespace = self._pod["metadata"]["namespace"]
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        if "persistentVolumeClaim" in volume:
            claim = self._api.get(
                f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{volume['persistentVolumeClaim']['claimName']}"
            )
            bound = self._api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}") if claim else None
            source = (bound or {}).get("spec", {})
            if found := source.get("hostPath") or source.get("local"):
                return Path(found["path"])
            raise ConfigError("stand-in nodes mount claims of hostPath and local volumes only")
        place = self._place / "volumes" / name
        place.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            return place
        kinds = [kind for kind in volume if kind != "name"]
        for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
            for file, content in self._project(source).items():
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(content)
        if not set(kinds) <= {"projected", "configMap", "secret", "downwardAPI"}:
            raise ConfigError(f"stand-in nodes mount no volume of kind {', '.join(kinds)}")
        return place

    def _project(self, source: Object) -> dict[str, bytes]:
        """Return the files of one source of a volume."""
        namespace = self._pod["metadata"]["namespace"]
        for kind, resource in (("configMap", "configmaps"), ("secret", "secrets")):
            if kind in source:
                reference = {**source[kind], "name": source[kind].get("name") or source[kind].get("secretName")}
                data = _read_data(self._api, namespace, resource, reference) or {}
                if items := source[kind].get("items"):
                    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}
                return data
        if "downwardAPI" in source:
            return {
                item["path"]: resolve_field(self._pod, item["fieldRef"]["fieldPath"]).encode()
                for item in source["downwardAPI"].get("items", ())
                if "fieldRef" in item
            }
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            account = self._pod["spec"].get("serviceAccountName", "default")
            request = {
                "spec": {
                    "audiences": [wanted["audience"]] if wanted.get("audience") else [],
                    "expirationSeconds": wanted.get("expirationSeconds", 3600),
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": self._pod["metadata"]["name"],
                        "uid": self._pod["metadata"]["uid"],
                    },
                }
            }
            path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
            return {wanted["path"]: self._api.create(path, request)["status"]["token"].encode()}
        return {}

    def _localise(self, text: str, mounts: Mapping[str, Path]) -> str:
        """Replace paths below the mounts by the directories that stand for them, and peers by this machine."""
        subdomain = self._pod["spec"].get("subdomain")
        if subdomain:
            # Pods of a headless service find each other by name.
            peer = rf"\b[a-z0-9][-a-z0-9]*\.{re.escape(subdomain)}(\.[-a-z0-9]+(\.svc[-.a-z0-9]*)?)?\b"
            text = re.sub(peer, "127.0.0.1", text)
        for mount in sorted(mounts, key=len, reverse=True):

            def replace(match: re.Match[str], mount: str = mount) -> str:
                # A file of this machine is meant where it exists; a mount itself never is.
                if match[0] != mount and Path(match[0]).exists():
                    return match[0]
                return str(mounts[mount]) + match[0][len(mount) :]

            text = re.sub(rf"(?<![\w./-]){re.escape(mount)}(?![\w.-])(/[\w./@+=-]*)?", replace, text)
        return text


def find_marked(uid: str) -> list[int]:
    """Return the processes of a pod."""
    mark = f"{POD_MARK}={uid}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def _count_memory(uid: str) -> int:
    """Return the bytes that a pod's processes hold of their own, without files that are mapped."""
    total = 0
    for pid in find_marked(uid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if found := re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE):
                total += int(found[1]) * 1024
    return total


def _count_files(place: Path) -> int:
    """Return the bytes of all files of a directory."""
    total = 0
    for file in place.rglob("*"):
        with contextlib.suppress(OSError):  # it may go in the meantime
            total += file.lstat().st_size if file.is_file() else 0
    return total


def parse_bytes(quantity: str) -> int:
    """Return the bytes of a quantity such as `512Mi` or `2G`."""
    found = re.fullmatch(r"([\d.]+)([KMGTP]i?|k|)", quantity)
    if found is None:
        raise ConfigError(f"memory must be a quantity such as 512Mi, got {quantity!r}")
    powers = "KMGTP"
    if not found[2]:
        return int(float(found[1]))
    return int(float(found[1]) * (1024 if found[2].endswith("i") else 1000) ** (powers.index(found[2][0].upper()) + 1))
