"""Studies on this machine: processes for Jobs, and files for the API server."""
