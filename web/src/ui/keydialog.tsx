// The dialog that asks for the API key. Any view opens it with `askForKey`.
import { useEffect, useRef, useState } from "preact/hooks";

import { isRemembered, readKey, saveKey } from "../api/key.ts";
import { Alert } from "./alert.tsx";

let open: (reason: string) => void = () => undefined;

/** Ask the user for a key. `reason`: what the server said; empty if the user wants to change the key. */
export function askForKey(reason: string): void {
  open(reason);
}

export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [reason, setReason] = useState("");
  const [key, setKey] = useState("");
  const [remember, setRemember] = useState(false);

  useEffect(() => {
    open = (why) => {
      setReason(why);
      if (dialog.current?.open === true) return;
      setKey(readKey());
      setRemember(isRemembered());
      dialog.current?.showModal();
    };
    return () => {
      open = () => undefined;
    };
  }, []);

  function save(event: Event): void {
    event.preventDefault();
    dialog.current?.close();
    saveKey(key.trim(), remember);
  }

  return (
    <dialog ref={dialog} class="dialog" aria-labelledby="key-title">
      <form onSubmit={save}>
        <h2 id="key-title">API key</h2>
        {reason === "" ? null : <Alert>{reason}</Alert>}
        <label class="field">
          <span>API key</span>
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            value={key}
            aria-describedby="key-help"
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <p id="key-help" class="hint">
          The administrator of this server gives you a key. An empty field removes the key.
        </p>
        <label class="check">
          <input
            type="checkbox"
            checked={remember}
            onChange={(event) => setRemember(event.currentTarget.checked)}
          />
          <span>Remember it in this browser, also after this tab is closed</span>
        </label>
        <div class="actions">
          <button type="button" class="button" onClick={() => dialog.current?.close()}>
            Cancel
          </button>
          <button type="submit" class="button primary">
            Save
          </button>
        </div>
      </form>
    </dialog>
  );
}
