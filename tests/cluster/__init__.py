"""The cluster of deploy/cluster.sh, used by real SDKs: `make cluster-test`."""
