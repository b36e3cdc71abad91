// The state of the chat: conversations, the one that is open, and the answers that are running.
import { ApiError } from "../api/http.ts";
import { eventBatches } from "../api/sse.ts";
import { bounded, loadAll, remove, save } from "./storage.ts";
import { newAnswer, NO_SETTINGS, type Answer, type Conversation, type Message, type Settings } from "./types.ts";
import { advanced, requestBody, SettingsError, StreamError } from "./wire.ts";

const DEFAULTS_KEY = "cortex.chat";
/** Milliseconds between two updates of the page while an answer grows. */
const UPDATE_MS = 50;
/** Milliseconds between two times that a growing answer is kept, in case the page is closed. */
const KEEP_MS = 2000;

interface Run {
  abort: AbortController;
  /** The place in the queue, while the answer waits for its first token; null when unknown. */
  position: number | null;
}

/** What a new conversation begins with: the choices of the last one. */
interface Defaults {
  model: string;
  settings: Settings;
}

export class ChatStore {
  /** The newest first. */
  conversations: Conversation[] = [];
  current: Conversation;
  /** A conversation that can be brought back. */
  deleted: Conversation | null = null;
  /** Why conversations are not kept; empty if they are. */
  problem = "";
  /** The conversation whose answer needs an API key, with what the server said. */
  needsKey: { id: string; reason: string } | null = null;
  /** The model of conversations that name none. */
  firstModel = "";

  readonly #runs = new Map<string, Run>();
  readonly #listeners = new Set<() => void>();

