"""How long servers take from the start of the process to the first answer, and their memory then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from bench.servers import Server
from bench.stats import Measures


@dataclass(frozen=True, slots=True)
class Start:
    seconds: float
    memory_bytes: int

    def measures(self) -> Measures:
        return {"seconds": self.seconds, "memory_bytes": float(self.memory_bytes)}


async def measure(
    servers: Sequence[Server], *, repeat: int, print_line: Callable[[str], object]
) -> dict[str, list[Start]]:
    """Starts of each server in turn, by name. The first one of each is not counted: it reads files from the disk, and
    Cortex proves how the model is served.

    Raises BenchError if a server does not start.
    """
    starts: dict[str, list[Start]] = {server.spec.name: [] for server in servers}
    for number in range(repeat + 1):
        for server in servers:
            begun = trio.current_time()
            try:
                await server.start()
                start = Start(trio.current_time() - begun, server.usage().memory_bytes)
            finally:
                await server.stop()
            if number:
                starts[server.spec.name].append(start)
                print_line(f"{number} of {repeat}: {server.spec.name} {start.seconds:.2f} s")
    return starts
