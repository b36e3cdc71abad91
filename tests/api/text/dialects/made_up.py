"""Chat templates of no known family, written for the tests: at least one of each way to write thoughts and calls.

`one`, `two` and `thought` are written by hand, as a model that was trained with the template answers. All other answers
are what the template itself writes of a message.
"""

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A template, and what a model that was trained with it answers."""

    name: str
    kind: str
    """What is special about it."""
    source: str
    """Jinja."""
    end: str
    """The mark at the end of a turn."""
    has_end: bool = True
    """Whether an answer always ends there. Otherwise the mark begins the next turn, or may be text."""
    one: str = ""
    """A call: get_weather, city Lisbon, days 3."""
    two: str = ""
    """This call and get_weather, city Oporto, days 1."""
    thought: str = ""
    """The thought "Hm." and the text "Sunny."; empty if the template knows no thoughts."""
    controls: tuple[str, ...] = ()
    """Marks that are control tokens in its vocabulary."""
    opens: bool = False
    """Whether its prompt begins the thought, unless the `switch` is off."""
    switch: str = "enable_thinking"
    """Its variable for thoughts."""
    reasoning_key: str = "reasoning_content"
    """The field of a message that it reads thoughts from."""
    lacks: frozenset[str] = field(default_factory=frozenset)
    """Names of the answers that it cannot write without loss."""
    takes_text: bool = False
    """Whether it needs arguments as JSON text."""
    in_words: bool = False
    """Whether nothing can be learned of its calls, so that the prompt has to explain them."""


BRACKETS: Final = MadeUp(
    name="double-brackets",
    kind="thoughts in [[ ]], calls in (( ))",
    source="""\
{%- if messages[0].role == 'system' -%}
{{ '<|role:system|>' + messages[0].content + '<|eot|>' }}
{%- endif -%}
{%- if tools -%}
{{ '<|role:tools|>' }}{% for tool in tools %}{{ tool.function | tojson }}{{ '\\n' }}{% endfor %}{{ '<|eot|>' }}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
{{ '<|role:' + message.role + '|>' }}
{%- if message.role == 'assistant' -%}
{%- if message.reasoning_content %}{{ '[[' + message.reasoning_content + ']]\\n' }}{% endif -%}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{{ '((call {"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}))' }}
{%- endfor -%}
{%- else -%}
{{ message.content }}
{%- endif -%}
{{ '<|eot|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|role:assistant|>' }}{% endif -%}
""",
    end="<|eot|>",
    one='((call {"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}))',
    two='((call {"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}))'
    '((call {"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}))',
    thought="[[Hm.]]\nSunny.",
)

HEADINGS: Final = MadeUp(
    name="headings",
    kind="thoughts and calls below headings",
    source="""\
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- '# System\\n' + message.content + '\\n<eot>\\n' }}
{%- elif message.role == 'user' %}
{{- '# User\\n' + message.content + '\\n<eot>\\n' }}
{%- elif message.role == 'tool' %}
{{- '# Result\\n' + message.content + '\\n<eot>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '# Assistant\\n' }}
{%- if message.reasoning_content %}
{{- '### Thinking\\n' + message.reasoning_content + '\\n### Answer\\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif %}
{{- '### Tool\\n' + {"tool": call.function.name, "input": call.function.arguments} | tojson }}
{%- endfor %}
{{- '\\n<eot>\\n' }}
{%- else %}
{{- raise_exception('unknown role ' + message.role) }}
{%- endif %}
{%- if loop.first and tools %}
{{- '# Tools\\n' + tools | tojson(indent=2) + '\\n<eot>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '# Assistant\\n' }}{% endif %}
""",
    end="\n<eot>\n",
    one='### Tool\n{"tool": "get_weather", "input": {"city": "Lisbon", "days": 3}}',
    two='### Tool\n{"tool": "get_weather", "input": {"city": "Lisbon", "days": 3}}\n'
    '### Tool\n{"tool": "get_weather", "input": {"city": "Oporto", "days": 1}}',
    thought="### Thinking\nHm.\n### Answer\nSunny.",
)

YAML: Final = MadeUp(
    name="yaml-tags",
    kind="a line for the name and for each argument, between tags; strings as they are",
    source="""\
{%- if tools %}
{{- '<system>You may use these tools:\\n' }}
{%- for tool in tools %}
{{- '- ' + tool.function.name + ': ' + tool.function.description + '\\n' }}
{%- for name, schema in tool.function.parameters.properties.items() %}
{{- '    ' + name + ': ' + (schema | tojson) + '\\n' }}
{%- endfor %}
{%- endfor %}
{{- '</system>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<bot>' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<call>\\nname: ' + call.function.name + '\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- key + ': ' + (value if value is string else value | tojson) + '\\n' }}
{%- endfor %}
{{- '</call>' }}
{%- endfor %}
{{- '</bot>\\n' }}
{%- else %}
{{- '<' + message.role + '>' + message.content + '</' + message.role + '>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<bot>' }}{% endif %}
""",
    end="</bot>",
    one="<call>\nname: get_weather\ncity: Lisbon\ndays: 3\n</call>",
    two="<call>\nname: get_weather\ncity: Lisbon\ndays: 3\n</call>"
    "<call>\nname: get_weather\ncity: Oporto\ndays: 1\n</call>",
    lacks=frozenset({"lines", "code"}),
)

NAME_AS_KEY: Final = MadeUp(
    name="name-as-key",
    kind="a JSON object whose key is the name",
    source="""\
{{- bos_token }}
{%- if tools %}{{ '<<tools>>' + tools | map(attribute='function') | list | tojson + '<<end>>' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ '<<sys>>' + message.content + '<<end>>' }}
{%- elif message.role == 'user' %}{{ '<<user>>' + message.content + '<<end>>' }}
{%- elif message.role == 'tool' %}{{ '<<result>>' + message.content + '<<end>>' }}
{%- else %}
{{- '<<model>>' + message.content }}
{%- for call in message.tool_calls or [] %}
{%- if call.function is defined %}{% set call = call.function %}{% endif %}
{{- '\\n<tool>{"' + call.name + '": ' + call.arguments | tojson + '}</tool>' }}
{%- endfor %}
{{- '<<end>>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<<model>>' }}{% endif %}
""",
    end="<<end>>",
    one='\n<tool>{"get_weather": {"city": "Lisbon", "days": 3}}</tool>',
    two='\n<tool>{"get_weather": {"city": "Lisbon", "days": 3}}</tool>'
    '\n<tool>{"get_weather": {"city": "Oporto", "days": 1}}</tool>',
)

ONE_LIST: Final = MadeUp(
    name="one-list",
    kind="all calls in one JSON list",
    source="""\
{%- if tools %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[ASK]' + message.content + '[/ASK]' }}
{%- elif message.role == 'system' %}{{ '[RULES]' + message.content + '[/RULES]' }}
{%- elif message.role == 'tool' %}{{ '[RETURNED]' + {"content": message.content} | tojson + '[/RETURNED]' }}
{%- elif message.role == 'assistant' %}
{{- '[REPLY]' + message.content }}
{%- if message.tool_calls %}
{{- '[FUNCTIONS][' }}
{%- for call in message.tool_calls %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
{{- '' if loop.last else ', ' }}
{%- endfor %}
{{- '][/FUNCTIONS]' }}
{%- endif %}
{{- '[/REPLY]' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[REPLY]' }}{% endif %}
""",
    end="[/REPLY]",
    one='[FUNCTIONS][{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}][/FUNCTIONS]',
    two='[FUNCTIONS][{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}, '
    '{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}][/FUNCTIONS]',
    controls=("[FUNCTIONS]", "[/FUNCTIONS]", "[/REPLY]"),
)

ARGUMENTS_FIRST: Final = MadeUp(
    name="arguments-first",
    kind="the arguments before the name",
    source="""\
{%- set ns = namespace(rules='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.rules = ns.rules + message.content %}{% endfor %}
{{- '<|head|>' + ns.rules }}
{%- if tools %}
{{- '\\nTools, as JSON:' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{%- endif %}
{{- '<|tail|>' }}
{%- for message in messages if message.role != 'system' %}
{{- '<|head|>' + message.role + '\\n' }}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<do>{"arguments": ' + call.function.arguments | tojson + ', "name": "' + call.function.name + '"}</do>' }}
{%- endfor %}
{{- '<|tail|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant\\n' }}{% endif %}
""",
    end="<|tail|>",
    one='<do>{"arguments": {"city": "Lisbon", "days": 3}, "name": "get_weather"}</do>',
    two='<do>{"arguments": {"city": "Lisbon", "days": 3}, "name": "get_weather"}</do>'
    '<do>{"arguments": {"city": "Oporto", "days": 1}, "name": "get_weather"}</do>',
)

FENCED: Final = MadeUp(
    name="fenced-python",
    kind="a Python call in a fenced block",
    source="""\
{%- macro literal(value) -%}
{{ (value | tojson) if value is string else value }}
{%- endmacro -%}
{%- for message in messages -%}
<|begin {{ message.role }}|>
{%- if message.role == 'system' and tools %}
{{- 'Functions:\\n' }}
{%- for tool in tools %}{{ tool.function | tojson }}{{ '\\n' }}{% endfor %}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '```call\\n' + call.function.name + '(' }}
{%- for key, value in call.function.arguments | items %}
{{- key + '=' + literal(value) + ('' if loop.last else ', ') }}
{%- endfor %}
{{- ')\\n```' }}
{%- endfor %}
{{- '<|finish|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|begin assistant|>' }}{% endif %}
""",
    end="<|finish|>",
    one='```call\nget_weather(city="Lisbon", days=3)\n```',
    two='```call\nget_weather(city="Lisbon", days=3)\n``````call\nget_weather(city="Oporto", days=1)\n```',
)

NAME_AND_ARGUMENTS: Final = MadeUp(
    name="name-and-arguments",
    kind="name and arguments in tags of their own",
    source="""\
{%- if messages and messages[0].role == 'system' %}
{%- set rules = messages[0].content %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- if rules or tools %}
{{- '<sys>' + (rules or '') }}
{%- if tools %}{{ '\\n<available>' + tools | tojson + '</available>' }}{% endif %}
{{- '</sys>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<human>' + message.content | trim + '</human>' }}
{%- elif message.role == 'assistant' %}
{{- '<ai>' + message.content | trim }}
{%- for call in message.tool_calls or [] %}
{%- if loop.index0 > 0 or message.content %}{{ '\\n' }}{% endif %}
{{- '<fn>' + call.function.name + '</fn><args>' + call.function.arguments | tojson + '</args>' }}
{%- endfor %}
{{- '</ai>' }}
{%- elif message.role == 'tool' %}{{ '<out>' + message.content + '</out>' }}
{%- else %}{{ raise_exception('Only user, assistant and tool after the system message.') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<ai>' }}{% endif %}
""",
    end="</ai>",
    one='<fn>get_weather</fn><args>{"city": "Lisbon", "days": 3}</args>',
    two='<fn>get_weather</fn><args>{"city": "Lisbon", "days": 3}</args>\n'
    '<fn>get_weather</fn><args>{"city": "Oporto", "days": 1}</args>',
)

ATTRIBUTES: Final = MadeUp(
    name="attributes",
    kind="name and keys as attributes of tags",
    source="""\
{%- for message in messages %}
{{- '<turn who="' + message.role + '">' }}
{%- if loop.first and tools %}
{{- '<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool.function | tojson }}{% endfor %}
{{- '\\n</tools>\\n' }}
{%- endif %}
{{- message.content }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '\\n<call fn="' + call.function.name + '">' }}
{%- for key in call.function.arguments %}
{%- set value = call.function.arguments[key] %}
{{- '<arg n="' + key + '">' + (value if value is string else value | tojson) + '</arg>' }}
{%- endfor %}
{{- '</call>' }}
{%- endfor %}
{%- endif %}
{{- '</turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn who="assistant">' }}{% endif %}
""",
    end="</turn>",
    one='\n<call fn="get_weather"><arg n="city">Lisbon</arg><arg n="days">3</arg></call>',
    two='\n<call fn="get_weather"><arg n="city">Lisbon</arg><arg n="days">3</arg></call>'
    '\n<call fn="get_weather"><arg n="city">Oporto</arg><arg n="days">1</arg></call>',
)

NUMBERED: Final = MadeUp(
    name="numbered",
    kind="calls with numbers, from 0; asks whether `tools` is defined",
    source="""\
{%- if tools is defined %}{{ '<|tools|>' + tools | tojson + '<|stop|>' }}{% endif %}
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<call id=' ~ loop.index0 ~ '>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}</call>' }}
{%- endfor %}
{{- '<|stop|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|stop|>",
    one='<call id=0>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}</call>',
    two='<call id=0>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}</call>'
    '<call id=1>{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}</call>',
    controls=("<|stop|>",),
)

PIPES: Final = MadeUp(
    name="pipes",
    kind="fields between pipes",
    source="""\
{%- for message in messages %}
{%- if message.role == 'system' or loop.first and tools %}
{{- '|system|' + (message.content if message.role == 'system' else '') }}
{%- if tools %}{{ '|tools|' + tools | map(attribute='function') | map('tojson') | join('|tool|') }}{% endif %}
{{- '|over|\\n' }}
{%- endif %}
{%- if message.role != 'system' %}
{{- '|' + message.role + '|' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '|call|' + call.function.name + '|' + call.function.arguments | tojson + '|end|' }}
{%- endfor %}
{{- '|over|\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '|assistant|' }}{% endif %}
""",
    end="|over|",
    one='|call|get_weather|{"city": "Lisbon", "days": 3}|end|',
    two='|call|get_weather|{"city": "Lisbon", "days": 3}|end||call|get_weather|{"city": "Oporto", "days": 1}|end|',
)

SECTION: Final = MadeUp(
    name="section",
    kind="control tokens around all calls and around each",
    source="""\
{{- bos_token }}
{%- if tools %}{{ '<|sys|>Tools: ' + tools | tojson + '<|fin|>' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ '<|sys|>' + message.content + '<|fin|>' }}
{%- elif message.role == 'user' %}{{ '<|usr|>' + message.content + '<|fin|>' }}
{%- elif message.role == 'tool' %}{{ '<|res|>' + message.content + '<|fin|>' }}
{%- else %}
{{- '<|bot|>' + message.content }}
{%- if message.tool_calls %}
{{- '<|calls|>' }}
{%- for call in message.tool_calls %}
{{- '<|call|>' + call.function.name + '<|args|>' + call.function.arguments | tojson + '<|/call|>' }}
{%- endfor %}
{{- '<|/calls|>' }}
{%- endif %}
{{- '<|fin|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<|calls|><|call|>get_weather<|args|>{"city": "Lisbon", "days": 3}<|/call|><|/calls|>',
    two='<|calls|><|call|>get_weather<|args|>{"city": "Lisbon", "days": 3}<|/call|>'
    '<|call|>get_weather<|args|>{"city": "Oporto", "days": 1}<|/call|><|/calls|>',
    controls=("<|calls|>", "<|call|>", "<|args|>", "<|/call|>", "<|/calls|>", "<|fin|>"),
)

KEYS_AND_VALUES: Final = MadeUp(
    name="keys-and-values",
    kind="key and value in tags of their own",
    source="""\
{%- if tools %}
{{- '<|system|>\\n# Tools\\n' }}
{%- for tool in tools %}{{ tool | tojson(ensure_ascii=False) + '\\n' }}{% endfor %}
{%- endif %}
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' }}
{%- if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<musing>' + message.reasoning_content.strip() + '</musing>\\n' }}{% endif %}
{%- endif %}
{{- message.content | trim }}
{%- for call in message.tool_calls or [] %}
{%- set f = call.function %}
{{- '<call>' + f.name }}
{%- for key, value in f.arguments.items() %}
{{- '\\n<k>' + key + '</k>\\n<v>' + (value if value is string else value | tojson(ensure_ascii=False)) + '</v>' }}
{%- endfor %}
{{- '\\n</call>' }}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
""",
    end="<|tool|>",
    has_end=False,
    one="<call>get_weather\n<k>city</k>\n<v>Lisbon</v>\n<k>days</k>\n<v>3</v>\n</call>",
    two="<call>get_weather\n<k>city</k>\n<v>Lisbon</v>\n<k>days</k>\n<v>3</v>\n</call>"
    "<call>get_weather\n<k>city</k>\n<v>Oporto</v>\n<k>days</k>\n<v>1</v>\n</call>",
    thought="<musing>Hm.</musing>\nSunny.",
    controls=("<|user|>", "<|assistant|>", "<|tool|>"),
)

IDS: Final = MadeUp(
    name="ids",
    kind="the call's id in its mark",
    source="""\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '[RESULT id=' + message.tool_call_id + ']' + message.content + '[/RESULT]' }}
{%- elif message.role == 'assistant' %}
{{- '[ASSISTANT]' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[CALL id=' + call.id + ' name=' + call.function.name + ']' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '[/CALL]' }}
{%- endfor %}
{{- eos_token }}
{%- else %}
{{- '[' + message.role | upper + ']' + message.content }}
{%- if tools and loop.first %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[ASSISTANT]' }}{% endif %}
""",
    end="</s>",
    one='[CALL id=callab12C name=get_weather]{"city": "Lisbon", "days": 3}[/CALL]',
    two='[CALL id=callab12C name=get_weather]{"city": "Lisbon", "days": 3}[/CALL]'
    '[CALL id=callef34G name=get_weather]{"city": "Oporto", "days": 1}[/CALL]',
    controls=("</s>",),
)

WRAPPER: Final = MadeUp(
    name="content-wrapper",
    kind="the text of an answer in tags, as well as thoughts and calls",
    source="""\
{%- if tools %}{{ '<tools>' + tools | tojson + '</tools>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}
{{- '<' + message.role + '>' + message.content + '</' + message.role + '>\\n' }}
{%- else %}
{{- '<assistant>' }}
{%- if message.reasoning_content is defined and message.reasoning_content %}
{{- '<ponder>' + message.reasoning_content + '</ponder>' }}
{%- endif %}
{%- if message.content %}{{ '<reply>' + message.content + '</reply>' }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<act>' + {"name": call.function.name, "arguments": call.function.arguments} | tojson + '</act>' }}
{%- endfor %}
{{- '</assistant>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
""",
    end="</assistant>",
    one='<act>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}</act>',
    two='<act>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}</act>'
    '<act>{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}</act>',
    thought="<ponder>Hm.</ponder><reply>Sunny.</reply>",
)

JSON_IN_JSON: Final = MadeUp(
    name="json-in-json",
    kind="the arguments as a JSON string in the call's JSON",
    source="""\
{%- for message in messages %}
{{- '<|im_from|>' + message.role + '\\n' }}
{%- if loop.first and tools %}{{ '<tools>\\n' + tools | tojson + '\\n</tools>\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{%- set arguments = call.function.arguments %}
{%- if arguments is not string %}{% set arguments = arguments | tojson %}{% endif %}
{{- '<call>' + {"name": call.function.name, "arguments": arguments} | tojson + '</call>' }}
{%- endfor %}
{{- '<|im_done|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_from|>assistant\\n' }}{% endif %}
""",
    end="<|im_done|>",
    one='<call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Lisbon\\", \\"days\\": 3}"}</call>',
    two='<call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Lisbon\\", \\"days\\": 3}"}</call>'
    '<call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oporto\\", \\"days\\": 1}"}</call>',
)

NESTED: Final = MadeUp(
    name="nested-function",
    kind="OpenAI's objects, with the function inside",
    source="""\
{%- for message in messages %}
{{- '<|s|>' + message.role + ': ' }}
{%- if loop.first and tools is not none and tools %}
{{- 'TOOLS ' + tools | tojson + '\\n' }}
{%- endif %}
{{- message.content or '' }}
{%- if message.tool_calls is defined and message.tool_calls is not none %}
{%- for call in message.tool_calls %}
{{- '<tool_request>{"type": "function", "function": {"name": ' + call.function.name | tojson }}
{{- ', "arguments": ' + call.function.arguments | tojson + '}}</tool_request>' }}
{%- endfor %}
{%- endif %}
{{- '<|e|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|s|>assistant: ' }}{% endif %}
""",
    end="<|e|>",
    one='<tool_request>{"type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Lisbon", "days": 3}}}</tool_request>',
    two='<tool_request>{"type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Lisbon", "days": 3}}}</tool_request>'
    '<tool_request>{"type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Oporto", "days": 1}}}</tool_request>',
)

BARE: Final = MadeUp(
    name="bare-json",
    kind="JSON without any mark, a call on each line",
    source="""\
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<u>' }}
{%- if tools and loop.index <= 2 %}
{{- 'To call a function, answer with JSON alone. Functions:\\n' }}
{%- for tool in tools %}{{ tool.function | tojson(indent=4) + '\\n' }}{% endfor %}
{%- endif %}
{{- message.content + '</u>' }}
{%- elif message.role == 'assistant' %}
{{- '<a>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '{"name": "' + call.function.name + '", "parameters": ' + call.function.arguments | tojson + '}' }}
{{- '' if loop.last else '\\n' }}
{%- endfor %}
{{- '</a>' }}
{%- else %}{{ '<o>' + message.content + '</o>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<a>' }}{% endif %}
""",
    end="</a>",
    one='{"name": "get_weather", "parameters": {"city": "Lisbon", "days": 3}}',
    two='{"name": "get_weather", "parameters": {"city": "Lisbon", "days": 3}}\n'
    '{"name": "get_weather", "parameters": {"city": "Oporto", "days": 1}}',
    lacks=frozenset({"text and call"}),
)

BULLETS: Final = MadeUp(
    name="bullets",
    kind="Markdown bullets for the call and its arguments",
    source="""\
{%- for message in messages %}
{{- '**' + message.role + '**\\n' }}
{%- if message.role == 'system' and tools or loop.first and tools %}
{%- for tool in tools %}
{{- '* `' + tool.function.name + '` ' + tool.function.parameters | tojson + '\\n' }}
{%- endfor %}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n- **call** ' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}
{{- '\\n  - ' + key + ': ' + value | tojson }}
{%- endfor %}
{%- endfor %}
{{- '\\n---\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '**assistant**\\n' }}{% endif %}
""",
    end="\n---\n",
    has_end=False,  # a line of text, too
    one='\n- **call** get_weather\n  - city: "Lisbon"\n  - days: 3',
    two='\n- **call** get_weather\n  - city: "Lisbon"\n  - days: 3'
    '\n- **call** get_weather\n  - city: "Oporto"\n  - days: 1',
)

KEYS_AS_TAGS: Final = MadeUp(
    name="keys-as-tags",
    kind="the parameter's name is the tag of its value",
    source="""\
{%- for message in messages %}
{%- if message.role == 'system' %}{{ '<S>' + message.content + '</S>' }}
{%- elif message.role == 'user' %}{{ '<U>' + message.content + '</U>' }}
{%- elif message.role == 'tool' %}{{ '<T>' + message.content + '</T>' }}
{%- else %}
{{- '<A>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<use name="' + call.function.name + '">\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<' + key + '>' }}
{%- if value is mapping or value is sequence and value is not string %}{{ value | tojson }}
{%- elif value is string %}{{ value }}
{%- else %}{{ value | tojson }}
{%- endif %}
{{- '</' + key + '>\\n' }}
{%- endfor %}
{{- '</use>' }}
{%- endfor %}
{{- '</A>' }}
{%- endif %}
{%- if loop.first and tools %}{{ '<tools>' + tools | tojson + '</tools>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<A>' }}{% endif %}
""",
    end="</A>",
    one='<use name="get_weather">\n<city>Lisbon</city>\n<days>3</days>\n</use>',
    two='<use name="get_weather">\n<city>Lisbon</city>\n<days>3</days>\n</use>'
    '<use name="get_weather">\n<city>Oporto</city>\n<days>1</days>\n</use>',
)

ONE_TOKEN: Final = MadeUp(
    name="one-token",
    kind="a control token before each call and nothing after it",
    source="""\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ '<|SYSTEM|>' + message.content }}
{%- elif message.role == 'user' -%}{{ '<|USER|>' + message.content }}
{%- elif message.role == 'tool' -%}{{ '<|TOOL|>' + message.content }}
{%- elif message.role == 'assistant' -%}
{{ '<|BOT|>' + message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '<|TOOL_CALL|>' + {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
{%- endfor -%}
{%- else -%}{{ raise_exception('No such role: ' + message.role) }}
{%- endif -%}
{{ '<|EOT|>' }}
{%- if loop.first and tools -%}{{ '<|TOOLS|>' + tools | tojson + '<|EOT|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|BOT|>' }}{%- endif -%}
""",
    end="<|EOT|>",
    one='<|TOOL_CALL|>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}',
    two='<|TOOL_CALL|>{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}'
    '<|TOOL_CALL|>{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}',
    controls=("<|TOOL_CALL|>", "<|EOT|>"),
)

BANG: Final = MadeUp(
    name="bang",
    kind="a call is a line that begins with an exclamation mark",
    source="""\
{%- for message in messages %}
{{- '@' + message.role + ': ' }}
{%- if loop.first and tools %}
{{- 'Write !NAME JSON on a line to call one of these: ' + tools | tojson + '\\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '' if loop.first and not message.content else '\\n' }}
{{- '!' + call.function.name + ' ' + call.function.arguments | tojson }}
{%- endfor %}
{{- '\\n@end\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '@assistant: ' }}{% endif %}
""",
    end="\n@end\n",
    one='!get_weather {"city": "Lisbon", "days": 3}',
    two='!get_weather {"city": "Lisbon", "days": 3}\n!get_weather {"city": "Oporto", "days": 1}',
)

TYPED: Final = MadeUp(
    name="typed",
    kind="each argument with its type",
    source="""\
{%- macro kind(value) -%}
{%- if value is string %}string{% elif value is none %}null{% elif value is boolean %}boolean
{%- elif value is integer %}integer{% elif value is number %}number{% elif value is mapping %}object
{%- else %}array{% endif -%}
{%- endmacro -%}
{%- for message in messages %}
{{- '<msg from="' + message.role + '">' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<invoke name="' + call.function.name + '">\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<arg name="' + key + '" type="' + kind(value) + '">' }}
{{- (value if value is string else value | tojson) + '</arg>\\n' }}
{%- endfor %}
{{- '</invoke>' }}
{%- endfor %}
{{- '</msg>\\n' }}
{%- if loop.first and tools %}{{ '<msg from="tools">' + tools | tojson + '</msg>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<msg from="assistant">' }}{% endif %}
""",
    end="</msg>",
    one='<invoke name="get_weather">\n<arg name="city" type="string">Lisbon</arg>\n'
    '<arg name="days" type="integer">3</arg>\n</invoke>',
    two='<invoke name="get_weather">\n<arg name="city" type="string">Lisbon</arg>\n'
    '<arg name="days" type="integer">3</arg>\n</invoke>'
    '<invoke name="get_weather">\n<arg name="city" type="string">Oporto</arg>\n'
    '<arg name="days" type="integer">1</arg>\n</invoke>',
)

OPENED: Final = MadeUp(
    name="opened",
    kind="the prompt begins the thought, unless the switch is off",
    source="""\
{%- if tools or messages[0].role == 'system' %}
{{- '<|rules|>\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{%- for tool in tools or [] %}{{ tool | tojson + '\\n' }}{% endfor %}
{{- '<|close|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
{{- '<|' + message.role + '|>\\n' }}
{%- if message.role == 'assistant' and message.reasoning_content %}
{{- '<reflect>\\n' + message.reasoning_content | trim + '\\n</reflect>\\n\\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<call>\\n' + {"name": call.function.name, "arguments": call.function.arguments} | tojson + '\\n</call>' }}
{%- endfor %}
{{- '<|close|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n<reflect>\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '\\n</reflect>\\n\\n' }}{% endif %}
{%- endif %}
""",
    end="<|close|>",
    one='Hm.\n</reflect>\n\n\n<call>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</call>',
    two='Hm.\n</reflect>\n\n\n<call>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</call>'
    '\n<call>\n{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}\n</call>',
    thought="Hm.\n</reflect>\n\nSunny.",
    opens=True,
    controls=("<|close|>",),
)

TEXT_ARGUMENTS: Final = MadeUp(
    name="text-arguments",
    kind="needs the arguments as JSON text, and raises on roles it does not know",
    source="""\
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('Only system, user, assistant and tool are supported, not ' + message.role) }}
{%- endif %}
{%- if message.role == 'system' and not loop.first %}{{ raise_exception('The system message comes first.') }}{% endif %}
{{- '@@' + message.role + '\\n' + message.content }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '@@call {"name": "' + call.function.name + '", "arguments": ' + call.function.arguments + '}@@end' }}
{%- endfor %}
{%- endif %}
{{- '@@over\\n' }}
{%- if loop.first and tools %}{{ '@@tools\\n' + tools | tojson + '@@over\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '@@assistant\\n' }}{% endif %}
""",
    end="@@over",
    one='@@call {"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}@@end',
    two='@@call {"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}@@end'
    '@@call {"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}@@end',
    takes_text=True,
)

NO_TOOLS: Final = MadeUp(
    name="no-tools",
    kind="knows neither tools nor calls",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|over|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
""",
    end="<|over|>",
    in_words=True,
)

DROPPED: Final = MadeUp(
    name="dropped",
    kind="lists tools and drops calls",
    source="""\
{%- if tools %}{{ '<tools>' + tools | tojson + '</tools>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role in ['system', 'user', 'assistant'] %}
{{- '<' + message.role + '>' + message.content + '<end>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
""",
    end="<end>",
    in_words=True,
)

REPR: Final = MadeUp(
    name="repr",
    kind="writes calls as Python writes a list",
    source="""\
{%- if tools %}{{ '<<tools>>' ~ tools ~ '<<over>>' }}{% endif %}
{%- for message in messages %}
{{- '<<' + message.role + '>>' + message.content }}
{%- if message.tool_calls %}{{ '<<calls>>' ~ message.tool_calls }}{% endif %}
{{- '<<over>>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<<assistant>>' }}{% endif %}
""",
    end="<<over>>",
    in_words=True,
)

KINDS: Final = (
    *(BRACKETS, HEADINGS, YAML, NAME_AS_KEY, ONE_LIST, ARGUMENTS_FIRST, FENCED, NAME_AND_ARGUMENTS, ATTRIBUTES),
    *(NUMBERED, PIPES, SECTION, KEYS_AND_VALUES, IDS, WRAPPER, JSON_IN_JSON, NESTED, BARE, BULLETS, KEYS_AS_TAGS),
    *(ONE_TOKEN, BANG, TYPED, OPENED, TEXT_ARGUMENTS),
)
IN_WORDS: Final = (NO_TOOLS, DROPPED, REPR)
