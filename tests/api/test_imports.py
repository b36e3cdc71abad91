"""What the server imports delays its start, so it does not do what can be done later."""

import subprocess
import sys

LISTS = """
import sys
import api.http.server
from pydantic import BaseModel

def subclasses(type):
    for each in type.__subclasses__():
        yield each
        yield from subclasses(each)

def is_ours(type):
    return type.__module__.startswith("api.protocols.") and not type.__pydantic_generic_metadata__["parameters"]

models = list(filter(is_ours, set(subclasses(BaseModel))))
print(len(models), *sorted(each.__qualname__ for each in models if each.__pydantic_complete__))
print(*sorted({"huggingface_hub", "rich"} & set(sys.modules)))
"""


def test_the_server_starts_without_building_validators_or_importing_what_few_need() -> None:
    done = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, check=True)
    models, modules = done.stdout.splitlines()
    count, *built = models.split(" ")
    assert int(count) > 100
    assert built == []
    assert modules == ""


USES = """
import threading
from api.errors import ApiError
from api.http.operations import OPERATIONS
from api.http.openapi import document
from api.protocols.fields import parse

requests = {each.request for each in OPERATIONS if each.request is not None}
jobs = [lambda each=each: parse(each, {"no_such_field": 1}) for each in requests for _ in range(4)]
start, outcomes = threading.Barrier(len(jobs) + 1), []

def run(job):
    start.wait()
    try:
        outcomes.append(type(job()).__name__)
    except Exception as error:
        outcomes.append(type(error).__name__)

threads = [threading.Thread(target=run, args=(job,)) for job in [*jobs, lambda: document(OPERATIONS)]]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(requests), len(jobs) - outcomes.count("ApiError"), *sorted(set(outcomes)))
"""


def test_threads_may_use_validators_for_the_first_time_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True, check=True)
    count, others, *outcomes = done.stdout.split()
    assert int(count) > 10
    assert (others, outcomes) == ("0", ["ApiError", "dict"])
