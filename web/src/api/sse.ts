// Server-sent events over fetch: EventSource cannot send a key.
import { ApiError, request, type RequestOptions } from "./http.ts";

/** Splits a stream of text into the data of its events. Other fields are left out. */
export class EventParser {
  #rest = "";
  #data: string[] = [];
  readonly #onComment: (text: string) => void;

  constructor(onComment: (text: string) => void = () => undefined) {
    this.#onComment = onComment;
  }

  /** The data of the events that end in this part of the stream. */
  push(text: string): string[] {
    const events: string[] = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?=[^\n])/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line.startsWith(":")) {
        this.#onComment(line.slice(1).trim());
      }
    }
    return events;
  }
}

export interface EventOptions extends RequestOptions {
  /** Gets the text of each comment. */
  onComment?: (text: string) => void;
}

/** The events of a stream as batches: the data of all that arrived together. Throws as `request` does. */
export async function* eventBatches(path: string, options: EventOptions = {}): AsyncGenerator<string[]> {
  const response = await request(path, options);
  if (response.body === null) return;
  const parser = new EventParser(options.onComment);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await read(reader, options.signal);
      if (done) return;
      const events = parser.push(value);
      if (events.length > 0) yield events;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

async function read(
  reader: ReadableStreamDefaultReader<string>,
  signal: AbortSignal | undefined,
): Promise<ReadableStreamReadResult<string>> {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted === true) throw error;
    throw new ApiError(0, "The connection to the server was lost.");
  }
}
