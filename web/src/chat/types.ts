// A conversation as the browser keeps it.

export interface ToolCall {
  id: string;
  name: string;
  /** JSON, as the model wrote it. */
  arguments: string;
  /** What the user says that the tool returned; null until then. */
  result: string | null;
}

/** Numbers of one answer, for the line below it. */
export interface Stats {
  /** Seconds until the first token reached the browser. */
  firstToken: number | null;
  promptTokens: number | null;
  cachedTokens: number | null;
  answerTokens: number | null;
  tokensPerSecond: number | null;
}

export interface Question {
  role: "user";
  text: string;
}

/** Why an answer ended. A "lost" one was running when its page was closed, or runs in another tab. */
export type Ending = "running" | "stop" | "length" | "tool_calls" | "stopped" | "failed" | "lost";

export interface Answer {
  role: "assistant";
  text: string;
  thoughts: string;
  calls: ToolCall[];
  model: string;
  ending: Ending;
  /** Why it failed; empty otherwise. */
  error: string;
  stats: Stats | null;
}

export type Message = Question | Answer;

/** Empty texts leave the choice to the model and the server. */
export interface Settings {
  system: string;
  temperature: string;
  topP: string;
  topK: string;
  minP: string;
  maxTokens: string;
  seed: string;
  /** "", "none", "low", "medium" or "high" */
  effort: string;
  /** A JSON list of tools in OpenAI's form. */
  tools: string;
}

export interface Conversation {
  id: string;
  /** When its last answer was asked for, in milliseconds since 1970. */
  changedAt: number;
  /** Grows with each change that is kept. */
  version: number;
  /** Empty: the server's first model. */
  model: string;
  settings: Settings;
  messages: Message[];
}

export const NO_SETTINGS: Settings = {
  system: "",
  temperature: "",
  topP: "",
  topK: "",
  minP: "",
  maxTokens: "",
  seed: "",
  effort: "",
  tools: "",
};

export function newAnswer(model: string): Answer {
  return { role: "assistant", text: "", thoughts: "", calls: [], model, ending: "running", error: "", stats: null };
}

const TITLE_LENGTH = 60;

/** What the list of conversations calls this one. */
export function titleOf(conversation: Conversation): string {
  const first = conversation.messages[0];
  const text = first?.role === "user" ? first.text.trim().replace(/\s+/g, " ") : "";
  if (text === "") return "New conversation";
  return text.length <= TITLE_LENGTH ? text : `${text.slice(0, TITLE_LENGTH - 1).trimEnd()}…`;
}
