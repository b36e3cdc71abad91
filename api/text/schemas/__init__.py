"""JSON schemas: what of them can be enforced, and the rules that enforce it."""

from api.text.schemas.compiler import json_rule, laid_out, problem
from api.text.schemas.findings import Schema, SchemaError
from api.text.schemas.keywords import MAX_ALTERNATIVES
from api.text.schemas.rules import RuleCache, schema_rule

__all__ = ["MAX_ALTERNATIVES", "RuleCache", "Schema", "SchemaError", "json_rule", "laid_out", "problem", "schema_rule"]
