"""Scenes that several checks look at: a conversation with all that an answer can hold, and a busy server."""

import re
from typing import Final

from playwright.sync_api import expect

from tests.page import recorded
from tests.page.visitor import Visitor

LOAD: Final = ("--workload", "uniform", "--users", "6", "--requests", "48", "--output-tokens", "48")
"""Of `python -m bench load`. A check ends it when it has seen enough."""

ANSWER: Final = """\
## Insertion sort

It is **fast** on nearly sorted input, see [this page](https://example.com/sort).

```python
def insertion_sort(items: list[int]) -> None:
    for i in range(1, len(items)):  # the left part is sorted
        while i and items[i - 1] > items[i]:
            items[i - 1], items[i] = items[i], items[i - 1]
            i -= 1
```

| algorithm | sorted | random | memory |
|---|--:|--:|---|
| insertion | `O(n)` | `O(n^2)` | none beyond the list itself |
| merge | `O(n log n)` | `O(n log n)` | a second list of the same length |

> Measure before you choose.

1. Few elements: insertion.
2. Many: the library's.
   - It is adaptive.
- [x] stable

---

Done.
"""

TALK: Final = (
    ("Which sorting fits nearly sorted numbers?", recorded.stream(ANSWER, thoughts="An adaptive one is best.")),
    (
        "What is the weather in Paris?",
        recorded.stream("I ask the tool.", calls=(("get_weather", '{"city": "Paris", "unit": "celsius"}'),)),
    ),
)
"""Questions and the answers to them."""


def show_talk(visitor: Visitor) -> None:
    recorded.answer_chats(visitor.context, *(answer for _, answer in TALK))
    for question, _ in TALK:
        visitor.ask(question)
    expect(visitor.answers).to_have_count(len(TALK))


def show_live(visitor: Visitor) -> None:
    """Waits until the live view shows requests that run."""
    expect(visitor.region("Queue")).to_contain_text(re.compile(r"[1-9]"))
    expect(visitor.region("Latency")).to_contain_text(re.compile(r"[1-9]"))
