// The grid of pictures: a row for each value of the axis, a column for each seed.

import { cells } from "./drawing.js";
import { store } from "./mix.js";

const grid = document.getElementById("grid");
const boxes = new Map();
export const PICTURE = (name) => `/api/pictures/${encodeURIComponent(name)}`;

function made(tag, classes = "", text = "") {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text) node.textContent = text;
  return node;
}

// Builds the boxes of all cells anew.
export function lay({ open, copy }) {
  grid.replaceChildren();
  boxes.clear();
  const rows = store.words.length > 1 || store.words[0] !== null;
  grid.classList.toggle("has-rows", rows);
  grid.style.setProperty("--columns", store.mix.seeds.count);
  let row = -1;
  for (const cell of cells.values()) {
    if (rows && cell.row !== row) {
      const [key, value] = [cell.word.slice(0, cell.word.indexOf("=")), cell.word.slice(cell.word.indexOf("=") + 1)];
      const label = made("div", "row-label");
      label.append(made("span", "value", value), made("span", "key", key));
      grid.append(label);
    }
    row = cell.row;
    const box = made("figure", "cell");
    const button = made("button", "picture");
    button.type = "button";
    const image = made("img");
    image.alt = "";
    const bar = made("span", "progress");
    const left = made("span", "left");
    button.append(image, bar, left);
    button.addEventListener("click", () => open(cell.cell));
    const caption = made("figcaption");
    const seed = made("span", "seed");
    const scores = made("span", "scores");
    const copying = made("button", "copy", "Copy command");
    copying.type = "button";
    copying.addEventListener("click", () => copy(cell.cell));
    caption.append(seed, scores, copying);
    const error = made("p", "cell-error");
    box.append(button, caption, error);
    grid.append(box);
    boxes.set(cell.cell, { box, button, image, bar, left, seed, scores, copying, error });
    show(cells.get(cell.cell));
  }
}

export function scoresOf(numbers) {
  if (!numbers) return "";
  const dino = Object.entries(numbers.dino).map(([name, value]) => `DINO ${name} ${value.toFixed(2)}`);
  return [`CLIP-T ${numbers.clip_t.toFixed(2)}`, ...dino].join("  ");
}

// Shows what one cell has become.
export function show(cell) {
  const parts = boxes.get(cell.cell);
  if (!parts) return;
  const { box, button, image, bar, left, seed, scores, copying, error } = parts;
  const source = cell.preview || (cell.result ? PICTURE(cell.result.picture) : "");
  if (source && image.getAttribute("src") !== source) image.src = source;
  image.hidden = !source;
  box.classList.toggle("busy", cell.busy);
  box.classList.toggle("stale", Boolean(cell.error) || (cell.busy && !cell.preview && Boolean(cell.result)));
  box.classList.toggle("draft", Boolean(cell.draft));
  bar.style.transform = `scaleX(${cell.busy ? cell.share : 0})`;
  left.textContent = cell.busy && cell.share > 0 && cell.left > 1.5 ? `${Math.ceil(cell.left)} s left` : "";
  seed.textContent = `seed ${cell.seed}`;
  scores.textContent = scoresOf(cell.result?.numbers);
  copying.disabled = !cell.result;
  error.textContent = cell.error;
  const state = cell.error || (cell.busy ? "being drawn" : "drawn");
  button.setAttribute("aria-label", `Seed ${cell.seed}${cell.word ? `, ${cell.word}` : ""}, ${state}; open`);
}
