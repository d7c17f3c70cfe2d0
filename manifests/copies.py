"""What the chart, the overlay for named namespaces and Argo CD take over from files of `manifests`, in their words.

Called by `generate.py`. Rules keep their comments, so that whoever reads a rendered chart sees what a verb is for.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

OPERATOR = "finetune-study-operator"
HOME = "finetune-study-system"

TEMPLATES = {
    f"ClusterRole/{OPERATOR}": "studies",
    f"ClusterRole/{OPERATOR}-secrets": "secrets",
    f"Role/{OPERATOR}": "lease",
    f"ClusterRole/{OPERATOR}-view": "view",
    f"ClusterRole/{OPERATOR}-edit": "edit",
}
"""What the rules of each role are called in the chart."""


def read_rules(*texts: str) -> Mapping[str, str]:
    """Return the rules of every role in some files, as they stand there, by what the chart calls them."""
    rules: dict[str, str] = {}
    for text in texts:
        for document in text.split("\n---\n"):
            head, found, after = document.partition("\nrules:\n")
            if found:
                role = yaml.safe_load(head)
                rules[TEMPLATES[f"{role['kind']}/{role['metadata']['name']}"]] = after.rstrip("\n") + "\n"
    return rules


def render_rule_templates(rules: Mapping[str, str]) -> str:
    """Return the chart's named templates of the rules."""
    head = "{{/* Made by manifests/generate.py of manifests/operator. */}}\n"
    return head + "".join(
        f'{{{{- define "{OPERATOR}.rules.{name}" -}}}}\n{_escape(text)}{{{{- end }}}}\n' for name, text in rules.items()
    )


def _escape(text: str) -> str:
    """Return a text that Helm renders as it is."""
    return text.replace("{{", '{{ "{{" }}')


def render_crd_template(crd: str) -> str:
    """Return the chart's template of the CRD.

    Args:
        crd: the CRD as YAML, without a head.
    """
    metadata = "metadata:\n"
    before, _, after = _escape(crd).partition(metadata)
    return f"""\
{{{{/* Made by manifests/generate.py of manifests/study_api. */}}}}
{{{{- if .Values.crds.enabled }}}}
{before}{metadata}\
  labels:
    {{{{- include "{OPERATOR}.labels" . | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    helm.sh/resource-policy: keep
  {{{{- end }}}}
{after}\
{{{{- end }}}}
"""


def render_watched_namespace(rules: Mapping[str, str]) -> str:
    """Return the roles, and their bindings, that the operator needs in a namespace where it has no others."""
    head = "# Made by manifests/generate.py of manifests/operator/access.yaml.\n"
    # Not the name of a binding of the cluster's role, which may be there: what a binding refers to cannot be changed.
    names = {"studies": "studies", "bucket-secrets": "secrets"}
    return head + "---\n".join(_render_role(name, rules[which]) for name, which in names.items())


def _render_role(name: str, rules: str) -> str:
    return f"""\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {OPERATOR}-{name}
rules:
{rules}\
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {OPERATOR}-{name}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {OPERATOR}-{name}
subjects:
- kind: ServiceAccount
  name: {OPERATOR}
  namespace: {HOME}
"""


def render_argo_cd(health: str) -> str:
    """Return the patch of Argo CD's configuration that has the health check in it."""
    lines = "".join(f"    {line}\n" if line else "\n" for line in health.splitlines())
    return f"""\
# Made by manifests/generate.py of manifests/argo-cd/health.lua.
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
data:
  resource.customizations.health.finetune.study_FineTuneStudy: |
{lines}"""
