"""What cluster tests run against: a real Kubernetes control plane, a real S3 server, and a stand-in for the nodes.

make cluster                                   # all of it, for hand use; Ctrl-C ends it
cluster.kube      etcd, kube-apiserver, controller-manager, scheduler; who may do what; kubeconfigs
cluster.node      nodes that run pods as local processes or by script
cluster.bucket    versitygw on a directory, with users of its own
cluster.fixtures  the same for pytest
"""
