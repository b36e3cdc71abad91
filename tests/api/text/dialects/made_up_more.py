"""More chat templates of no known family: other mixtures, and habits of real templates."""

from typing import Final

from tests.api.text.dialects.made_up import MadeUp

EVERYTHING: Final = MadeUp(
    name="everything",
    kind="control tokens around thoughts, text, all calls and each call",
    source="""\
{{- bos_token }}
{%- for message in messages %}
{{- '<|turn|>' + message.role + '<|sep|>' }}
{%- if loop.first and tools %}{{ '<|functions|>' + tools | tojson + '<|/functions|>' }}{% endif %}
{%- if message.role == 'assistant' %}
{%- if message.reasoning_content %}{{ '<|deep|>' + message.reasoning_content + '<|/deep|>' }}{% endif %}
{%- if message.tool_calls and message.content %}{{ '<|say|>' + message.content + '<|/say|>' }}
{%- elif not message.tool_calls %}{{ '<|say|>' + message.content + '<|/say|>' }}{% endif %}
{%- if message.tool_calls %}
{{- '<|acts|>' }}
{%- for call in message.tool_calls %}
{{- '<|act|>' + call.function.name + '<|with|>' + call.function.arguments | tojson + '<|/act|>' }}
{%- endfor %}
{{- '<|/acts|>' }}
{%- endif %}
{%- else %}{{ message.content }}
{%- endif %}
{{- '<|/turn|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant<|sep|>' }}{% endif %}
""",
    end="<|/turn|>",
    one='<|acts|><|act|>get_weather<|with|>{"city": "Lisbon", "days": 3}<|/act|><|/acts|>',
    two='<|acts|><|act|>get_weather<|with|>{"city": "Lisbon", "days": 3}<|/act|>'
    '<|act|>get_weather<|with|>{"city": "Oporto", "days": 1}<|/act|><|/acts|>',
    thought="<|deep|>Hm.<|/deep|><|say|>Sunny.<|/say|>",
    controls=("<|deep|>", "<|/deep|>", "<|acts|>", "<|/acts|>", "<|/turn|>"),
)

FROM_ONE: Final = MadeUp(
    name="numbered-from-1",
    kind="the number of a call in both of its marks, from 1",
    source="""\
{%- for message in messages %}
{{- '== ' + message.role + ' ==\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[call ' ~ loop.index ~ '] ' ~ call.function.name ~ ' ' ~ (call.function.arguments | tojson) }}
{{- ' [/call ' ~ loop.index ~ ']' }}
{%- endfor %}
{{- '\\n== end ==\\n' }}
{%- if loop.first and tools %}{{ '== tools ==\\n' + tools | tojson + '\\n== end ==\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '== assistant ==\\n' }}{% endif %}
""",
    end="\n== end ==\n",
    one='[call 1] get_weather {"city": "Lisbon", "days": 3} [/call 1]',
    two='[call 1] get_weather {"city": "Lisbon", "days": 3} [/call 1]'
    '[call 2] get_weather {"city": "Oporto", "days": 1} [/call 2]',
)

COLON: Final = MadeUp(
    name="colon",
    kind="the name behind the mark, the arguments behind a colon",
    source="""\
{%- if tools %}
{{- '<|decl|>' }}{% for tool in tools %}{{ tool.function | tojson }}{% endfor %}{{ '<|done|>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|bot|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|tool|>' + call.function.name + ': ' + call.function.arguments | tojson }}
{%- endfor %}
{%- else %}
{{- '<|' + message.role + '|>' + message.content }}
{%- endif %}
{{- '<|done|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}
""",
    end="<|done|>",
    one='<|tool|>get_weather: {"city": "Lisbon", "days": 3}',
    two='<|tool|>get_weather: {"city": "Lisbon", "days": 3}<|tool|>get_weather: {"city": "Oporto", "days": 1}',
    controls=("<|tool|>", "<|done|>"),
)

