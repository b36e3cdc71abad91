// The map of KV pages: where its cells lie.

export interface Grid {
  columns: number;
  rows: number;
  /** The side of a cell with its gap, in CSS pixels. */
  size: number;
}

const GREATEST = 26;
const LEAST = 12;

/** A grid for some cells that fills the width, with cells of a size that can be seen and rows that are equally long. */
export function grid(cells: number, width: number): Grid {
  const size = Math.min(GREATEST, Math.max(LEAST, Math.sqrt((width * 150) / Math.max(1, cells))));
  const columns = Math.max(1, Math.floor(width / size));
  return { columns, rows: Math.ceil(cells / columns), size: width / columns };
}
