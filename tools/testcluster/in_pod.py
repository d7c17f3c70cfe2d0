"""The operator as it is started in a pod of a stand-in node, where neither mounts nor a network of its own are made.

    python -m testcluster.in_pod FLAGS         # the entry point of the operator's image, there

The token of the service account lies where the stand-in put it. Ports are any free ones: pods here share them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kubernetes.config import incluster_config

from study_operator.cluster import operator
from testcluster.containers import SERVICE_ACCOUNT_DIRECTORY


def main() -> int:
    """Run the operator with what is mounted into its pod."""
    account = Path(os.environ[SERVICE_ACCOUNT_DIRECTORY])
    incluster_config.SERVICE_TOKEN_FILENAME = str(account / "token")
    incluster_config.SERVICE_CERT_FILENAME = str(account / "ca.crt")
    operator.NAMESPACE_FILE = account / "namespace"
    return operator.main([*sys.argv[1:], "--health-port=0", "--metrics-port=0"])


if __name__ == "__main__":
    sys.exit(main())
