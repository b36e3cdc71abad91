"""A Ray Serve application whose replicas each run one Cortex node. docs/cluster.md describes it.

Only `application`, `router` and `__main__` import Ray.
"""
