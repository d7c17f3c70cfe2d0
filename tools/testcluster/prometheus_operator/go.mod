// The CRDs of ServiceMonitor and PrometheusRule, as files; nothing of it is built.
module finetune.study/tests/cluster/prometheus_operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
