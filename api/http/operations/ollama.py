"""Ollama's API."""

from typing import Final

from api.http.operation import GENERATES, Operation, Scope
from api.protocols.ollama import answer as ollama
from api.protocols.ollama import embeddings as ollama_embeddings
from api.protocols.ollama import models as ollama_models
from api.protocols.ollama import types as ollama_answers
from api.protocols.ollama.request import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)

OLLAMA: Final = (
    Operation(
        "ollama_chat",
        "POST",
        "/api/chat",
        "The model's answer to a conversation, in Ollama's format",
        ollama.chat,
        ollama_answers.OllamaChatAnswer,
        OllamaChatRequest,
        chunk=ollama_answers.OllamaChatAnswer,
        streams_lines=True,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_generate",
        "POST",
        "/api/generate",
        "The model's answer to a prompt, in Ollama's format",
        ollama.generate,
        ollama_answers.OllamaGenerateAnswer,
        OllamaGenerateRequest,
        chunk=ollama_answers.OllamaGenerateAnswer,
        streams_lines=True,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_embed",
        "POST",
        "/api/embed",
        "An embedding for each text, in Ollama's format",
        ollama_embeddings.embed,
        ollama_answers.OllamaEmbeddings,
        OllamaEmbedRequest,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_embeddings",
        "POST",
        "/api/embeddings",
        "The embedding of one text, in Ollama's older format",
        ollama_embeddings.embed_one,
        ollama_answers.OllamaEmbedding,
        OllamaEmbeddingsRequest,
        errors=GENERATES,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_tags",
        "GET",
        "/api/tags",
        "The models that are being served, in Ollama's format",
        ollama_models.tags,
        ollama_answers.OllamaModels,
        scope=Scope.PUBLIC,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_show",
        "POST",
        "/api/show",
        "What a model's file says and what the model can do, in Ollama's format",
        ollama_models.show,
        ollama_answers.OllamaModelInfo,
        OllamaShowRequest,
        errors=(400, 404, 413),
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_ps",
        "GET",
        "/api/ps",
        "The models that are in memory, in Ollama's format",
        ollama_models.ps,
        ollama_answers.OllamaLoadedModels,
        error=ollama_answers.OllamaError,
    ),
    Operation(
        "ollama_version",
        "GET",
        "/api/version",
        "The version of Ollama whose API the server follows",
        ollama_models.version,
        ollama_answers.OllamaVersion,
        scope=Scope.PUBLIC,
        error=ollama_answers.OllamaError,
    ),
)
