"""The cluster of `make test-cluster KFP_HOST=... NAMESPACE=...`."""

import os
from collections.abc import Iterator

import pytest
from live_cluster import RealCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealCluster]:
    """The cluster with the demo set in its store; at the end nothing of the tests stays."""
    host, namespace = os.environ.get("KFP_HOST", ""), os.environ.get("NAMESPACE", "")
    if not (host and namespace and os.environ.get("MAL_REGISTRY")):
        pytest.skip("needs KFP_HOST, NAMESPACE and MAL_REGISTRY: make test-cluster")
    real = RealCluster(host, namespace)
    try:
        real.make_data()
        yield real
    finally:
        real.remove_everything()
