"""Studies with real pods: images, a kubelet, containerd, the kernel's own kills. `make lab-story LAB_SCRIPTS=DIRECTORY`

    python -m lab --scripts DIRECTORY [--tag 0.1.0] [STORY ...]

`node.sh` in that directory brings a real cluster of one node up on this machine (`up`), and its kubelet when that was
killed (`start`). It finds the programs in `$KUBE_BIN`, and leaves a kubeconfig in `$LAB/conf/admin.kubeconfig` and the
kubelet's process in `$LAB/run/kubelet.pid`. The node has both images. Pods reach this machine at `$NODE_IP`, where the
S3 server listens. Needs root.

Each story begins with a study that is applied, does something to its pods, and says what became of it; one that does
not end as docs/operator.md promises ends all of them, with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.stage import Stage, say
from lab.stories import STORIES
from testcluster import build
from testcluster.bucket import S3Server
from testcluster.kube import Cluster

NODE_ADDRESS = "10.244.0.1"


def main() -> int:
    """Tell the stories."""
    parser = argparse.ArgumentParser(prog="python -m lab", description="Studies with real pods.")
    parser.add_argument("--scripts", type=Path, required=True, help="directory with node.sh")
    parser.add_argument("--tag", default="0.1.0", help="of the images, which the node has")
    parser.add_argument("stories", nargs="*", metavar="STORY", help=f"some of {', '.join(STORIES)}")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if unknown := set(arguments.stories) - set(STORIES):
        parser.error(f"no such stories: {', '.join(sorted(unknown))}")
    kubernetes = build.build(build.KUBERNETES, with_extra=True)
    state = Path(os.environ.get("LAB") or Path.home() / ".cache/kube-lab/state")
    environment = {**os.environ, "KUBE_BIN": str(kubernetes), "LAB": str(state)}
    subprocess.run([arguments.scripts / "node.sh", "up"], env=environment, check=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-")))
        versitygw = build.build(build.VERSITYGW) / "versitygw"
        address = os.environ.get("NODE_IP", NODE_ADDRESS)
        server = stack.enter_context(S3Server(directory / "s3", versitygw, address=address))
        cluster = Cluster(state / "conf/admin.kubeconfig", kubectl=kubernetes / "kubectl")
        stage = Stage(cluster, server, directory, arguments.scripts, environment, arguments.tag)
        stage.install()
        for name in arguments.stories or STORIES:
            begun = time.monotonic()
            say(f"story: {name}")
            stage.clean()
            try:
                STORIES[name](stage)
            except (AssertionError, TimeoutError) as error:
                say(f"{name}: failed after {time.monotonic() - begun:.0f} s: {error}")
                stage.tell_all()
                return 1
            say(f"{name}: ended as promised, after {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
