"""Detects the dialect of a model."""

from api.text.dialects.dialect import Dialect
from api.text.dialects.generic import Generic
from api.text.dialects.hermes import Hermes
from api.text.dialects.llama import Llama
from api.text.dialects.mistral import Mistral


def detect(template: str | None) -> Dialect:
    """The dialect of a model, detected from its chat template. Generic if the template has no known tool syntax."""
    source = template or ""
    if "tools" in source:
        if "[TOOL_CALLS]" in source:
            return Mistral(source)
        if "<tool_call>" in source and "<function=" not in source:  # not Qwen 3 Coder's XML
            return Hermes(source)
        if "ipython" in source:
            return Llama(source)
    return Generic(source)
