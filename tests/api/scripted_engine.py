"""`python scripted_engine.py FOLDER FD CONFIG`: speaks an engine's wire as FOLDER/behaviours says, a line per start.

What it serves is as scripted: the first token of a prompt tells what to do with the others. One that lingers is not
ready before there is FOLDER/go.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import orjson

from scheduler.config import EngineConfig, EngineInfo
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Inspect,
    Message,
    Output,
    Ready,
    Report,
    Step,
    Stop,
    Submit,
    decode,
    encode,
)

ECHO, HOLD, DIE, STRANGERS, GARBAGE, SILENCE, PAUSE, DIE_ONCE = (*range(1, 8), 99)
"""Say the other tokens one by one and end; say them and go on; then die; talk of unknown requests too; write what is
no message; say nothing; say the first and go on, but to one that knows it say the rest and end; die in the first life
only."""


def info(config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        pid=os.getpid(),
        description=config.model_path,
        ctx_len=config.ctx_len or 100,
        max_seqs=2,
        kv_tokens=200,
        kv_bytes=4000,
        kv_layout="pool",
        kv_layout_reason="as asked",
        batch_tokens=config.batch_tokens or 512,
        threads=1,
        host_cache=0,
        disk_cache=0,
        gpu_layers=0,
        load_seconds=0.0,
    )


class ScriptedEngine:
    def __init__(self, sock: socket.socket, folder: Path) -> None:
        self._socket = sock
        self._folder = folder
        self._received = 0

    def send(self, *messages: Message) -> None:
        self._socket.sendall(b"".join(map(encode, messages)))

    def note(self, what: str) -> None:
        with (self._folder / "notes").open("a") as notes:
            notes.write(f"{what}\n")

    def serve(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                message = decode(line)
                self._received += 1
                match message:
                    case Submit():
                        self._answer(message)
                    case Embed(request_id, texts):
                        self._embed(request_id, texts)
                    case Cancel(request_id):
                        self.note(f"cancel {request_id}")
                    case Inspect():
                        if not (self._folder / "busy").exists():
                            self.send(Report({"running": self._received, "waiting": 0}, {"pages": 1}))
                    case Stop():
                        self.note("stop")
                        return

    def _answer(self, submit: Submit) -> None:
        what, *tokens = submit.tokens
        number = submit.request_id
        self.note(f"submit {number}" + f" after {submit.answer}" * bool(submit.answer))
        if what == PAUSE:
            what, tokens = (ECHO, tokens[len(submit.answer) :]) if submit.answer else (HOLD, tokens[:1])
        if what == SILENCE:
            return
        if what == STRANGERS:
            self.send(Step([Output(number + 1000, [1], "stop"), Output(0, [2]), Output(-1, [], "error", error="?")]))
        for token in tokens:
            self.send(Step([Output(number, [token])]))
        if what == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == GARBAGE:
            self._socket.sendall(b"llama.cpp says hello\n")
        if what in (ECHO, STRANGERS):
            self.send(Step([Output(number, [], "stop")]), Step([Output(number, [999], "length")]))

    def _embed(self, number: int, texts: list[list[int]]) -> None:
        """A text's embedding is its tokens; one that only holds DIE is the engine's end, and SILENCE gets none."""
        self.note(f"embed {number}")
        is_first = len((self._folder / "starts").read_text().split()) == 1
        for text in texts:
            if text == [DIE] or (text == [DIE_ONCE] and is_first):
                os.kill(os.getpid(), signal.SIGKILL)
            if text != [SILENCE]:
                self.send(Embedded(number + 1000, ["stranger"]), Embedded(number, [str(text)]))


def main() -> int:
    folder, config = Path(sys.argv[1]), EngineConfig(**orjson.loads(sys.argv[3]))
    starts = folder / "starts"
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    with (folder / "spins").open("a") as file:
        file.write(f"{os.environ.get('GOMP_SPINCOUNT', 'freely')}\n")
    behaviours = (folder / "behaviours").read_text().split()
    behaviour = behaviours[min(len(starts.read_text().split()), len(behaviours)) - 1]
    sock = socket.socket(fileno=int(sys.argv[2]))
    engine = ScriptedEngine(sock, folder)
    match behaviour:
        case "fails":
            engine.send(Failed("it is broken"))
            return 1
        case "starves":
            engine.send(Failed("no memory for it", missing_bytes=1))
            return 1
        case "despairs":
            engine.send(Failed("no memory for it anywhere", missing_bytes=1 << 60))
            return 1
        case "vanishes":
            return 3
        case "babbles":
            sock.sendall(b"not a message\n")
            signal.pause()
        case "loads":
            signal.pause() if sock.recv(1) else None
        case "stays":
            engine.send(Ready(info(config)))
            sock.recv(1)
            signal.pause()
        case "serves" | "lingers":
            while behaviour == "lingers" and not (folder / "go").exists():
                time.sleep(0.005)
            engine.send(Ready(info(config)))
            engine.serve()
        case _:
            raise ValueError(behaviour)
    return 0


if __name__ == "__main__":
    sys.exit(main())
