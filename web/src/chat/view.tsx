// The chat: the list of conversations, the open one, its settings, and the field for the next question.
import { useEffect, useRef, useState } from "preact/hooks";

import "./chat.css";
import { onKeyChange } from "../api/key.ts";
import { listModels, type Model } from "../api/models.ts";
import { Alert } from "../ui/alert.tsx";
import { Icon } from "../ui/icon.tsx";
import { askForKey } from "../ui/keydialog.tsx";
import { Composer } from "./composer.tsx";
import { SettingsPanel } from "./settings.tsx";
import { Sidebar } from "./sidebar.tsx";
import { BrowserShelf } from "./storage.ts";
import { ChatStore } from "./store.ts";
import { Thread } from "./thread.tsx";

/** Milliseconds until models that are not ready are asked for again. */
const MODELS_MS = 3000;

export function ChatView() {
  const [store] = useState(() => new ChatStore(new BrowserShelf()));
  const [, setVersion] = useState(0);
  const { models, problem } = useModels(store);
  const [isListOpen, setListOpen] = useState(false);
  const [areSettingsOpen, setSettingsOpen] = useState(false);
  const field = useRef<HTMLTextAreaElement>(null);
  const listSwitch = useRef<HTMLButtonElement>(null);
  const settingsSwitch = useRef<HTMLButtonElement>(null);

  useEffect(() => store.subscribe(() => setVersion((version) => version + 1)), [store]);
  useEffect(() => void store.load(), [store]);
  useEffect(() => onKeyChange(() => store.retryWithKey()), [store]);
  const { current, needsKey } = store;
  useEffect(() => {
    if (needsKey !== null) askForKey(needsKey.reason);
  }, [needsKey]);

  function closeList(): void {
    setListOpen(false);
    listSwitch.current?.focus();
  }

  function closeSettings(): void {
    setSettingsOpen(false);
    settingsSwitch.current?.focus();
  }

  function create(): void {
    store.create();
    setListOpen(false);
    field.current?.focus();
  }

  return (
    <div
      class="chat"
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        if (isListOpen) closeList();
        else if (areSettingsOpen) closeSettings();
      }}
    >
      <Sidebar store={store} isOpen={isListOpen} onCreate={create} onClose={closeList} />
      <section class="talk" aria-label="Chat">
        <div class="bar">
          <button
            ref={listSwitch}
            type="button"
            class="button quiet square only-narrow"
            aria-label="Conversations"
            aria-expanded={isListOpen}
            onClick={() => setListOpen(!isListOpen)}
          >
            <Icon name="menu" />
          </button>
          <ModelChoice models={models} chosen={current.model} onChoose={(model) => store.setModel(model)} />
          <button type="button" class="button quiet square only-narrow bar-end" aria-label="New conversation" onClick={create}>
            <Icon name="plus" />
          </button>
          <button
            ref={settingsSwitch}
            type="button"
            class="button quiet settings-switch"
            aria-label="Settings"
            aria-expanded={areSettingsOpen}
            aria-controls="settings"
            onClick={() => setSettingsOpen(!areSettingsOpen)}
          >
            <Icon name="settings" />
            <span>Settings</span>
          </button>
        </div>
        {problem === "" ? null : <Alert>{problem}</Alert>}
        {store.problem === "" ? null : <Alert>{store.problem}</Alert>}
        <Thread store={store} field={field} />
        <Composer store={store} field={field} />
      </section>
      {areSettingsOpen ? (
        <SettingsPanel
          settings={current.settings}
          onChange={(changes) => store.setSettings(changes)}
          onClose={closeSettings}
        />
      ) : null}
    </div>
  );
}

interface ModelChoiceProps {
  models: Model[];
  /** Empty: the first one. */
  chosen: string;
  onChoose: (model: string) => void;
}

function ModelChoice({ models, chosen, onChoose }: ModelChoiceProps) {
  const value = chosen === "" ? (models[0]?.id ?? "") : chosen;
  const isMissing = value !== "" && models.every(({ id }) => id !== value);
  return (
    <select
      class="model"
      aria-label="Model"
      value={value}
      disabled={models.length === 0}
      onChange={(event) => onChoose(event.currentTarget.value)}
    >
      {models.length === 0 && value === "" ? <option value="">No model</option> : null}
      {isMissing ? <option value={value}>{value} (not on this server)</option> : null}
      {models.map(({ id, status }) => (
        <option key={id} value={id}>
          {status === "ready" ? id : `${id} (${status})`}
        </option>
      ))}
    </select>
  );
}

/** The server's models: read at once, when the user comes back to the page, and while one is not ready. */
function useModels(store: ChatStore): { models: Model[]; problem: string } {
  const [models, setModels] = useState<Model[]>([]);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isClosed = false;
    async function read(): Promise<void> {
      clearTimeout(timer);
      let isSettled = false;
      try {
        const found = await listModels();
        if (isClosed) return;
        store.firstModel = found[0]?.id ?? "";
        setModels(found);
        setProblem("");
        isSettled = found.length > 0 && found.every(({ status }) => status === "ready" || status === "unloaded");
      } catch (error) {
        if (isClosed) return;
        setProblem(error instanceof Error ? error.message : String(error));
      }
      clearTimeout(timer);
      if (!isSettled) timer = setTimeout(() => void read(), MODELS_MS);
    }
    const readAgain = (): void => void read();
    readAgain();
    addEventListener("focus", readAgain);
    return () => {
      isClosed = true;
      clearTimeout(timer);
      removeEventListener("focus", readAgain);
    };
  }, [store]);
  return { models, problem };
}
