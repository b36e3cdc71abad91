// Bundles the page: `node bundle.mjs FOLDER` writes index.html, its files under assets/ and the licences of its packages.
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";

import { build } from "esbuild";

const target = process.argv[2];
if (target === undefined) throw new Error("usage: node bundle.mjs FOLDER");
const source = import.meta.dirname;
const assets = join(target, "assets");
await mkdir(assets, { recursive: true });

const { metafile } = await build({
  absWorkingDir: source,
  entryPoints: ["src/main.tsx"],
  entryNames: "[name]-[hash]",
  outdir: assets,
  bundle: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none", // LICENSES.txt has the whole texts
  metafile: true,
  logLevel: "warning",
});

/** The packages whose code is in the bundle. */
const packages = new Set();
for (const input of Object.keys(metafile.inputs)) {
  const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1];
  if (name !== undefined) packages.add(name);
}
const licenses = [];
for (const name of [...packages].sort()) {
  const folder = join(source, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((each) => /^licen[cs]e/i.test(each));
  const text = file === undefined ? "" : await readFile(join(folder, file), "utf8");
  licenses.push(`${name} ${version} (${license})\n\n${text.trim()}\n`);
}
await writeFile(join(target, "LICENSES.txt"), licenses.join(`\n${"-".repeat(80)}\n\n`));

const icon = await readFile(join(source, "src", "icon.svg"));
const iconName = `icon-${createHash("sha256").update(icon).digest("hex").slice(0, 8).toUpperCase()}.svg`;
await writeFile(join(assets, iconName), icon);

const outputs = Object.keys(metafile.outputs).map((path) => basename(path));
const page = (await readFile(join(source, "index.html"), "utf8"))
  .replace("{icon}", `/assets/${iconName}`)
  .replace("{style}", `/assets/${outputs.find((name) => name.endsWith(".css"))}`)
  .replace("{script}", `/assets/${outputs.find((name) => name.endsWith(".js"))}`);
await writeFile(join(target, "index.html"), page);
