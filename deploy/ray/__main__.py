"""Ray and the application on this machine only: `python -m deploy.ray MODEL`. Ctrl-C stops both."""

import argparse
import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

# Before Ray is imported: it reads them then.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray listens on loopback only, as it does on these systems
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # 30 s are not enough on a busy machine
os.environ["RAY_AUTH_MODE"] = "token"  # replicas of Serve listen on all interfaces, whatever is set
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in ~/.ray

import ray
from ray import serve

from deploy.ray.application import build
from deploy.ray.settings import Settings

HOST: Final = "127.0.0.1"
OBJECT_STORE_BYTES: Final = 100 * 1024 * 1024  # answers do not pass through it


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2:135m")
    parser.add_argument("--port", type=int, default=8000, help="port of Serve's proxy (default: 8000)")
    parser.add_argument("--replicas", type=int, default=2, help="nodes at the start and at most (default: 2)")
    parser.add_argument("--min-replicas", type=int, help="nodes at least; with it, Serve scales (default: --replicas)")
    parser.add_argument("--downscale-delay", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--target-ongoing-requests", type=float, default=8.0, metavar="NUMBER")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="cortex-ray-") as homes:
        settings = Settings(
            model=options.model,
            arguments=arguments,
            homes=Path(homes),
            min_replicas=options.min_replicas or options.replicas,
            max_replicas=options.replicas,
            target_ongoing_requests=options.target_ongoing_requests,
            upscale_delay_s=1,
            downscale_delay_s=options.downscale_delay,
        )
        ray.init(
            address="local",
            num_cpus=options.replicas + 2,  # Ray's count, not the machine's
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            serve.start(http_options={"host": HOST, "port": options.port})
            serve.run(build(settings), name="cortex", route_prefix="/")
            print(f"==> {options.model} on Ray: http://{HOST}:{options.port}/v1", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
