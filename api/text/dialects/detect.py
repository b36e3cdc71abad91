"""Which family a model is of."""

from api.text.dialects.dialect import Dialect
from api.text.dialects.generic import Generic
from api.text.dialects.hermes import Hermes
from api.text.dialects.llama import Llama
from api.text.dialects.mistral import Mistral


def detect(template: str | None) -> Dialect:
    """The dialect of a model by what its chat template contains; Generic for one that knows no tools."""
    source = template or ""
    if "tools" in source:
        if "[TOOL_CALLS]" in source:
            return Mistral(source)
        if "<tool_call>" in source and "<function=" not in source:  # which is Qwen 3 Coder's way, in XML
            return Hermes(source)
        if "ipython" in source:
            return Llama(source)
    return Generic(source)
