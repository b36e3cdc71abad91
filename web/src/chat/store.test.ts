// Two tabs of the page, with a shelf in common and answers that grow on command.
import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import type { Saved, Shelf } from "./storage.ts";
import { ChatStore } from "./store.ts";
import type { Conversation } from "./types.ts";
import { mayWrite, versionOf } from "./versions.ts";

/** One tab's end of the shelf. A deaf one does not hear of the other's changes. */
class FakeShelf implements Shelf {
  readonly stored: Map<string, Conversation>;
  readonly tabs: FakeShelf[];
  isDeaf = false;
  #listener: (id: string) => void = () => undefined;

  constructor(other?: FakeShelf) {
    this.stored = other?.stored ?? new Map<string, Conversation>();
    this.tabs = other?.tabs ?? [];
    this.tabs.push(this);
  }

  async loadAll(): Promise<Conversation[]> {
    return structuredClone([...this.stored.values()]);
  }

  async load(id: string): Promise<Conversation | undefined> {
    return structuredClone(this.stored.get(id));
  }

  async save(conversation: Conversation, isNew: boolean): Promise<Saved> {
    const { id } = conversation;
    const isKept = mayWrite(this.stored.get(id), conversation, isNew);
    if (isKept) this.stored.set(id, structuredClone(conversation));
    if (isKept) this.#announce(id);
    return { isKept, stored: structuredClone(this.stored.get(id)) };
  }

  async remove(id: string, version = Infinity): Promise<void> {
    const stored = this.stored.get(id);
    if (stored !== undefined && versionOf(stored) <= version) this.stored.delete(id);
    this.#announce(id);
  }

  follow(listener: (id: string) => void): void {
    this.#listener = listener;
  }

  #announce(id: string): void {
    for (const tab of this.tabs) if (tab !== this && !tab.isDeaf) tab.#listener(id);
  }
}

/** A chat whose answer the test writes. */
class FakeChat {
  isAborted = false;
  readonly response: Response;
  #controller!: ReadableStreamDefaultController<Uint8Array>;

