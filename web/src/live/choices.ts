// What the user chose to see.

/** What the colours of steps and pages show. */
export type ColourBy = "kind" | "tenant";
