// Chat completions: the request of a conversation, and the answer that the events of a stream make.
import { errorMessage } from "../api/http.ts";
import type { Answer, Conversation, Settings, Stats } from "./types.ts";

/** A setting that cannot be sent. The message is for the user. */
export class SettingsError extends Error {}

interface Call {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

export interface WireMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  reasoning_content?: string;
  tool_calls?: Call[];
  tool_call_id?: string;
}

interface NumberField {
  key: keyof Settings;
  field: string;
  title: string;
  min: number;
  max: number;
  isWhole: boolean;
}

/** The settings that are numbers, in the order of the form. */
export const NUMBERS: readonly NumberField[] = [
  { key: "temperature", field: "temperature", title: "Temperature", min: 0, max: 2, isWhole: false },
  { key: "topP", field: "top_p", title: "Top P", min: 0, max: 1, isWhole: false },
  { key: "topK", field: "top_k", title: "Top K", min: 0, max: 1_000_000, isWhole: true },
  { key: "minP", field: "min_p", title: "Min P", min: 0, max: 1, isWhole: false },
  { key: "maxTokens", field: "max_tokens", title: "Max tokens", min: 1, max: 10_000_000, isWhole: true },
  { key: "seed", field: "seed", title: "Seed", min: 0, max: 2 ** 31 - 1, isWhole: true },
];

/** The body of a request for the next answer. Throws SettingsError. */
export function requestBody(conversation: Conversation, model: string): Record<string, unknown> {
  return {
    model,
    messages: wireMessages(conversation),
    stream: true,
    stream_options: { include_usage: true },
    timings_per_token: true, // a stopped answer has no usage, but the timings of its last chunk
    ...settingsFields(conversation.settings),
  };
}

export function wireMessages({ settings, messages }: Conversation): WireMessage[] {
  const wire: WireMessage[] = [];
  if (settings.system.trim() !== "") wire.push({ role: "system", content: settings.system });
  for (const message of messages) {
    if (message.role === "user") {
      addQuestion(wire, message.text);
      continue;
    }
    if (message.text === "" && message.thoughts === "" && message.calls.length === 0) continue;
    const answer: WireMessage = { role: "assistant", content: message.text };
    if (message.thoughts !== "") answer.reasoning_content = message.thoughts;
    if (message.calls.length > 0) {
      answer.tool_calls = message.calls.map((call) => ({
        id: call.id,
        type: "function",
        function: { name: call.name, arguments: call.arguments },
      }));
    }
    wire.push(answer);
    for (const call of message.calls) {
      wire.push({ role: "tool", content: call.result ?? "(no result)", tool_call_id: call.id });
    }
  }
  return wire;
}

/** A question after one without an answer continues that one: many chat templates take no two of them. */
function addQuestion(wire: WireMessage[], text: string): void {
  const last = wire.at(-1);
  if (last?.role === "user") last.content += `\n\n${text}`;
  else wire.push({ role: "user", content: text });
}

function settingsFields(settings: Settings): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const { key, field, title, min, max, isWhole } of NUMBERS) {
    const text = settings[key].trim();
    if (text === "") continue;
    const value = Number(text);
    const kind = isWhole ? "a whole number" : "a number";
    if (Number.isNaN(value) || value < min || value > max || (isWhole && !Number.isInteger(value))) {
      throw new SettingsError(`${title} must be ${kind} from ${min} to ${max}.`);
    }
    fields[field] = value;
  }
  if (settings.effort !== "") fields["reasoning_effort"] = settings.effort;
  if (settings.tools.trim() !== "") fields["tools"] = parsedTools(settings.tools);
  return fields;
}

function parsedTools(text: string): unknown[] {
  let tools: unknown;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new SettingsError(`Tools must be JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (!Array.isArray(tools)) throw new SettingsError("Tools must be a JSON list of tools in OpenAI's form.");
  return tools;
}

interface Chunk {
  choices?: { delta?: Delta; finish_reason?: string | null }[];
  usage?: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details?: { cached_tokens?: number } } | null;
  timings?: { predicted_per_second: number; predicted_n: number; cache_n: number; prompt_n: number };
}

interface Delta {
  content?: string | null;
  reasoning_content?: string | null;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

/** An error that the server sent inside a stream. */
export class StreamError extends Error {}

const NO_STATS: Stats = {
  firstToken: null,
  promptTokens: null,
  cachedTokens: null,
  answerTokens: null,
  tokensPerSecond: null,
};

/** The answer with the news of one event. `seconds`: since the request was sent. Throws StreamError. */
export function advanced(answer: Answer, data: string, seconds: number): Answer {
  if (data === "[DONE]") return answer;
  const chunk = JSON.parse(data) as Chunk;
  const error = errorMessage(chunk);
  if (error !== null) throw new StreamError(error);
  const next = { ...answer, stats: { ...(answer.stats ?? NO_STATS) } };
  for (const { delta, finish_reason: reason } of chunk.choices ?? []) {
    if (delta !== undefined && addDelta(next, delta)) next.stats.firstToken ??= seconds;
    if (reason === "length" || reason === "tool_calls") next.ending = reason;
    else if (typeof reason === "string") next.ending = "stop";
  }
  const { usage, timings } = chunk;
  if (timings !== undefined) {
    next.stats.promptTokens = timings.cache_n + timings.prompt_n;
    next.stats.cachedTokens = timings.cache_n;
    next.stats.answerTokens = timings.predicted_n;
    if (timings.predicted_per_second > 0) next.stats.tokensPerSecond = timings.predicted_per_second;
  }
  if (usage !== undefined && usage !== null) {
    next.stats.promptTokens = usage.prompt_tokens;
    next.stats.answerTokens = usage.completion_tokens;
    next.stats.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? null;
  }
  return next;
}

/** Returns whether the delta had anything of the answer. */
function addDelta(answer: Answer, delta: Delta): boolean {
  answer.text += delta.content ?? "";
  answer.thoughts += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call = answer.calls[part.index] ?? { id: "", name: "", arguments: "", result: null };
    answer.calls = [...answer.calls];
    answer.calls[part.index] = {
      ...call,
      id: part.id ?? call.id,
      name: call.name + (part.function?.name ?? ""),
      arguments: call.arguments + (part.function?.arguments ?? ""),
    };
  }
  return Boolean(delta.content) || Boolean(delta.reasoning_content) || (delta.tool_calls?.length ?? 0) > 0;
}
