"""A streamed chat with LiteLLM."""

import os

import litellm

for chunk in litellm.completion(
    model=f"openai/{os.environ['CORTEX_MODEL']}",
    api_base=os.environ["CORTEX_URL"],
    api_key="none",
    messages=[{"role": "user", "content": "Count from one to ten in words."}],
    max_tokens=16,
    stream=True,
):
    print(f"piece {chunk.choices[0].delta.content!r}")
