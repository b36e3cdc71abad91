"""Streamed chats with OpenAI's own SDK, synchronous and asynchronous."""

import asyncio
import os
from typing import Any

from openai import AsyncOpenAI, OpenAI

FIELDS: Any = {
    "model": os.environ["CORTEX_MODEL"],
    "messages": [{"role": "user", "content": "Count from one to ten in words."}],
    "max_tokens": 16,
    "stream": True,
}


async def ask() -> None:
    client = AsyncOpenAI(base_url=os.environ["CORTEX_URL"], api_key="none")
    async for chunk in await client.chat.completions.create(**FIELDS):
        print(f"piece {chunk.choices[0].delta.content!r}")


for chunk in OpenAI(base_url=os.environ["CORTEX_URL"], api_key="none").chat.completions.create(**FIELDS):
    print(f"piece {chunk.choices[0].delta.content!r}")
asyncio.run(ask())