  constructor(signal: AbortSignal) {
    const body = new ReadableStream<Uint8Array>({ start: (controller) => void (this.#controller = controller) });
    this.response = new Response(body, { headers: { "Content-Type": "text/event-stream" } });
    signal.addEventListener("abort", () => {
      this.isAborted = true;
      this.#controller.error(new DOMException("aborted", "AbortError"));
    });
  }

  async write(text: string): Promise<void> {
    await this.#send({ choices: [{ index: 0, delta: { content: text }, finish_reason: null }] });
  }

  async end(): Promise<void> {
    await this.#send({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
    this.#controller.close();
    await settle();
  }

  async #send(data: object): Promise<void> {
    this.#controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(data)}\n\n`));
    await settle();
  }
}

const { fetch: realFetch } = globalThis;
let chats: FakeChat[] = [];
let now = 0;
const { now: realNow } = Date;

beforeEach(() => {
  chats = [];
  now = 1_000_000;
  Date.now = () => (now += 1000);
  globalThis.fetch = async (_, init) => {
    const chat = new FakeChat(init?.signal as AbortSignal);
    chats.push(chat);
    return chat.response;
  };
});

afterEach(() => {
  globalThis.fetch = realFetch;
  Date.now = realNow;
});

/** Waits until all that was begun is done: nothing here waits for a clock. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

async function openTab(other?: FakeShelf): Promise<[ChatStore, FakeShelf]> {
  const shelf = new FakeShelf(other);
  const store = new ChatStore(shelf);
  await store.load();
  return [store, shelf];
}

async function openTabs(): Promise<{ one: ChatStore; two: ChatStore; first: FakeShelf; second: FakeShelf }> {
  const [one, first] = await openTab();
  const [two, second] = await openTab(first);
  return { one, two, first, second };
}

/** Asks and gets an answer. */
async function talk(store: ChatStore, question: string, answer: string): Promise<void> {
  store.send(question);
  await settle();
  const chat = chats.at(-1);
  await chat?.write(answer);
  await chat?.end();
}

function textsOf(conversation: Conversation | undefined): string[] {
  return conversation?.messages.map(({ text }) => text) ?? [];
}

function allTexts(store: ChatStore): string[][] {
  return store.conversations.map(textsOf);
}

test("tabs see each other's conversations, and none is lost", async () => {
  const { one, two, first } = await openTabs();
  await talk(one, "a", "A");
  await talk(two, "b", "B");
  assert.deepEqual(allTexts(one), [["b", "B"], ["a", "A"]]);
  assert.deepEqual(allTexts(two), allTexts(one));
  assert.deepEqual(textsOf(one.current), ["a", "A"], "another tab does not change what is open");
  assert.equal(first.stored.size, 2);
  const [three] = await openTab(first);
  assert.deepEqual(allTexts(three), allTexts(one));
});

test("a conversation goes on in another tab and comes back", async () => {
  const { one, two } = await openTabs();
  await talk(one, "a", "A");
  two.open(one.current.id);
  await talk(two, "b", "B");
  assert.deepEqual(textsOf(one.current), ["a", "A", "b", "B"]);
  await talk(one, "c", "C");
  assert.deepEqual(textsOf(two.current), ["a", "A", "b", "B", "c", "C"]);
});

test("a deleted conversation stays deleted, though its answer runs in another tab", async () => {
  for (const isDeaf of [false, true]) {
    const { one, two, first } = await openTabs();
    one.send("a");
    await settle();
    const chat = chats.at(-1);
    await chat?.write("A");
    first.isDeaf = isDeaf;
    two.delete(one.current.id);
    await settle();
    if (isDeaf) await chat?.end();
    else assert.equal(chat?.isAborted, true);
    assert.equal(first.stored.size, 0);
    assert.deepEqual([one.conversations, two.conversations], [[], []]);
    assert.deepEqual(one.current.messages, []);
    assert.equal(one.isRunning(), false);
  }
});

test("a deleted conversation stays deleted, though another tab changes its settings", async () => {
  const { one, two, first, second } = await openTabs();
  await talk(one, "a", "A");
  two.open(one.current.id);
  second.isDeaf = true;
  one.delete(one.current.id);
  await settle();
  two.setSettings({ system: "Rhyme." });
  await settle();
  assert.equal(first.stored.size, 0);
  assert.deepEqual(two.conversations, []);
});

test("what was deleted comes back to all tabs when it is brought back, and only then", async () => {
  const { one, two, first } = await openTabs();
  await talk(one, "a", "A");
  one.delete(one.current.id);
  await settle();
  assert.deepEqual(two.conversations, []);
  one.undelete();
  await settle();
  assert.deepEqual(allTexts(two), [["a", "A"]]);
  two.open(one.current.id);
  await talk(two, "b", "B");
  assert.deepEqual(allTexts(one), [["a", "A", "b", "B"]]);
  assert.equal(first.stored.size, 1);
});

test("settings that another tab changes while an answer runs stay, and so does the answer", async () => {
  for (const isDeaf of [false, true]) {
    const { one, two, first } = await openTabs();
    one.send("a");
    await settle();
    const chat = chats.at(-1);
    await chat?.write("A");
    two.open(one.current.id);
    first.isDeaf = isDeaf;
    two.setSettings({ system: "Rhyme." });
    await settle();
    await chat?.write("B");
    await chat?.end();
    for (const store of [one, two]) {
      assert.deepEqual(textsOf(store.current), ["a", "AB"]);
      assert.equal(store.current.settings.system, "Rhyme.");
    }
    assert.deepEqual([...first.stored.values()].map(textsOf), [["a", "AB"]]);
  }
});

test("the newer question wins over an answer that runs in another tab", async () => {
  for (const isDeaf of [false, true]) {
    const { one, two, first } = await openTabs();
    one.send("a");
    await settle();
    const [chat] = chats.slice(-1);
    await chat?.write("A");
    first.isDeaf = isDeaf;
    two.open(one.current.id);
    await talk(two, "b", "B");
    if (isDeaf) await chat?.end();
    else assert.equal(chat?.isAborted, true);
    assert.equal(one.isRunning(), false);
    assert.deepEqual(textsOf(one.current).at(-1), "B");
    assert.deepEqual(textsOf(one.current), textsOf(two.current));
    assert.deepEqual([...first.stored.values()].map(textsOf), [textsOf(two.current)]);
  }
});

test("an answer of another tab is not running in this one", async () => {
  const { one, two, first } = await openTabs();
  one.send("a");
  await settle();
  two.open(one.current.id);
  const endings = (store: ChatStore): unknown[] =>
    store.current.messages.map((message) => (message.role === "assistant" ? message.ending : null));
  assert.deepEqual([endings(one), endings(two)], [[null, "running"], [null, "lost"]]);
  assert.equal(two.isRunning(), false);
  const [three] = await openTab(first);
  assert.deepEqual(endings(three), [null, "lost"]);
  await chats.at(-1)?.end();
  assert.deepEqual([endings(one), endings(two), endings(three)], Array(3).fill([null, "stop"]));
});

test("a shelf that is full loses nothing in this tab, and keeps it later", async () => {
  const { one, two, first } = await openTabs();
  const { save } = first;
  first.save = () => Promise.reject(new Error("full"));
  await talk(one, "a", "A");
  assert.match(one.problem, /full/);
  assert.deepEqual(allTexts(one), [["a", "A"]]);
  first.save = save;
  await talk(one, "b", "B");
  assert.equal(one.problem, "");
  assert.deepEqual(allTexts(two), [["a", "A", "b", "B"]]);
});

test("conversations of earlier pages have no version, and are kept", async () => {
  const [old, shelf] = await openTab();
  await talk(old, "a", "A");
  for (const conversation of shelf.stored.values()) delete (conversation as Partial<Conversation>).version;
  const [one] = await openTab(shelf);
  await talk(one, "b", "B");
  assert.deepEqual([...shelf.stored.values()].map(textsOf), [["a", "A", "b", "B"]]);
});
