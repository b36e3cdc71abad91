// A button that copies a text, and says whether that worked.
import { useEffect, useState } from "preact/hooks";

import { copyText } from "./copy.ts";
import { Icon } from "./icon.tsx";

export function CopyButton({ text }: { text: string }) {
  const [state, setState] = useState<"ready" | "copied" | "failed">("ready");
  useEffect(() => {
    if (state === "ready") return undefined;
    const timer = setTimeout(() => setState("ready"), 2000);
    return () => clearTimeout(timer);
  }, [state]);
  return (
    <button
      type="button"
      class="button quiet small"
      onClick={() => void copyText(text).then((isCopied) => setState(isCopied ? "copied" : "failed"))}
    >
      <Icon name={state === "copied" ? "check" : "copy"} />
      {{ ready: "Copy", copied: "Copied", failed: "Copying failed" }[state]}
    </button>
  );
}
