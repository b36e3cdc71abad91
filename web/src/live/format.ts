// Numbers as people read them. Each function writes a dash for a number that is not known.

const DASH = "–";
const THIN = "\u202f";

type Maybe = number | null | undefined;

function isKnown(value: Maybe): value is number {
  return value !== null && value !== undefined && Number.isFinite(value);
}

/** A count with thin spaces between thousands: 12 345. */
export function count(value: Maybe): string {
  return isKnown(value) ? String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, THIN) : DASH;
}

/** A short number for axes and bars: 950, 1.2k, 35k, 2M. */
export function short(value: Maybe): string {
  if (!isKnown(value)) return DASH;
  for (const [size, letter] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (Math.abs(value) >= size) return digits(value / size) + letter;
  }
  return digits(value);
}

/** Three digits at most behind a leading one: 0.25, 1.2, 35. */
export function digits(value: number): string {
  const size = Math.abs(value);
  return String(Number(value.toFixed(size >= 10 || size === 0 ? 0 : size >= 1 ? 1 : 2)));
}

/** A duration in seconds as ms or s: 8.5 ms, 120 ms, 2.5 s. */
export function seconds(value: Maybe): string {
  if (!isKnown(value)) return DASH;
  return value < 0.9995 ? `${digits(value * 1000)}${THIN}ms` : `${digits(value)}${THIN}s`;
}

/** A rate of tokens: 85 tok/s. */
export function rate(value: Maybe): string {
  return isKnown(value) ? `${value < 10 ? digits(value) : count(value)}${THIN}tok/s` : DASH;
}

/** Bytes in powers of 1,024: 512 MiB, 3.4 GiB. */
export function bytes(value: Maybe): string {
  if (!isKnown(value)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1023.5 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${digits(size)}${THIN}${units[unit]}`;
}

/** A part of a whole as a percentage. */
export function percent(part: Maybe, whole: Maybe): string {
  return isKnown(part) && isKnown(whole) && whole > 0 ? `${Math.round((100 * part) / whole)}${THIN}%` : DASH;
}

/** "1 page", "2 pages". */
export function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
