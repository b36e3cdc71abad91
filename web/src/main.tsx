// The shell of the page: header, tabs, theme, key.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import "./style.css";
import { ChatView } from "./chat/view.tsx";
import { LiveView } from "./live/view.tsx";
import { chooseTheme, currentTheme, restoreTheme } from "./theme.ts";
import { Icon } from "./ui/icon.tsx";
import { askForKey, KeyDialog } from "./ui/keydialog.tsx";

const TABS = [
  { id: "chat", title: "Chat", icon: "chat" },
  { id: "live", title: "Live", icon: "live" },
] as const;
type TabId = (typeof TABS)[number]["id"];

function tabOfUrl(): TabId {
  return location.hash === "#live" ? "live" : "chat";
}

function App() {
  const [tab, setTab] = useState(tabOfUrl);
  useEffect(() => {
    const follow = (): void => setTab(tabOfUrl());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);

  return (
    <div class="app">
      <header class="top">
        <h1 class="brand">
          <span class="mark" aria-hidden="true" />
          Cortex
        </h1>
        <Tabs tab={tab} />
        <div class="tools">
          <button type="button" class="button quiet square" aria-label="API key" title="API key" onClick={() => askForKey("")}>
            <Icon name="key" />
          </button>
          <ThemeSwitch />
        </div>
      </header>
      <main class="views">
        <div id="panel-chat" class="panel" role="tabpanel" aria-labelledby="tab-chat" hidden={tab !== "chat"}>
          <ChatView />
        </div>
        <div id="panel-live" class="panel" role="tabpanel" aria-labelledby="tab-live" hidden={tab !== "live"}>
          {tab === "live" ? <LiveView /> : null}
        </div>
      </main>
      <KeyDialog />
    </div>
  );
}

function Tabs({ tab }: { tab: TabId }) {
  const list = useRef<HTMLDivElement>(null);

  function move(event: KeyboardEvent): void {
    const index = TABS.findIndex(({ id }) => id === tab);
    const steps: Record<string, number> = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 };
    const next = TABS.at((steps[event.key] ?? index) % TABS.length);
    if (next === undefined || steps[event.key] === undefined) return;
    event.preventDefault();
    location.hash = next.id;
    list.current?.querySelector<HTMLElement>(`#tab-${next.id}`)?.focus();
  }

  return (
    <div class="tabs" role="tablist" aria-label="Views" ref={list} onKeyDown={move}>
      {TABS.map(({ id, title, icon }) => (
        <button
          key={id}
          type="button"
          id={`tab-${id}`}
          role="tab"
          aria-selected={tab === id}
          aria-controls={`panel-${id}`}
          tabIndex={tab === id ? 0 : -1}
          onClick={() => {
            location.hash = id;
          }}
        >
          <Icon name={icon} />
          {title}
        </button>
      ))}
    </div>
  );
}

function ThemeSwitch() {
  const [theme, setTheme] = useState(currentTheme);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const follow = (): void => setTheme(currentTheme());
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, []);

  const other = theme === "dark" ? "light" : "dark";
  const label = other === "dark" ? "Dark theme" : "Light theme";
  return (
    <button
      type="button"
      class="button quiet square"
      aria-label={label}
      title={label}
      onClick={() => {
        chooseTheme(other);
        setTheme(other);
      }}
    >
      <Icon name={other === "dark" ? "moon" : "sun"} />
    </button>
  );
}

restoreTheme();
const root = document.getElementById("root");
if (root !== null) render(<App />, root);
