"""A streamed chat with langchain-openai."""

import os

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(base_url=os.environ["CORTEX_URL"], api_key="none", model=os.environ["CORTEX_MODEL"], max_tokens=16)
for chunk in chat.stream("Count from one to ten in words."):
    print(f"piece {chunk.content!r}")
