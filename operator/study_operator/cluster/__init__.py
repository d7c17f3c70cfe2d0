"""Studies on Kubernetes: the API server, Jobs and pods, buckets, leader election, the operator's process."""
