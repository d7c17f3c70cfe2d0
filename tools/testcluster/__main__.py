"""A cluster for hand use: control plane, nodes and S3 server, until Ctrl-C; nothing of it is left behind.

python -m testcluster [--nodes 1] [--gpus 8] [--directory DIRECTORY]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from testcluster import build
from testcluster.bucket import S3Server
from testcluster.kube import ControlPlane
from testcluster.node import StandIn

BUCKET = "ml-studies"


def main() -> int:
    """Start everything, say how to reach it, and wait."""
    parser = argparse.ArgumentParser(prog="python -m testcluster", description="A Kubernetes cluster on this machine.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument("--directory", type=Path, help="data, logs and kubeconfig; kept (default: a temporary one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with contextlib.ExitStack() as stack:
        try:
            kubernetes = build.find_kubernetes()
            versitygw = build.build(build.VERSITYGW) / "versitygw"
        except build.BuildError as error:
            print(error, file=sys.stderr)
            return 1
        directory = arguments.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        begun = time.monotonic()
        cluster = stack.enter_context(ControlPlane(directory.absolute() / "control-plane", kubernetes))
        nodes = stack.enter_context(
            StandIn(cluster.kubeconfig, nodes=arguments.nodes, gpus=arguments.gpus, directory=directory / "pods")
        )
        server = stack.enter_context(S3Server(directory.absolute() / "s3", versitygw))
        server.make_bucket(BUCKET)
        seconds = time.monotonic() - begun
        print(f"# ready after {seconds:.1f} s: {cluster.url}, nodes {', '.join(nodes.nodes)}, bucket {BUCKET}")
        print(f"# logs: {directory}")
        print(f"export KUBECONFIG={cluster.kubeconfig} PATH={kubernetes}:$PATH")
        for name, value in server.environment().items():
            print(f"export {name}={value}")
        print("# Ctrl-C ends all of it", flush=True)
        stopped.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
