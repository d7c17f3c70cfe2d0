"""Deletes every study that there is, and waits until all are gone: what must come before their API goes.

Called by `cluster/operator.py` for `--delete-all-studies`, which the chart's uninstallation runs beside the operator
that still works: only that one lets studies go that leave something in a bucket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.study_store import study_path

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


def delete_all_studies(kube: Kube, sleep: Callable[[float], None]) -> None:
    """Delete the studies of every namespace, their Jobs first; return when none is there.

    Args:
        kube: the API server.
        sleep: waits so many seconds.

    Raises:
        KubeError: where the API server refuses, or does not answer.
    """
    reported: frozenset[str] = frozenset()
    while True:
        studies = _list_studies(kube)
        waiting = frozenset(f"{body['metadata']['namespace']}/{body['metadata']['name']}" for body in studies)
        for body in studies:
            metadata = body["metadata"]
            if "deletionTimestamp" not in metadata:
                log.info("deleting study %s/%s", metadata["namespace"], metadata["name"])
                kube.delete(study_path((metadata["namespace"], metadata["name"])), uid=metadata["uid"])
        if not waiting:
            log.info("there is no study any more")
            return
        if waiting != reported:
            log.info("waiting for %s", ", ".join(sorted(waiting)))
            reported = waiting
        sleep(LOOK_SECONDS)


def _list_studies(kube: Kube) -> Sequence[Raw]:
    try:
        return kube.list(path_of(names.API_VERSION, names.PLURAL))[0]
    except KubeError as error:
        # The API itself is gone, and every study with it.
        if error.status == 404:
            return ()
        raise
