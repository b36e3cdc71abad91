"""The Serve application: `serve run deploy.ray.application:build model=smollm2:135m`."""

from http import HTTPStatus
from typing import Final

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deploy.ray.errors import TOO_LARGE
from deploy.ray.headers import end_to_end
from deploy.ray.node import Call, Node
from deploy.ray.prefixes import prefix_of
from deploy.ray.relay import Relay, refusal
from deploy.ray.settings import Settings

MAX_BODY_BYTES: Final = 32 * 1024 * 1024  # a node's limit
# Beyond them, requests wait in Serve. A node has its own limits, and answers 429.
MAX_ONGOING_OF_A_NODE: Final = 1024
MAX_ONGOING_OF_AN_INGRESS: Final = 8192
HEALTH_PERIOD_SECONDS: Final = 2.0
HEALTH_TIMEOUT_SECONDS: Final = 10.0
DRAIN_LOOP_SECONDS: Final = 0.5
LOOK_BACK_SECONDS: Final = 15.0
"""Serve counts the requests in this window. It must be longer than the 10 s between two counts."""
INGRESS_CPUS: Final = 0.0  # a node may then have all CPUs of a machine


class Ingress:
    """Receives all requests from Serve's proxy. The handle's router chooses the node by the request's prefix."""

    def __init__(self, node: DeploymentHandle) -> None:
        asked = node.options(method_name="forward", stream=True)
        self._relay = Relay(asked.remote, (RayActorError,))

    async def __call__(self, request: Request) -> Response:
        path = request.url.path
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                head, pieces = refusal(path, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE)
                break
        else:
            headers = end_to_end(request.headers.raw, (b"content-length",))
            prefix = prefix_of(path, headers, bytes(body))
            head, pieces = await self._relay.open(Call(request.method, _target(request), headers, bytes(body), prefix))
        response = StreamingResponse(pieces, head.status)
        response.raw_headers = list(head.headers)
        return response


def _target(request: Request) -> str:
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1")
    return f"{path}?{query}" if query else path


def build(settings: Settings) -> serve.Application:
    """The application. Serve validates `args` with the model Settings."""
    nodes = serve.deployment(
        Node,
        max_ongoing_requests=MAX_ONGOING_OF_A_NODE,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
            look_back_period_s=LOOK_BACK_SECONDS,
        ),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        request_router_config=RequestRouterConfig(request_router_class="deploy.ray.router:PrefixRouter"),
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOP_SECONDS,
        graceful_shutdown_timeout_s=settings.grace_seconds,
    )
    ingress = serve.deployment(
        Ingress,
        num_replicas=settings.ingresses,
        max_ongoing_requests=MAX_ONGOING_OF_AN_INGRESS,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        graceful_shutdown_timeout_s=settings.grace_seconds,
    )
    return ingress.bind(nodes.bind(settings))