  constructor() {
    this.current = newConversation();
  }

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  #changed(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  async load(): Promise<void> {
    try {
      const [kept, old] = bounded((await loadAll()).map(afterReload));
      this.conversations = kept;
      for (const { id } of old) await remove(id);
    } catch (error) {
      this.#failedToKeep(error);
    }
    const latest = this.conversations[0];
    if (latest !== undefined && this.current.messages.length === 0) this.current = latest;
    this.#changed();
  }

  isRunning(id = this.current.id): boolean {
    return this.#runs.has(id);
  }

  position(id = this.current.id): number | null {
    return this.#runs.get(id)?.position ?? null;
  }

  create(): void {
    this.current = newConversation();
    this.#changed();
  }

  open(id: string): void {
    const found = this.conversations.find((each) => each.id === id);
    if (found === undefined) return;
    this.current = found;
    this.#changed();
  }

  delete(id: string): void {
    const found = this.conversations.find((each) => each.id === id);
    if (found === undefined) return;
    this.stop(id);
    this.deleted = found;
    this.conversations = this.conversations.filter((each) => each !== found);
    if (this.current.id === id) this.current = this.conversations[0] ?? newConversation();
    remove(id).catch((error: unknown) => this.#failedToKeep(error));
    this.#changed();
  }

  undelete(): void {
    if (this.deleted === null) return;
    const back = this.deleted;
    this.deleted = null;
    this.current = back;
    this.#put(back);
  }

  setModel(model: string): void {
    this.#configure({ model });
  }

  setSettings(changes: Partial<Settings>): void {
    this.#configure({ settings: { ...this.current.settings, ...changes } });
  }

  #configure(changes: Partial<Pick<Conversation, "model" | "settings">>): void {
    this.current = { ...this.current, ...changes };
    const { id, model, settings } = this.current;
    writeDefaults({ model, settings });
    if (this.conversations.some((each) => each.id === id)) this.#put(this.current);
    else this.#changed();
  }

  /** Ask this as the next question. */
  send(text: string): void {
    this.#ask([...this.current.messages, { role: "user", text }]);
  }

  /** Ask another question at this place. Everything after it is dropped. */
  edit(index: number, text: string): void {
    this.#ask([...this.current.messages.slice(0, index), { role: "user", text }]);
  }

  /** Answer the last question again. */
  regenerate(): void {
    const last = this.current.messages.findLastIndex(({ role }) => role === "user");
    const after = this.current.messages.slice(last + 1).filter(({ role }) => role === "assistant");
    const kept = after.slice(0, -1).length; // earlier answers of this turn called tools
    this.#ask(this.current.messages.slice(0, last + 1 + kept));
  }

  /** Go on with what the tools of the last answer returned, in the order of its calls. */
  sendResults(results: string[]): void {
    const last = this.current.messages.at(-1);
    if (last?.role !== "assistant") return;
    const calls = last.calls.map((call, index) => ({ ...call, result: results[index] ?? "" }));
    this.#ask([...this.current.messages.slice(0, -1), { ...last, calls }]);
  }

  stop(id = this.current.id): void {
    this.#runs.get(id)?.abort.abort();
  }

  /** After a new key: answer again where a key was missing. */
  retryWithKey(): void {
    const waiting = this.needsKey;
    this.needsKey = null;
    if (waiting !== null && waiting.id === this.current.id) this.regenerate();
  }

  #ask(messages: Message[]): void {
    if (this.isRunning()) return;
    this.needsKey = null;
    const model = this.current.model === "" ? this.firstModel : this.current.model;
    const conversation = { ...this.current, messages, changedAt: Date.now() };
    this.current = conversation;
    void this.#run(conversation, newAnswer(model));
  }

  async #run(conversation: Conversation, empty: Answer): Promise<void> {
    const run: Run = { abort: new AbortController(), position: null };
    this.#runs.set(conversation.id, run);
    let answer = empty;
    let kept = performance.now();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const show = (keep: boolean): void => {
      clearTimeout(timer);
      timer = undefined;
      this.#put({ ...this.#latest(conversation), messages: [...conversation.messages, answer] }, keep);
    };
    const showSoon = (): void => {
      timer ??= setTimeout(() => {
        const isDue = performance.now() - kept > KEEP_MS;
        if (isDue) kept = performance.now();
        show(isDue);
      }, UPDATE_MS);
    };

    show(true);
    try {
      const body = requestBody(conversation, answer.model);
      const began = performance.now();
      const onComment = (text: string): void => {
        const position = /^queued (\d+)$/.exec(text)?.[1];
        if (position === undefined) return;
        run.position = Number(position);
        showSoon();
      };
      for await (const events of eventBatches("/v1/chat/completions", { body, signal: run.abort.signal, onComment })) {
        run.position = null;
        const seconds = (performance.now() - began) / 1000;
        for (const data of events) answer = advanced(answer, data, seconds);
        showSoon();
      }
      if (answer.ending === "running") throw new StreamError("The stream ended before the answer.");
    } catch (error) {
      answer = run.abort.signal.aborted ? { ...answer, ending: "stopped" } : this.#failed(conversation, answer, error);
    }
    this.#runs.delete(conversation.id);
    clearTimeout(timer);
    if (this.#exists(conversation)) show(true);
  }

  #failed({ id }: Conversation, answer: Answer, error: unknown): Answer {
    if (error instanceof ApiError && error.needsKey) this.needsKey = { id, reason: error.message };
    const isKnown = error instanceof ApiError || error instanceof StreamError || error instanceof SettingsError;
    const text = isKnown ? error.message : `The answer cannot be read: ${String(error)}`;
    return { ...answer, ending: "failed", error: text };
  }

  /** The conversation with the settings that the user may have changed meanwhile. */
  #latest(conversation: Conversation): Conversation {
    const other = this.conversations.find((each) => each.id === conversation.id);
    return this.current.id === conversation.id ? this.current : (other ?? conversation);
  }

  #exists({ id }: Conversation): boolean {
    return this.current.id === id || this.conversations.some((each) => each.id === id);
  }

  #put(conversation: Conversation, keep = true): void {
    const others = this.conversations.filter((each) => each.id !== conversation.id);
    const [kept, old] = bounded([conversation, ...others]);
    this.conversations = kept;
    if (this.current.id === conversation.id) this.current = conversation;
    this.#changed();
    if (!keep) return;
    save(conversation).then(
      () => this.#keptAgain(),
      (error: unknown) => this.#failedToKeep(error),
    );
    for (const { id } of old) remove(id).catch((error: unknown) => this.#failedToKeep(error));
  }

  #keptAgain(): void {
    if (this.problem === "") return;
    this.problem = "";
    this.#changed();
  }

  #failedToKeep(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.problem = `This browser does not keep conversations: ${reason}`;
    this.#changed();
  }
}

function newConversation(): Conversation {
  return { id: randomId(), changedAt: Date.now(), messages: [], ...readDefaults() };
}

/** `crypto.randomUUID` exists only on pages from this machine or over HTTPS. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An answer that was running when the page was closed does not run any more. */
function afterReload(conversation: Conversation): Conversation {
  const messages = conversation.messages.map((message) =>
    message.role === "assistant" && message.ending === "running" ? { ...message, ending: "lost" as const } : message,
  );
  return { ...conversation, settings: { ...NO_SETTINGS, ...conversation.settings }, messages };
}

function readDefaults(): Defaults {
  try {
    const found = JSON.parse(localStorage.getItem(DEFAULTS_KEY) ?? "{}") as Partial<Defaults>;
    return { model: found.model ?? "", settings: { ...NO_SETTINGS, ...found.settings } };
  } catch {
    return { model: "", settings: NO_SETTINGS };
  }
}

function writeDefaults(defaults: Defaults): void {
  try {
    localStorage.setItem(DEFAULTS_KEY, JSON.stringify(defaults));
  } catch {
    // Then the next conversation begins with the server's defaults.
  }
}
