// Asks for the cells of the mix, and keeps what came: one picture for each set of settings.

import { cellOf, seedsOf, store } from "./mix.js";
import { tell } from "./wire.js";

const MOST_KNOWN = 1000;
const known = new Map(); // Settings to what was drawn by them.
export const cells = new Map(); // Name of a cell to what it shows.
let version = 0;

const nameOf = (row, column) => `${row}-${column}`;

function keyOf(cell) {
  return JSON.stringify([cell.settings, cell.typed, cell.alone]);
}

export function found(key, picture) {
  known.delete(key);
  known.set(key, picture);
  if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
}

// Every cell of the grid as the mix has it now, in reading order.
export function wanted(options) {
  const list = [];
  store.words.forEach((word, row) => {
    seedsOf(store.mix).forEach((seed, column) => {
      list.push({ cell: nameOf(row, column), row, column, seed, word, ...cellOf(store.mix, seed, word, options) });
    });
  });
  return list;
}

// Makes the grid hold exactly the wanted cells; returns whether that changed which there are.
function arrange(list) {
  const names = list.map((one) => one.cell);
  const same = names.length === cells.size && names.every((name) => cells.has(name));
  for (const name of [...cells.keys()]) if (!names.includes(name)) cells.delete(name);
  for (const one of list) {
    const old = cells.get(one.cell) || { picture: null, busy: false, dirty: false, share: 0, error: "" };
    cells.delete(one.cell); // Reading order is the order of the map.
    cells.set(one.cell, Object.assign(old, { cell: one.cell, row: one.row, column: one.column, seed: one.seed, word: one.word }));
  }
  return !same;
}

// Draws the grid. A draft waits while one of its cell is on the way, so that some arrive; a full picture does not wait.
export async function draw({ draft = false, plain = false, shown, refused }) {
  const list = wanted({ draft, plain });
  if (arrange(list)) shown(null);
  const asked = [];
  for (const one of list) {
    const cell = cells.get(one.cell);
    const key = keyOf(one);
    const ready = known.get(key);
    if (cell.key === key && (cell.busy || cell.result?.key === key) && !cell.error) continue;
    if (ready) {
      cell.version = ++version;
      Object.assign(cell, { key, result: ready, busy: false, dirty: false, error: "", preview: null, draft });
      shown(cell);
      continue;
    }
    if (draft && cell.busy) {
      cell.dirty = true;
      continue;
    }
    const { settings, typed, alone } = one;
    Object.assign(cell, { key, version: ++version, busy: true, dirty: false, share: 0, error: "", draft, asked: one });
    shown(cell);
    asked.push({ cell: one.cell, version, settings, typed, alone });
  }
  if (!asked.length) return;
  try {
    const answer = await tell("/api/draw", { cells: asked });
    for (const [name, command] of Object.entries(answer.commands)) {
      const cell = cells.get(name);
      if (cell) cell.command = command;
    }
    for (const [name, sentence] of Object.entries(answer.refused)) fail(name, sentence, shown);
    refused(Object.values(answer.refused)[0] || "");
  } catch (error) {
    for (const one of asked) fail(one.cell, error.message, shown);
    refused(error.message);
  }
}

function fail(name, sentence, shown) {
  const cell = cells.get(name);
  if (!cell) return;
  Object.assign(cell, { busy: false, error: sentence, preview: null });
  shown(cell);
}

// Takes an event about a cell; returns the cell, or null where nobody waits for it any more.
export function hear(event) {
  const cell = cells.get(event.cell);
  if (!cell || event.version !== cell.version) return null;
  if (event.kind === "step") Object.assign(cell, { share: event.share, left: event.left });
  if (event.kind === "preview") cell.preview = `data:image/webp;base64,${event.image}`;
  if (event.kind === "draw") {
    const { picture, seconds, said, spectra } = event;
    cell.result = { key: cell.key, picture, seconds, said, spectra, command: cell.command, asked: cell.asked };
    found(cell.key, cell.result);
    Object.assign(cell, { busy: false, preview: null, share: 1, error: "" });
  }
  if (event.kind === "failed" && event.of === "draw") Object.assign(cell, { busy: false, error: event.sentence, preview: null });
  if (event.kind === "cancelled") Object.assign(cell, { busy: false, preview: null });
  if (event.kind === "numbers") cell.result = { ...cell.result, numbers: event };
  if (event.kind === "attention") cell.result = { ...cell.result, attention: event };
  if (["numbers", "attention"].includes(event.kind) && cell.result?.key) found(cell.result.key, cell.result);
  return cell;
}

// After a restart of the desk nothing is on the way any more.
export function forgetBusy() {
  for (const cell of cells.values()) Object.assign(cell, { busy: false, key: cell.result?.key, preview: null });
}