NAME_IN_MARK: Final = MadeUp(
    name="name-in-mark",
    kind="the name inside the mark",
    source="""\
{%- for message in messages %}
{{- '<<' + message.role + '>>\\n' }}
{%- if loop.first and tools %}{{ tools | tojson + '\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|tool:' + call.function.name + '|>' + call.function.arguments | tojson + '<|/tool|>' }}
{%- endfor %}
{{- '\\n<<over>>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<<assistant>>\\n' }}{% endif %}
""",
    end="\n<<over>>\n",
    one='<|tool:get_weather|>{"city": "Lisbon", "days": 3}<|/tool|>',
    two='<|tool:get_weather|>{"city": "Lisbon", "days": 3}<|/tool|>'
    '<|tool:get_weather|>{"city": "Oporto", "days": 1}<|/tool|>',
)

KEY_VALUE_LINES: Final = MadeUp(
    name="key-value-lines",
    kind="key=value on lines, values as JSON",
    source="""\
{%- for message in messages %}
{{- '<' + message.role + '>\\n' }}
{%- if loop.first and tools %}
{%- for tool in tools %}
{{- 'tool ' + tool.function.name + ' ' + tool.function.parameters.properties | tojson + '\\n' }}
{%- endfor %}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<run>\\n' + call.function.name + '\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- key + '=' + value | tojson + '\\n' }}
{%- endfor %}
{{- '</run>\\n' }}
{%- endfor %}
{{- '<end>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}
""",
    end="<end>",
    one='<run>\nget_weather\ncity="Lisbon"\ndays=3\n</run>\n',
    two='<run>\nget_weather\ncity="Lisbon"\ndays=3\n</run>\n<run>\nget_weather\ncity="Oporto"\ndays=1\n</run>\n',
)

