"""The application of ``e2rank serve`` → a deployment of Ray Serve: replicas on many machines, and autoscaling.

A module such as ``replicas.py``, served by ``serve run replicas:app``::

    from e2rank_st import E2Rank
    from e2rank_st.integrations.ray_serve import deployment

    def load():
        return E2Rank.from_bundled(), None  # the model, and an index if there is one

    app = deployment(load, num_replicas=2, ray_actor_options={"num_cpus": 2}).bind()

Inside a replica, requests share forward passes by :class:`~e2rank_st.serving.queue.ForwardQueue`. It counts tokens, and
takes the parts of a request one by one; ``@serve.batch`` counts whole requests, so it is not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from e2rank_st.backends.module import KEY
from e2rank_st.serving.app import Batching, Loaded, create_app
from e2rank_st.serving.limits import Limits

try:
    from ray import serve
except ImportError as error:
    raise ImportError("Replicas need Ray Serve: pip install 'e2rank-st[ray-serve]'") from error

__all__ = ["deployment"]


def deployment(
    load: Callable[[], Loaded],
    limits: Limits = Limits(),  # noqa: B008  # they cannot be changed
    batching: Batching = Batching(),  # noqa: B008
    key: str | None = None,
    **options: Any,
) -> Any:
    """Make a deployment of Ray Serve that answers as ``e2rank serve`` does.

    Args:
        load: Loads the model and the index, if there is one, in each replica before it takes requests. All replicas
            must reach the files.
        limits: What requests may cost; ``max_queue`` is for each replica.
        batching: How the requests of a replica share forward passes.
        key: The key that requests must give. By default the environment variable ``E2RANK_API_KEY`` of the replicas,
            which keeps it out of the cluster's state; if there is none, everyone is let in.
        **options: Those of ``serve.deployment``, such as ``num_replicas``, ``autoscaling_config`` and
            ``ray_actor_options={"num_gpus": 1}``.

    Returns:
        A ``ray.serve.Deployment``: ``serve.run(deployment(load).bind())``.
    """

    def build() -> Any:
        loaded = load()  # here: a replica is there when its model is
        return create_app(lambda: loaded, limits, batching, key or os.environ.get(KEY) or None)

    # Serve's five requests at a time would leave the queue little to put together.
    chosen: dict[str, Any] = {"name": "e2rank", "max_ongoing_requests": batching.threads} | options
    return serve.deployment(**chosen)(serve.ingress(build)())
