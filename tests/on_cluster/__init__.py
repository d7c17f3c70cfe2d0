"""The operator as it is deployed, on a real API server, real controllers and a real S3 server.

operators  the operator's processes, with the rights that manifests/operator gives them
studies    studies for them, and what became of them
conftest   fixtures
"""
