// One picture large, or two of them: wiped or side by side, with one zoom for both; and where its concepts look.

import { cells } from "./drawing.js";
import { PICTURE, scoresOf } from "./grid.js";
import { mentionsOf } from "./mix.js";
import { tell } from "./wire.js";

const $ = (id) => document.getElementById(id);
const dialog = $("viewer");
const stage = $("viewer-stage");
const view = { first: null, second: "", wipe: true, zoom: 1, x: 0, y: 0 };
let copy = () => {};

function made(tag, classes = "", text = "") {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text) node.textContent = text;
  return node;
}

const titleOf = (cell) => `seed ${cell.seed}${cell.word ? `, ${cell.word}` : ""}`;

function pane(cell, side) {
  const frame = made("div", `pane ${side}`);
  const image = made("img");
  image.src = PICTURE(cell.result.picture);
  image.alt = titleOf(cell);
  image.draggable = false;
  const heat = made("canvas", "heat");
  heat.width = heat.height = 32;
  heat.hidden = true;
  const inner = made("div", "inner");
  inner.append(image, heat);
  frame.append(inner);
  return frame;
}

function move() {
  const transform = `translate(${view.x}%, ${view.y}%) scale(${view.zoom})`;
  for (const inner of stage.querySelectorAll(".inner")) inner.style.transform = transform;
  stage.style.setProperty("--wipe", `${$("wipe").value}%`);
}

function lay() {
  const first = cells.get(view.first);
  if (!first?.result) return dialog.close();
  const second = view.second && cells.get(view.second)?.result ? cells.get(view.second) : null;
  stage.replaceChildren(pane(first, "a"));
  if (second) stage.append(pane(second, "b"));
  stage.classList.toggle("two", Boolean(second) && !view.wipe);
  stage.classList.toggle("wiping", Boolean(second) && view.wipe);
  $("wipe").hidden = !(second && view.wipe);
  const kind = $("viewer-kind");
  kind.hidden = !second;
  kind.setAttribute("aria-pressed", String(!view.wipe));
  const { seconds, said, numbers } = first.result;
  const told = [titleOf(first), `${seconds.toFixed(1)} s`, scoresOf(numbers), ...(said || [])];
  $("viewer-text").textContent = told.filter(Boolean).join("  \u00b7  ");
  $("viewer-command").textContent = first.result.command || first.command || "";
  names(first);
  move();
}

function names(cell) {
  const list = $("viewer-names");
  const prompt = cell.result.asked?.settings.prompt || "";
  const found = [...new Set(mentionsOf(prompt).map((one) => one.name))];
  list.replaceChildren();
  if (found.length) list.append(made("span", "quiet", "Where it looks"));
  for (const name of found) {
    const chip = made("button", "chip", name);
    chip.type = "button";
    for (const begin of ["pointerenter", "focus"]) chip.addEventListener(begin, () => heat(cell, name));
    for (const end of ["pointerleave", "blur"]) chip.addEventListener(end, () => heat(cell, null));
    list.append(chip);
  }
}

let wanted = null;

function heat(cell, name) {
  wanted = name;
  const canvas = stage.querySelector(".pane.a .heat");
  if (!canvas) return;
  canvas.hidden = true;
  if (!name) return;
  const attention = cell.result.attention;
  if (!attention) {
    const { settings, typed, alone } = cell.result.asked;
    const ask = { cell: cell.cell, version: cell.version, kind: "attention", settings, typed, alone };
    tell("/api/draw", { cells: [ask] }).catch(() => {});
    return;
  }
  paint(canvas, attention.maps[name], attention.side);
}

function paint(canvas, map, side) {
  if (!map) return;
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  map.forEach((share, at) => {
    image.data.set([255, 138, 46, Math.round(share * 0.8)], 4 * at);
  });
  context.putImageData(image, 0, 0);
  canvas.hidden = false;
}

// News of a cell that is shown.
export function refresh(cell, kind) {
  if (!dialog.open || ![view.first, view.second].includes(cell.cell)) return;
  if (kind === "attention") return void (wanted && cell.cell === view.first && heat(cell, wanted));
  if (kind === "draw" || kind === "numbers") lay();
}

export function open(name) {
  if (!cells.get(name)?.result) return;
  Object.assign(view, { first: name, zoom: 1, x: 0, y: 0 });
  const other = $("viewer-other");
  other.replaceChildren(new Option("nothing", ""));
  for (const cell of cells.values()) if (cell.cell !== name && cell.result) other.append(new Option(titleOf(cell), cell.cell));
  if (![...other.options].some((option) => option.value === view.second)) view.second = "";
  other.value = view.second;
  if (!dialog.open) dialog.showModal();
  lay();
  stage.focus();
}

function step(by) {
  const ready = [...cells.values()].filter((cell) => cell.result).map((cell) => cell.cell);
  const at = ready.indexOf(view.first);
  open(ready[(at + by + ready.length) % ready.length]);
}

function zoom(factor) {
  view.zoom = Math.min(16, Math.max(1, view.zoom * factor));
  const most = ((view.zoom - 1) / view.zoom) * 50 * view.zoom;
  [view.x, view.y] = [view.x, view.y].map((value) => Math.max(-most, Math.min(most, value)));
  move();
}

function shift(x, y) {
  const most = (view.zoom - 1) * 50;
  view.x = Math.max(-most, Math.min(most, view.x + x));
  view.y = Math.max(-most, Math.min(most, view.y + y));
  move();
}

export function start(copying) {
  copy = copying;
  $("viewer-other").addEventListener("change", (event) => ((view.second = event.target.value), lay()));
  $("viewer-kind").addEventListener("click", () => ((view.wipe = !view.wipe), lay()));
  $("viewer-copy").addEventListener("click", () => copy(view.first));
  $("wipe").addEventListener("input", move);
  stage.addEventListener("wheel", (event) => (event.preventDefault(), zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2)), { passive: false });
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    const box = stage.querySelector(".pane").getBoundingClientRect();
    shift((100 * event.movementX) / box.width, (100 * event.movementY) / box.height);
  });
  stage.addEventListener("keydown", (event) => {
    const zoomed = view.zoom > 1;
    const does = {
      "+": () => zoom(1.25),
      "=": () => zoom(1.25),
      "-": () => zoom(0.8),
      ArrowLeft: () => (zoomed ? shift(5, 0) : step(-1)),
      ArrowRight: () => (zoomed ? shift(-5, 0) : step(1)),
      ArrowUp: () => shift(0, 5),
      ArrowDown: () => shift(0, -5),
    }[event.key];
    if (does) (event.preventDefault(), does());
  });
}
