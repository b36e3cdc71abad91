// The settings of a conversation: its system prompt, how tokens are drawn, and tools.
import { useEffect, useRef } from "preact/hooks";

import { Icon } from "../ui/icon.tsx";
import { NO_SETTINGS, type Settings } from "./types.ts";
import { NUMBERS } from "./wire.ts";

interface SettingsProps {
  settings: Settings;
  onChange: (changes: Partial<Settings>) => void;
  onClose: () => void;
}

const EFFORTS = ["none", "minimal", "low", "medium", "high"];

export function SettingsPanel({ settings, onChange, onClose }: SettingsProps) {
  const first = useRef<HTMLTextAreaElement>(null);
  useEffect(() => first.current?.focus(), []);
  return (
    <aside id="settings" class="settings" aria-label="Settings">
      <div class="settings-head">
        <h2>Settings</h2>
        <button type="button" class="button quiet square" aria-label="Close the settings" onClick={onClose}>
          <Icon name="close" />
        </button>
      </div>
      <label class="field">
        <span>System prompt</span>
        <textarea
          ref={first}
          rows={4}
          value={settings.system}
          onInput={(event) => onChange({ system: event.currentTarget.value })}
        />
      </label>
      <div class="numbers">
        {NUMBERS.map(({ key, title, min, max, isWhole }) => (
          <label key={key} class="field">
            <span>{title}</span>
            <input
              type="number"
              min={min}
              max={max}
              step={isWhole ? 1 : 0.05}
              placeholder="Default"
              value={settings[key]}
              onInput={(event) => onChange({ [key]: event.currentTarget.value })}
            />
          </label>
        ))}
      </div>
      <label class="field">
        <span>Reasoning</span>
        <select value={settings.effort} onChange={(event) => onChange({ effort: event.currentTarget.value })}>
          <option value="">Default</option>
          {EFFORTS.map((effort) => (
            <option key={effort} value={effort}>
              {effort}
            </option>
          ))}
        </select>
      </label>
      <label class="field">
        <span>Tools</span>
        <textarea
          class="mono"
          rows={5}
          spellcheck={false}
          aria-describedby="tools-help"
          value={settings.tools}
          onInput={(event) => onChange({ tools: event.currentTarget.value })}
        />
      </label>
      <p id="tools-help" class="hint">
        A JSON list of tools in OpenAI's form. The page shows the calls of the model, and you give their results.
      </p>
      <p class="hint">An empty field means the default of the model. The settings belong to this conversation.</p>
      <button type="button" class="button" onClick={() => onChange(NO_SETTINGS)}>
        Reset all
      </button>
    </aside>
  );
}