MACRO: Final = MadeUp(
    name="macro",
    kind="arguments with bare keys, written by a macro with loop.index0",
    source="""\
{%- macro pairs(arguments) -%}
{%- for key, value in arguments.items() -%}
{{ ', ' if loop.index0 > 0 }}{{ key }}: {{ value | tojson }}
{%- endfor -%}
{%- endmacro -%}
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{%- if loop.index0 > 0 %}{{ '\\n' }}{% endif %}
{{- '<|fn|>' + call.function.name + '{' + pairs(call.function.arguments) + '}<|/fn|>' }}
{%- endfor %}
{{- '<|eos|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson + '<|eos|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|eos|>",
    one='<|fn|>get_weather{city: "Lisbon", days: 3}<|/fn|>',
    two='<|fn|>get_weather{city: "Lisbon", days: 3}<|/fn|>\n<|fn|>get_weather{city: "Oporto", days: 1}<|/fn|>',
    controls=("<|fn|>", "<|/fn|>", "<|eos|>"),
)

TRAILING_LINE: Final = MadeUp(
    name="trailing-line",
    kind="a new line behind the calls and before the end of the turn, and one behind the text",
    source="""\
{%- if tools %}{{ '[sys]\\n' + tools | tojson + '\\n[done]\\n' }}{% endif %}
{%- for message in messages %}
{{- '[' + message.role + ']\\n' }}
{%- if message.content %}{{ message.content + '\\n' }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<go>\\n' + {"name": call.function.name, "arguments": call.function.arguments} | tojson + '\\n</go>\\n' }}
{%- endfor %}
{{- '[done]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}
""",
    end="[done]",
    one='<go>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</go>\n',
    two='<go>\n{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}\n</go>\n'
    '<go>\n{"name": "get_weather", "arguments": {"city": "Oporto", "days": 1}}\n</go>\n',
)

WITH_RESULT: Final = MadeUp(
    name="with-result",
    kind="a call is only written if its result follows",
    source="""\
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{%- if not loop.last and messages[loop.index0 + 1].role == 'tool' %}
{{- '<bot>' + message.content }}
{%- for call in message.tool_calls %}
{{- '<need>' + call.function.name + '<of>' + call.function.arguments | tojson + '</need>' }}
{%- endfor %}
{{- '<over>' }}
{%- endif %}
{%- elif message.role == 'assistant' %}{{ '<bot>' + message.content + '<over>' }}
{%- else %}{{ '<' + message.role + '>' + message.content + '<over>' }}
{%- endif %}
{%- if loop.first and tools %}{{ '<tools>' + tools | tojson + '<over>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<bot>' }}{% endif %}
""",
    end="<over>",
    one='<need>get_weather<of>{"city": "Lisbon", "days": 3}</need>',
    two='<need>get_weather<of>{"city": "Lisbon", "days": 3}</need>'
    '<need>get_weather<of>{"city": "Oporto", "days": 1}</need>',
)

COMPACT: Final = MadeUp(
    name="compact",
    kind="JSON without any space",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<fc>{"name":"' + call.function.name + '","arguments":' }}
{{- call.function.arguments | tojson(separators=(',', ':')) + '}</fc>' }}
{%- endfor %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson(separators=(',', ':')) + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<fc>{"name":"get_weather","arguments":{"city":"Lisbon","days":3}}</fc>',
    two='<fc>{"name":"get_weather","arguments":{"city":"Lisbon","days":3}}</fc>'
    '<fc>{"name":"get_weather","arguments":{"city":"Oporto","days":1}}</fc>',
)

WHOLE_OBJECT: Final = MadeUp(
    name="whole-object",
    kind="the whole call of the message as JSON, with its id; ids of 9 letters only",
    source="""\
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{{- '<b>' + message.content }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('The id of a call must have 9 characters.') }}{% endif %}
{{- '<tc>' + call | tojson + '</tc>' }}
{%- endfor %}
{{- '<e>' }}
{%- elif message.role == 'assistant' %}{{ '<b>' + message.content + '<e>' }}
{%- else %}
{%- if message.role == 'user' and tools and (loop.last or messages[loop.index0 + 1].role == 'assistant') %}
{{- '<t>' + tools | tojson + '<e>' }}
{%- endif %}
{{- '<' + message.role + '>' + message.content + '<e>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<b>' }}{% endif %}
""",
    end="<e>",
    one='<tc>{"id": "callab12C", "type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Lisbon", "days": 3}}}</tc>',
    two='<tc>{"id": "callab12C", "type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Lisbon", "days": 3}}}</tc>'
    '<tc>{"id": "callef34G", "type": "function", "function": {"name": "get_weather", '
    '"arguments": {"city": "Oporto", "days": 1}}}</tc>',
)

INDENTED: Final = MadeUp(
    name="indented",
    kind="JSON over several lines",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n~~~tool\\n' + {"function": call.function.name, "parameters": call.function.arguments} | tojson(indent=2) }}
{{- '\\n~~~' }}
{%- endfor %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson(indent=2) + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='\n~~~tool\n{\n  "function": "get_weather",\n  "parameters": {\n'
    '    "city": "Lisbon",\n    "days": 3\n  }\n}\n~~~',
    two='\n~~~tool\n{\n  "function": "get_weather",\n  "parameters": {\n'
    '    "city": "Lisbon",\n    "days": 3\n  }\n}\n~~~'
    '\n~~~tool\n{\n  "function": "get_weather",\n  "parameters": {\n'
    '    "city": "Oporto",\n    "days": 1\n  }\n}\n~~~',
)

ALL_TAGS: Final = MadeUp(
    name="all-tags",
    kind="names and keys as tags, objects and lists as tags too; a mark of thoughts with an attribute",
    source="""\
{%- macro tagged(value) -%}
{%- if value is mapping -%}
{%- for key, item in value.items() -%}<{{ key }}>{{ tagged(item) }}</{{ key }}>{%- endfor -%}
{%- elif value is sequence and value is not string -%}
{%- for item in value -%}<item>{{ tagged(item) }}</item>{%- endfor -%}
{%- elif value is string -%}{{ value }}
{%- else -%}{{ value | tojson }}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
{{- '<' + message.role + '>' }}
{%- if loop.first and tools %}{{ '<tools>' + tools | tojson + '</tools>' }}{% endif %}
{%- if message.reasoning_content %}{{ '<thought kind="own">' + message.reasoning_content + '</thought>' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<invoke><' + call.function.name + '>' + tagged(call.function.arguments) }}
{{- '</' + call.function.name + '></invoke>' }}
{%- endfor %}
{{- '</' + message.role + '>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}
""",
    end="</assistant>",
    one="<invoke><get_weather><city>Lisbon</city><days>3</days></get_weather></invoke>",
    two="<invoke><get_weather><city>Lisbon</city><days>3</days></get_weather></invoke>"
    "<invoke><get_weather><city>Oporto</city><days>1</days></get_weather></invoke>",
    thought='<thought kind="own">Hm.</thought>Sunny.',
    lacks=frozenset({"empty list and object"}),
)

PYTHON_WORDS: Final = MadeUp(
    name="python-words",
    kind="values as Jinja prints them: True and None; lists and objects as JSON",
    source="""\
{%- for message in messages %}
{{- '<|im|>' + message.role + '\\n' }}
{%- if loop.first and tools %}{{ '<tools>\\n' + tools | tojson + '\\n</tools>\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{%- if loop.first and not message.content %}{{ '<do>\\n' }}{% else %}{{ '\\n<do>\\n' }}{% endif %}
{{- '<what=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<with=' + key + '>\\n' }}
{%- set value = value | tojson if value is mapping or (value is sequence and value is not string) else value | string %}
{{- value + '\\n</with>\\n' }}
{%- endfor %}
{{- '</what>\\n</do>' }}
{%- endfor %}
{{- '<|/im|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im|>assistant\\n' }}{% endif %}
""",
    end="<|/im|>",
    one="<do>\n<what=get_weather>\n<with=city>\nLisbon\n</with>\n<with=days>\n3\n</with>\n</what>\n</do>",
    two="<do>\n<what=get_weather>\n<with=city>\nLisbon\n</with>\n<with=days>\n3\n</with>\n</what>\n</do>\n"
    "<do>\n<what=get_weather>\n<with=city>\nOporto\n</with>\n<with=days>\n1\n</with>\n</what>\n</do>",
    controls=("<|im|>", "<|/im|>"),
)

PYTHON_LIST: Final = MadeUp(
    name="python-list",
    kind="all calls in one list of Python calls",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- if message.tool_calls %}
{{- '<|py|>[' }}
{%- for call in message.tool_calls %}
{{- call.function.name + '(' }}
{%- for key, value in call.function.arguments.items() %}
{{- key + '=' + (value | tojson if value is string else value | string) + ('' if loop.last else ', ') }}
{%- endfor %}
{{- ')' + ('' if loop.last else ', ') }}
{%- endfor %}
{{- ']<|/py|>' }}
{%- endif %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<|py|>[get_weather(city="Lisbon", days=3)]<|/py|>',
    two='<|py|>[get_weather(city="Lisbon", days=3), get_weather(city="Oporto", days=1)]<|/py|>',
    controls=("<|py|>", "<|/py|>", "<|fin|>"),
)

OTHER_KEY: Final = MadeUp(
    name="other-key",
    kind="reads the thoughts from `thinking`, and only those of the last turn",
    source="""\
{%- set ns = namespace(last=0) %}
{%- for message in messages if message.role == 'user' %}{% set ns.last = ns.last + 1 %}{% endfor %}
{%- set seen = namespace(users=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}
{{- '<|h|>' + message.role + '<|/h|>\\n' }}
{%- if message.role == 'assistant' and message.thinking and seen.users == ns.last %}
{{- '<|mull|>' + message.thinking + '<|/mull|>' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|use|>' + {"tool_name": call.function.name, "parameters": call.function.arguments} | tojson + '<|/use|>' }}
{%- endfor %}
{{- '<|stop|>\\n' }}
{%- if loop.first and tools %}{{ '<|h|>tools<|/h|>\\n' + tools | tojson + '<|stop|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\\n' }}{% endif %}
""",
    end="<|stop|>",
    one='<|use|>{"tool_name": "get_weather", "parameters": {"city": "Lisbon", "days": 3}}<|/use|>',
    two='<|use|>{"tool_name": "get_weather", "parameters": {"city": "Lisbon", "days": 3}}<|/use|>'
    '<|use|>{"tool_name": "get_weather", "parameters": {"city": "Oporto", "days": 1}}<|/use|>',
    thought="<|mull|>Hm.<|/mull|>Sunny.",
    reasoning_key="thinking",
    controls=("<|mull|>", "<|/mull|>", "<|use|>", "<|/use|>", "<|stop|>"),
)

OTHER_SWITCH: Final = MadeUp(
    name="other-switch",
    kind="the prompt ends with the closing mark of thoughts, or with the opening one if `reason_first` is true",
    source="""\
{%- set reason_first = reason_first | default(false) %}
{{- bos_token }}
{%- if tools %}{{ 'TOOLS: ' + tools | tojson + '\\n\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- 'Model: ' }}
{%- if message.reasoning_content %}{{ '<r>' + message.reasoning_content }}{% endif %}
{{- '</r>' + message.content }}
{%- if message.tool_calls %}
{{- '{{calls' }}
{%- for call in message.tool_calls %}
{{- ' #' + call.function.name + '#' + call.function.arguments | tojson }}
{%- endfor %}
{{- ' calls}}' }}
{%- endif %}
{{- '<x>\\n' }}
{%- else %}{{ message.role | capitalize + ': ' + message.content + '<x>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Model: ' + ('<r>' if reason_first else '</r>') }}{% endif %}
""",
    end="<x>",
    one='Hm.</r>{{calls #get_weather#{"city": "Lisbon", "days": 3} calls}}',
    two='Hm.</r>{{calls #get_weather#{"city": "Lisbon", "days": 3} #get_weather#{"city": "Oporto", "days": 1} calls}}',
    thought="Hm.</r>Sunny.",
    opens=True,
    switch="reason_first",
)

APPENDS: Final = MadeUp(
    name="appends",
    kind="collects the calls in a list of its own, with `append`",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- if message.tool_calls %}
{%- set lines = [] %}
{%- for call in message.tool_calls %}
{%- set _ = lines.append(call.function.name ~ ' <- ' ~ (call.function.arguments | tojson)) %}
{%- endfor %}
{{- '<ops>\\n' + lines | join('\\n') + '\\n</ops>' }}
{%- endif %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<ops>\nget_weather <- {"city": "Lisbon", "days": 3}\n</ops>',
    two='<ops>\nget_weather <- {"city": "Lisbon", "days": 3}\nget_weather <- {"city": "Oporto", "days": 1}\n</ops>',
)

NAME_BEHIND_EQUALS: Final = MadeUp(
    name="name-behind-equals",
    kind="a tag with the name behind an equals sign, and JSON inside; tools in the first message of the user",
    source="""\
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<human>\\n' }}
{%- if tools and loop.index0 == (1 if messages[0].role == 'system' else 0) %}
{{- 'Here are functions:\\n' }}
{%- for tool in tools %}{{ 'Use ' + tool.function.name + ': ' + tool.function | tojson + '\\n' }}{% endfor %}
{%- endif %}
{{- message.content + '\\n</human>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<machine>\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<f=' + call.function.name + '>' + call.function.arguments | tojson + '</f>\\n' }}
{%- endfor %}
{{- '</machine>\\n' }}
{%- else %}{{ '<' + message.role + '>\\n' + message.content + '\\n</' + message.role + '>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<machine>\\n' }}{% endif %}
""",
    end="</machine>",
    one='<f=get_weather>{"city": "Lisbon", "days": 3}</f>\n',
    two='<f=get_weather>{"city": "Lisbon", "days": 3}</f>\n<f=get_weather>{"city": "Oporto", "days": 1}</f>\n',
)

WHOLE_XML: Final = MadeUp(
    name="whole-xml",
    kind="tags for everything, with indents",
    source="""\
{%- for message in messages %}
{{- '<message role="' + message.role + '">\\n' + message.content }}
{%- if message.tool_calls %}
{{- '<calls>\\n' }}
{%- for call in message.tool_calls %}
{{- '  <call>\\n    <name>' + call.function.name + '</name>\\n    <arguments>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '      <' + key + '>' + (value if value is string else value | tojson) + '</' + key + '>\\n' }}
{%- endfor %}
{{- '    </arguments>\\n  </call>\\n' }}
{%- endfor %}
{{- '</calls>' }}
{%- endif %}
{{- '\\n</message>\\n' }}
{%- if loop.first and tools %}{{ '<tools>\\n' + tools | tojson + '\\n</tools>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<message role="assistant">\\n' }}{% endif %}
""",
    end="\n</message>",
    one="<calls>\n  <call>\n    <name>get_weather</name>\n    <arguments>\n      <city>Lisbon</city>\n"
    "      <days>3</days>\n    </arguments>\n  </call>\n</calls>",
    two="<calls>\n  <call>\n    <name>get_weather</name>\n    <arguments>\n      <city>Lisbon</city>\n"
    "      <days>3</days>\n    </arguments>\n  </call>\n"
    "  <call>\n    <name>get_weather</name>\n    <arguments>\n      <city>Oporto</city>\n"
    "      <days>1</days>\n    </arguments>\n  </call>\n</calls>",
)

LIST_OF_ARGUMENTS: Final = MadeUp(
    name="list-of-arguments",
    kind="a JSON list of keys and values",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|op|>{"tool": "' + call.function.name + '", "args": [' }}
{%- for key, value in call.function.arguments.items() %}
{{- '{"key": "' + key + '", "value": ' + value | tojson + '}' + ('' if loop.last else ', ') }}
{%- endfor %}
{{- ']}<|/op|>' }}
{%- endfor %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<|op|>{"tool": "get_weather", "args": [{"key": "city", "value": "Lisbon"}, '
    '{"key": "days", "value": 3}]}<|/op|>',
    two='<|op|>{"tool": "get_weather", "args": [{"key": "city", "value": "Lisbon"}, '
    '{"key": "days", "value": 3}]}<|/op|>'
    '<|op|>{"tool": "get_weather", "args": [{"key": "city", "value": "Oporto"}, '
    '{"key": "days", "value": 1}]}<|/op|>',
)

LISP: Final = MadeUp(
    name="lisp",
    kind="keywords with colons in parentheses",
    source="""\
{%- for message in messages %}
{{- ';; ' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n(call ' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}{{ ' :' + key + ' ' + value | tojson }}{% endfor %}
{{- ')' }}
{%- endfor %}
{{- '\\n;; done\\n' }}
{%- if loop.first and tools %}{{ ';; tools\\n' + tools | tojson + '\\n;; done\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ';; assistant\\n' }}{% endif %}
""",
    end="\n;; done\n",
    one='\n(call get_weather :city "Lisbon" :days 3)',
    two='\n(call get_weather :city "Lisbon" :days 3)\n(call get_weather :city "Oporto" :days 1)',
)

PARENTHESES: Final = MadeUp(
    name="parentheses",
    kind="a JSON object as the only argument of a function in a namespace",
    source="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|to|>functions.' + call.function.name + '(' + call.function.arguments | tojson + ')' }}
{%- endfor %}
{{- '<|fin|>' }}
{%- if loop.first and tools %}{{ '<|tools|>' + tools | tojson + '<|fin|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
""",
    end="<|fin|>",
    one='<|to|>functions.get_weather({"city": "Lisbon", "days": 3})',
    two='<|to|>functions.get_weather({"city": "Lisbon", "days": 3})'
    '<|to|>functions.get_weather({"city": "Oporto", "days": 1})',
    controls=("<|to|>", "<|fin|>"),
)

VARIATIONS: Final = (
    *(EVERYTHING, FROM_ONE, COLON, NAME_IN_MARK, KEY_VALUE_LINES, MACRO, TRAILING_LINE, WITH_RESULT, COMPACT),
    *(WHOLE_OBJECT, INDENTED, ALL_TAGS, PYTHON_WORDS, PYTHON_LIST, OTHER_KEY, OTHER_SWITCH, APPENDS),
    *(NAME_BEHIND_EQUALS, WHOLE_XML, LIST_OF_ARGUMENTS, LISP, PARENTHESES),
)

STRIPPED: Final = MadeUp(
    name="stripped",
    kind="the prompt begins the thought, and the thoughts of earlier answers are cut from their text",
    source="""\
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</thinking>' in content %}
{%- set content = content.split('</thinking>')[-1].lstrip() %}
{%- endif %}
{{- '<|' + message.role + '|>' + content + '<|/end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><thinking>\\n' }}{% endif %}
""",
    end="<|/end|>",
    thought="Hm.\n</thinking>\n\nSunny.",
    opens=True,
    in_words=True,
)
