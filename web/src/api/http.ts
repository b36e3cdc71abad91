// Requests to the server, with the key, and its errors.
import { readKey } from "./key.ts";

/** A request that the server refused, or that did not reach it (status 0). The message is for the user. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }

  /** Whether the server wants another key. */
  get needsKey(): boolean {
    return this.status === 401;
  }
}

export interface RequestOptions {
  /** Sent as JSON, by POST. */
  body?: unknown;
  signal?: AbortSignal;
}

/** The response to a request. Throws ApiError, or AbortError when `signal` is aborted. */
export async function request(path: string, options: RequestOptions = {}): Promise<Response> {
  const headers = new Headers();
  const key = readKey();
  if (key !== "") headers.set("Authorization", `Bearer ${key}`);
  const init: RequestInit = { headers, credentials: "omit", cache: "no-store", signal: options.signal ?? null };
  if (options.body !== undefined) {
    headers.set("Content-Type", "application/json");
    init.method = "POST";
    init.body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (options.signal?.aborted === true) throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (!response.ok) throw new ApiError(response.status, await messageOf(response));
  return response;
}

async function messageOf(response: Response): Promise<string> {
  const text = await response.text().catch(() => "");
  try {
    const message = errorMessage(JSON.parse(text));
    if (message !== null) return message;
  } catch {
    // A proxy's error is no JSON.
  }
  return `The server answered with status ${response.status}.`;
}

/** The message of an error as OpenAI's API writes it; null for anything else. */
export function errorMessage(body: unknown): string | null {
  if (typeof body !== "object" || body === null || !("error" in body)) return null;
  const { error } = body;
  if (typeof error !== "object" || error === null || !("message" in error)) return null;
  return typeof error.message === "string" ? error.message : null;
}
