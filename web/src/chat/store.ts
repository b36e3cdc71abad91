// The state of the chat: conversations, the one that is open, and the answers that are running.
import { ApiError } from "../api/http.ts";
import { eventBatches } from "../api/sse.ts";
import { bounded, type Shelf } from "./storage.ts";
import { newAnswer, NO_SETTINGS, type Answer, type Conversation, type Message, type Settings } from "./types.ts";
import { completed, versionOfAction } from "./versions.ts";
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

/** Who changed a conversation: the user, or an answer that grows. "unkept": an answer has grown, but is not kept yet. */
type Change = "user" | "answer" | "unkept";

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

  readonly #shelf: Shelf;
  /** The conversations that this tab has seen stored. If one is not there any more, another tab has deleted it. */
  readonly #stored = new Set<string>();
  readonly #runs = new Map<string, Run>();
  /** When this tab last asked for an answer in a conversation. While that is its `changedAt`, no other tab has asked. */
  readonly #asked = new Map<string, number>();
  readonly #listeners = new Set<() => void>();

  constructor(shelf: Shelf) {
    this.#shelf = shelf;
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
    this.#shelf.follow((id) => void this.#follow(id));
    try {
      for (const stored of await this.#shelf.loadAll()) this.#take(completed(stored));
      for (const old of this.#limit()) await this.#remove(old.id, old.version);
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
    this.deleted = completed(found, "stopped");
    this.#drop(id);
    this.#remove(id).catch((error: unknown) => this.#failedToKeep(error));
    this.#changed();
  }

  undelete(): void {
    if (this.deleted === null) return;
    const back = this.deleted;
    this.deleted = null;
    this.current = back;
    this.#put(back, "user");
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
    if (this.conversations.some((each) => each.id === id)) this.#put(this.current, "user");
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
    const { id } = conversation;
    const run: Run = { abort: new AbortController(), position: null };
    this.#runs.set(id, run);
    this.#asked.set(id, conversation.changedAt);
    // It may be deleted, or go on in another tab.
    const isWanted = (): boolean => this.#runs.get(id) === run;
    let answer = empty;
    let kept = performance.now();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const grown = (): Conversation => ({ ...this.#latest(conversation), messages: [...conversation.messages, answer] });
    const show = (change: Change): void => {
      clearTimeout(timer);
      timer = undefined;
      if (isWanted()) this.#put(grown(), change);
    };
    const showSoon = (): void => {
      timer ??= setTimeout(() => {
        const isDue = performance.now() - kept > KEEP_MS;
        if (isDue) kept = performance.now();
        show(isDue ? "answer" : "unkept");
      }, UPDATE_MS);
    };

    show("user");
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
    clearTimeout(timer);
    if (!isWanted()) return;
    this.#runs.delete(id);
    this.#put(grown(), "answer");
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

  #put(conversation: Conversation, change: Change): void {
    const { version } = conversation;
    if (change === "user") conversation = { ...conversation, version: versionOfAction(version) };
    if (change === "answer") conversation = { ...conversation, version: version + 1 };
    this.#replace(conversation);
    const old = this.#limit();
    this.#changed();
    if (change === "unkept") return;
    this.#save(conversation, change).catch((error: unknown) => this.#failedToKeep(error));
    for (const each of old) this.#remove(each.id, each.version).catch((error: unknown) => this.#failedToKeep(error));
  }

  #replace(conversation: Conversation): void {
    this.conversations = [conversation, ...this.conversations.filter(({ id }) => id !== conversation.id)];
    if (this.current.id === conversation.id) this.current = conversation;
  }

  /** Sorts the list, and returns the conversations that were too many. */
  #limit(): Conversation[] {
    const [kept, old] = bounded(this.conversations);
    this.conversations = kept;
    return old;
  }

  /** Takes a conversation off the list, and ends its answer. */
  #drop(id: string): void {
    this.#end(id);
    this.conversations = this.conversations.filter((each) => each.id !== id);
    if (this.current.id === id) this.current = this.conversations[0] ?? newConversation();
  }

  /** Ends the answer that runs in a conversation, if any, and keeps nothing more of it. */
  #end(id: string): void {
    const run = this.#runs.get(id);
    this.#runs.delete(id);
    run?.abort.abort();
  }

  async #save(conversation: Conversation, change: Change): Promise<void> {
    const { id } = conversation;
    const isNew = !this.#stored.has(id);
    this.#stored.add(id);
    try {
      const { isKept, stored } = await this.#shelf.save(conversation, isNew);
      if (isKept) return this.#keptAgain();
      this.#merge(id, stored);
    } catch (error) {
      if (isNew) this.#stored.delete(id);
      throw error;
    }
    // If another tab has changed only the settings, its version lacks the end of the answer.
    const merged = this.conversations.find((each) => each.id === id);
    if (change === "answer" && merged !== undefined && merged.changedAt === this.#asked.get(id)) this.#put(merged, change);
  }

  async #remove(id: string, version?: number): Promise<void> {
    this.#stored.delete(id);
    await this.#shelf.remove(id, version);
  }

  /** Another tab has changed or deleted this conversation. */
  async #follow(id: string): Promise<void> {
    try {
      this.#merge(id, await this.#shelf.load(id));
    } catch (error) {
      this.#failedToKeep(error);
    }
  }

  #merge(id: string, stored: Conversation | undefined): void {
    if (stored !== undefined) this.#take(completed(stored));
    else if (this.#stored.delete(id)) this.#drop(id);
    this.#limit(); // the tab that added one removes those that are too many
    this.#changed();
  }

  /** Takes over what is stored, unless this tab has a newer version. */
  #take(stored: Conversation): void {
    const { id } = stored;
    this.#stored.add(id);
    const known = this.conversations.find((each) => each.id === id);
    if (known !== undefined && known.version > stored.version) return;
    if (known !== undefined && this.#asked.get(id) === stored.changedAt) {
      this.#replace({ ...stored, messages: known.messages }); // other tabs have changed the settings only
    } else {
      this.#end(id);
      this.#replace(stored);
    }
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
  return { id: randomId(), changedAt: Date.now(), version: 0, messages: [], ...readDefaults() };
}

/** `crypto.randomUUID` exists only on pages from this machine or over HTTPS. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
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
