"""Syntaxes of families whose templates do not show them, or that several families share."""

from typing import Final

from api.text.dialects.syntax import SHORT_ID, AnswerSyntax, Calls, Thoughts, form

THINK: Final = Thoughts(("<think>",), ("</think>",))
HERMES: Final = Calls((form('<tool_call>\n{"name": "$name", "arguments": $arguments}\n</tool_call>'),), separator="\n")
"""Hermes, Qwen 2.5, Qwen 3 and others. The prompt of a model that is not trained for tool calls asks for it, too."""
LLAMA: Final = Calls(
    (form('{"name": "$name", "parameters": $arguments}'),), begin="<|python_tag|>", separator="; ", bare=True
)
"""Llama 3.1 and later."""
MISTRAL: Final = Calls(
    (
        form('{"name": "$name", "arguments": $arguments}'),
        form('{"name": "$name", "arguments": $arguments, "id": "$id"}'),
    ),
    begin="[TOOL_CALLS][",
    separator=", ",
    end="]",
    id_pattern=SHORT_ID,
)
"""Mistral's earlier models."""
MISTRAL_NAMED: Final = Calls(
    (form("[TOOL_CALLS]$name[CALL_ID]$id[ARGS]$arguments"), form("[TOOL_CALLS]$name[ARGS]$arguments")),
    id_pattern=SHORT_ID,
)
"""Mistral's later models."""
IN_WORDS: Final = AnswerSyntax(calls=HERMES)
"""The syntax that the prompt explains in words."""
