{{/* Made by manifests/generate.py of manifests/operator. */}}
{{- define "finetune-study-operator.rules.studies" -}}
- apiGroups: [finetune.study]
  resources: [finetunestudies]
  verbs:
  - list  # every study at the start
  - watch  # what happens to them
  - get  # the present version, before a Job is touched and after a conflict
  - patch  # the finalizer of studies with deletionPolicy Delete
- apiGroups: [finetune.study]
  resources: [finetunestudies/status]
  verbs:
  - update  # the ledger and the conditions, with the version that was read
- apiGroups: [finetune.study]
  resources: [finetunestudies/finalizers]
  verbs:
  - update  # owner references that block deletion, where OwnerReferencesPermissionEnforcement is on
- apiGroups: [batch]
  resources: [jobs]
  verbs:
  - list  # every Job of a study at the start, and before what a study leaves is deleted
  - watch  # how they go on
  - get  # whether one is gone that a watch calls gone
  - create  # prepare, trials, final evaluation; also for a try, when a study is accepted
  - delete  # suspended studies, attempts that make way for the next, deleted studies
- apiGroups: [""]
  resources: [pods]
  verbs:
  - list  # how attempts ended: exit codes, memory, disruptions
  - watch  # the same
- apiGroups: [""]
  resources: [events]
  verbs:
  - list  # why the Job controller cannot create a pod
  - watch  # the same
  - create  # what happened to a study, for people
- apiGroups: [""]
  resources: [services]
  verbs:
  - create  # the headless Service through which many nodes of one trial meet
  - get  # whose it is, where there is one of that name
- apiGroups: [""]
  resources: [configmaps]
  verbs:
  - get  # the certificates of a bucket's endpoint, named by spec.storage.caBundle
- apiGroups: [""]
  resources: [serviceaccounts, persistentvolumeclaims]
  verbs:
  - get  # whether those are there that a study's pod template names
{{- end }}
{{- define "finetune-study-operator.rules.secrets" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs:
  - get  # a bucket's credentials, named by spec.storage.secretName
{{- end }}
{{- define "finetune-study-operator.rules.lease" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs:
  - create  # the first of all replicas; Kubernetes cannot bind this to a name
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [finetune-study-operator]
  verbs:
  - get  # who works
  - update  # take it, renew it, give it back
{{- end }}
{{- define "finetune-study-operator.rules.view" -}}
- apiGroups: [finetune.study]
  resources: [finetunestudies, finetunestudies/status]
  verbs: [get, list, watch]
{{- end }}
{{- define "finetune-study-operator.rules.edit" -}}
- apiGroups: [finetune.study]
  resources: [finetunestudies]
  verbs: [create, update, patch, delete, deletecollection]
{{- end }}
