"""A process that speaks the engine protocol with a scripted behaviour.

It is started as `python scripted_engine.py FOLDER FD CONFIG RECORD`.

FOLDER/behaviours has one behaviour per start; the last one also holds for all further starts. An engine that serves
takes the first token of a prompt as a command, which decides what happens with the other tokens.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import orjson

from scheduler.config import EngineConfig, EngineInfo
from scheduler.crash_record import EXIT_CRASHED, CrashRecord
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
    Snapshot,
    Step,
    Stop,
    Submit,
    Watch,
    decode,
    encode,
)

ECHO, HOLD, DIE, STRANGERS, GARBAGE, SILENCE, PAUSE, DIE_ONCE = (*range(1, 8), 99)
"""Commands.

ECHO: output the other tokens one by one, and finish.
HOLD: output them, and keep running.
DIE: output them, and abort the process, while it computes all open requests, or only this one if it is a suspect.
STRANGERS: as ECHO, but first send outputs of unknown requests.
GARBAGE: output them, and send a line that is not a message; if the request already has an answer, only finish.
SILENCE: output nothing.
PAUSE: output the first token and keep running; if the request already has an answer, output the rest and finish.
DIE_ONCE: only in an embedding request: abort the process, if it is the first one.
"""


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
    def __init__(self, sock: socket.socket, folder: Path, record: CrashRecord) -> None:
        self._socket = sock
        self._folder = folder
        self._record = record
        self._received = 0
        self._open: set[int] = set()
        """Requests that were neither finished nor cancelled."""

    def send(self, *messages: Message) -> None:
        self._socket.sendall(b"".join(map(encode, messages)))

    def note(self, text: str) -> None:
        with (self._folder / "notes").open("a") as notes:
            notes.write(f"{text}\n")

    def serve(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                message = decode(line)
                self._received += 1
                match message:
                    case Submit():
                        self._open.add(message.request_id)
                        self._record.computing([message.request_id] if message.suspect else sorted(self._open))
                        self._answer(message)
                        self._record.computing(())
                    case Embed(request_id, texts):
                        self._record.computing([request_id])
                        self._embed(request_id, texts)
                        self._record.computing(())
                    case Cancel(request_id):
                        self._open.discard(request_id)
                        self.note(f"cancel {request_id}")
                    case Inspect():
                        if not (self._folder / "busy").exists():
                            self.send(Report({"running": self._received, "waiting": 0}, {"pages": 1}))
                    case Watch(on):
                        self.note(f"watch {on}")
                        self.send(Snapshot([], {}, {}, {}, {}))
                    case Stop():
                        self.note("stop")
                        return

    def _answer(self, submit: Submit) -> None:
        command, *tokens = submit.tokens
        number = submit.request_id
        self.note(f"submit {number}" + f" after {submit.answer}" * bool(submit.answer))
        if command == PAUSE:
            command, tokens = (ECHO, tokens[len(submit.answer) :]) if submit.answer else (HOLD, tokens[:1])
        if command == GARBAGE and submit.answer:
            command, tokens = ECHO, []
        if command == SILENCE:
            return
        if command == STRANGERS:
            self.send(Step([Output(number + 1000, [1], "stop"), Output(0, [2]), Output(-1, [], "error", error="?")]))
        for token in tokens:
            self.send(Step([Output(number, [token])]))
        if command == DIE:
            self._record.explain("it does not like 5")
            os.abort()
        if command == GARBAGE:
            self._socket.sendall(b"llama.cpp says hello\n")
        if command in (ECHO, STRANGERS):
            self._open.remove(number)
            self.send(Step([Output(number, [], "stop")]), Step([Output(number, [999], "length")]))

    def _embed(self, number: int, texts: list[list[int]]) -> None:
        """Sends each text's tokens as its embedding. The text [DIE] aborts the process; [SILENCE] gets no embedding."""
        self.note(f"embed {number}")
        is_first = len((self._folder / "starts").read_text().split()) == 1
        for text in texts:
            if text == [DIE] or (text == [DIE_ONCE] and is_first):
                os.abort()
            if text != [SILENCE]:
                self.send(Embedded(number + 1000, ["stranger"]), Embedded(number, [str(text)]))


def main() -> int:
    folder, config = Path(sys.argv[1]), EngineConfig(**orjson.loads(sys.argv[3]))
    starts = folder / "starts"
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    with (folder / "spins").open("a") as file:
        file.write(f"{os.environ.get('GOMP_SPINCOUNT', 'unset')}\n")
    behaviours = (folder / "behaviours").read_text().split()
    behaviour = behaviours[min(len(starts.read_text().split()), len(behaviours)) - 1]
    sock = socket.socket(fileno=int(sys.argv[2]))
    record = CrashRecord(int(sys.argv[4]))
    engine = ScriptedEngine(sock, folder, record)
    match behaviour:
        case "fails":
            engine.send(Failed("it is broken"))
            return 1
        case "out_of_memory":
            engine.send(Failed("no memory for it", missing_bytes=1))
            return 1
        case "never_fits":
            engine.send(Failed("no memory for it anywhere", missing_bytes=1 << 60))
            return 1
        case "exits":
            return 3
        case "aborts":
            record.explain("ggml.c:7: GGML_ASSERT(false) failed")
            os.abort()
        case "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            record.explain("KeyError: 5")
            return EXIT_CRASHED
        case "dies_at_once":  # after it was ready, before it computes anything
            engine.send(Ready(info(config)))
            sock.recv(1, socket.MSG_PEEK)
            os.abort()
        case "sends_garbage":
            sock.sendall(b"not a message\n")
            signal.pause()
        case "loads_forever":
            signal.pause() if sock.recv(1) else None
        case "ignores_stop":
            engine.send(Ready(info(config)))
            sock.recv(1)
            signal.pause()
        case "serves" | "loads_until_go":
            while behaviour == "loads_until_go" and not (folder / "go").exists():
                time.sleep(0.005)
            engine.send(Ready(info(config)))
            engine.serve()
        case _:
            raise ValueError(behaviour)
    return 0


if __name__ == "__main__":
    sys.exit(main())
