"""What the API server's answers mean to whoever asked."""

import pytest

from study_operator.kube import KubeError

TOO_EARLY = (
    'jobs.batch "shop-prepare" is forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping'
    ' for APIVersion finetune.study/v1alpha1 Kind FineTuneStudy: no matches for kind "FineTuneStudy"'
)


@pytest.mark.parametrize(
    ("status", "message", "is_transient"),
    [
        (0, "the API server does not answer", True),
        (429, "too many requests", True),
        (503, "not yet", True),
        (403, TOO_EARLY, True),
        (403, 'jobs.batch is forbidden: User "operator" cannot create resource "jobs"', False),
        (404, "not found", False),
        (422, "spec is invalid", False),
    ],
)
def test_what_may_pass_by_itself_is_told_from_what_somebody_must_mend(
    status: int, message: str, is_transient: bool
) -> None:
    assert KubeError(status, "", message).is_transient is is_transient
