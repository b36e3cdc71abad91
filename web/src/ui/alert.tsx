import type { ComponentChildren } from "preact";

interface AlertProps {
  /** Whether it is old, so that nobody has to read it now. */
  isOld?: boolean;
  children: ComponentChildren;
}

/** An error, which screen readers read at once. */
export function Alert({ isOld = false, children }: AlertProps) {
  return (
    <div class="alert" role={isOld ? undefined : "alert"}>
      {children}
    </div>
  );
}
