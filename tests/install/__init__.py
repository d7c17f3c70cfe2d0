"""Installing the operator: the chart, the kustomize overlays, and what GitOps tools make of a study.

helm      the chart as Helm renders and installs it
schemas   the API server's own types as JSON schemas
"""
