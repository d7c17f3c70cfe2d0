"""What cluster tests run against: a real Kubernetes control plane, a real S3 server, and a stand-in for the nodes.

make cluster                                   # all of it, for hand use; Ctrl-C ends it
testcluster.kube      etcd, kube-apiserver, controller-manager, scheduler; who may do what; kubeconfigs
testcluster.node      nodes that run pods as local processes or by script
testcluster.bucket    versitygw on a directory, with users of its own
testcluster.fixtures  the same for pytest
"""
