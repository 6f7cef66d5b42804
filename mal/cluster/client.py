"""The API server, through the faults that a week of training meets."""

from __future__ import annotations

from typing import Self


class ClusterClient:
    """A connection to one API server."""

    @classmethod
    def connect(cls) -> Self:
        """Connect as KUBECONFIG says, else as the pod's service account.

        Raises:
            MissingExtraError: Without the kubernetes package.
            ClusterError: Neither is there.
        """
        raise NotImplementedError
