// The page: what is pressed, typed and dropped becomes the mix, and the mix becomes pictures.

import { cells, draw, forgetBusy, hear } from "./drawing.js";
import { lay, show } from "./grid.js";
import { openLearn, startLearning, take, training } from "./learn.js";
import { emptyMix, lines, mentionsOf, plainOf, redo, remember, store, undo } from "./mix.js";
import { layStrips, mark, thumb } from "./strips.js";
import { open, refresh, start as startViewer } from "./viewer.js";
import { ask, listen, page, send, tell } from "./wire.js";

const $ = (id) => document.getElementById(id);
let facts = null;
let banks = [];
let added = ""; // The bank of the last training, once it stands on the desk.

function made(tag, classes = "", text = "") {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text) node.textContent = text;
  return node;
}

// Words about the whole page.

function status(text, kind) {
  $("status-text").textContent = text;
  $("status").dataset.kind = kind;
}

function trouble(sentence) {
  $("trouble").textContent = sentence;
  $("trouble").hidden = !sentence;
  $("prompt").setAttribute("aria-invalid", String(Boolean(sentence)));
}

let toasting = 0;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => ($("toast").hidden = true), 4000);
}

async function copy(name) {
  const cell = cells.get(name);
  const command = cell?.result?.command || cell?.command || "";
  try {
    await navigator.clipboard.writeText(command);
    toast("Copied: type it in the folder of Atelier for the same picture, byte for byte");
  } catch {
    toast(command);
  }
}

// Drawing.

function shown(cell) {
  if (cell) show(cell);
  else lay({ open, copy });
}

function refused(sentence) {
  trouble(sentence);
}

let waiting = 0;
function redraw({ draft = false, later = 0 } = {}) {
  clearTimeout(waiting);
  const now = () => {
    if (!facts || !store.mix.prompt.trim()) return;
    draw({ draft: draft && Boolean(store.mix.draft), plain: store.plain, shown, refused });
  };
  if (later) waiting = setTimeout(now, later);
  else now();
}

function changed(dragging = false) {
  redraw({ draft: dragging });
  if (dragging) return;
  if (remember()) showHistory();
  keep();
}

let keeping = 0;
function keep() {
  clearTimeout(keeping);
  keeping = setTimeout(() => {
    const { mix, history, future, words } = store;
    tell(`/api/state?page=${page}`, { mix, history, future, words }).catch(() => {});
  }, 300);
}

function news(event) {
  if (event.kind === "ready") return ready(event.facts);
  if (event.kind === "trouble") return status(event.sentence, "bad");
  if (event.kind === "restarting") return status("the program that draws ended, and starts again", "busy");
  if (event.kind === "training") return void heardTraining(event);
  const cell = hear(event);
  if (!cell) return;
  show(cell);
  refresh(cell, event.kind);
  if (event.kind === "failed" && event.of === "draw") trouble(event.sentence);
  if (event.kind !== "draw") return;
  trouble("");
  notes(event.said);
  spectrum(event.spectra);
  if (cell.dirty) redraw({ draft: true });
  if (!cell.draft && store.mix.numbers && store.mix.mode === "concepts") score(cell);
}

function score(cell) {
  const used = Object.fromEntries(store.mix.concepts.map((one) => [one.name, one.path]));
  const named = mentionsOf(store.mix.prompt).map((one) => [one.name, used[one.name]]);
  const told = { cell: cell.cell, version: cell.version, picture: cell.result.picture, text: plainOf(store.mix) };
  tell("/api/numbers", { ...told, banks: Object.fromEntries(named.filter(([, path]) => path)) }).catch(() => {});
}

function notes(said) {
  $("notes").textContent = (said || []).join(" ");
  $("notes").hidden = !said?.length;
}

function ready(told) {
  facts = told;
  const name = told.model ? `${told.model}, ${told.device}` : "no model";
  status(told.model ? name : "the model cannot be loaded", told.model ? "good" : "bad");
  if (told.steps) {
    $("steps").placeholder = told.steps;
    if (!store.mix.draft) store.mix.draft = Math.max(4, Math.round(told.steps / 5));
    $("draft").value = store.mix.draft;
  }
  loadBanks().then(() => redraw());
}

// The prompt, with its concepts marked.

function paintPrompt() {
  const field = $("prompt");
  const backdrop = $("backdrop");
  backdrop.replaceChildren();
  let at = 0;
  for (const { name, start, end } of mentionsOf(field.value)) {
    backdrop.append(field.value.slice(at, start));
    const known = store.mix.concepts.some((one) => one.name === name);
    backdrop.append(made("mark", known ? "known" : "unknown", field.value.slice(start, end)));
    at = end;
  }
  backdrop.append(field.value.slice(at), "\n");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

// A strength in the prompt goes to its fader.
function takeStrengths() {
  let text = store.mix.prompt;
  for (const { name, strength, start, end } of mentionsOf(text).reverse()) {
    const concept = store.mix.concepts.find((one) => one.name === name);
    if (strength === null || !concept || strength > 1.5) continue;
    concept.strength = strength;
    text = `${text.slice(0, start)}<${name}>${text.slice(end)}`;
  }
  if (text === store.mix.prompt) return;
  store.mix.prompt = $("prompt").value = text;
  strips();
  paintPrompt();
}

function insert(name) {
  const field = $("prompt");
  const text = field.value;
  if (mentionsOf(text).some((one) => one.name === name)) return;
  const joint = !text.trim() ? "a photo of a " : / $/.test(text) ? "" : mentionsOf(text).length ? " and a " : " with a ";
  field.value = `${text}${joint}<${name}>`;
  store.mix.prompt = field.value;
  paintPrompt();
  axes();
}

// Concepts.

function strips() {
  layStrips({
    changed,
    removed: (name) => {
      store.mix.concepts = store.mix.concepts.filter((one) => one.name !== name);
      const left = store.mix.prompt.replace(new RegExp(`\\s*(?:and|with|next to)?\\s*(?:an?|the)?\\s*<${name}(?::[^<>]*)?>`, "g"), "");
      store.mix.prompt = $("prompt").value = left.trim();
      strips();
      paintPrompt();
      axes();
      changed();
    },
    hold: (wanted) => plain(wanted),
  });
}

function plain(wanted) {
  if (store.plain === wanted) return;
  store.plain = wanted;
  document.body.classList.toggle("plain", wanted);
  redraw();
}

async function loadBanks() {
  try {
    banks = (await ask("/api/concepts")).concepts;
  } catch {
    return;
  }
  const list = $("banks");
  list.replaceChildren();
  $("no-banks").hidden = banks.length > 0;
  for (const bank of banks) {
    const item = made("li");
    const button = made("button", "bank");
    button.type = "button";
    button.disabled = Boolean(bank.trouble);
    const faces = made("span", "thumbs");
    for (const id of bank.pictures.slice(0, 4)) faces.append(thumb(id));
    const text = made("span", "bank-text");
    const when = new Date(bank.made * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const told = [bank.noun, bank.steps && `${bank.steps} steps`, bank.method !== "latexblend" && bank.method, when];
    text.append(made("strong", "", bank.name), made("small", "", bank.trouble || told.filter(Boolean).join(", ")));
    button.append(faces, text);
    button.addEventListener("click", () => (add(bank), $("bank-dialog").close()));
    item.append(button);
    list.append(item);
  }
}

function add(bank, mention = true) {
  let name = bank.name;
  for (let number = 2; store.mix.concepts.some((one) => one.name === name && one.path !== bank.path); number++) {
    name = `${bank.name}${number}`;
  }
  if (store.mix.concepts.some((one) => one.path === bank.path)) return;
  const { path, noun, steps, method, pictures } = bank;
  store.mix.concepts.push({ name, path, noun, steps, method, pictures, strength: 1, mute: false, solo: false });
  strips();
  if (mention) insert(name);
  changed();
}

async function heardTraining(state) {
  const bank = training(state);
  if (!bank || bank === added) return;
  added = bank;
  await loadBanks();
  const found = banks.find((one) => one.path === bank);
  if (found && !store.mix.concepts.some((one) => one.path === bank)) add(found);
}

// Settings.

function axes() {
  const { axis } = store.mix;
  const select = $("axis-key");
  const names = store.mix.concepts.map((one) => `strength of <${one.name}>`);
  const usual = ["method.sampling.guidance_scale", "method.sampling.num_inference_steps", "method.blending_start"];
  select.replaceChildren(new Option("one row", ""));
  for (const key of [...names, ...usual]) select.append(new Option(key, key));
  select.append(new Option("another key", "other"));
  const listed = [...select.options].some((option) => option.value === axis.key);
  select.value = listed ? axis.key : "other";
  $("axis-other-label").hidden = listed;
  $("axis-other").value = listed ? "" : axis.key;
  $("axis-values").value = axis.values;
  $("axis-values").disabled = !axis.key;
  mark();
}

async function split() {
  const { key, values } = store.mix.axis;
  store.words = [null];
  if (key && values.trim()) {
    const strength = key.startsWith("strength of <");
    try {
      const asked = strength ? "strength" : key;
      const { words } = await tell("/api/axis", { key: asked, values });
      store.words = strength ? words.map((word) => word.replace("strength=", `${key}=`)) : words;
      trouble("");
    } catch (error) {
      trouble(error.message);
      return;
    }
  }
  changed();
}

function showMix() {
  const { mix } = store;
  $("prompt").value = mix.prompt;
  $("seed-count").value = mix.seeds.count;
  $("seed-first").value = mix.seeds.first;
  $("seed-lock").checked = mix.seeds.locked;
  $("steps").value = mix.steps || "";
  $("draft").value = mix.draft || "";
  $("typed").value = mix.typed;
  $("numbers").checked = mix.numbers;
  $("mode").value = mix.mode;
  $("style-words").value = mix.style.words;
  $("style-path").value = mix.style.path;
  $("alpha").value = mix.style.alpha;
  $("blend").checked = mix.style.blend;
  $("correct").checked = mix.style.correct;
  $("adapter").value = mix.llm.adapter;
  $("llm-strength").value = mix.llm.strength;
  modes();
  strips();
  axes();
  paintPrompt();
}

function modes() {
  const { mode, style, llm } = store.mix;
  $("style-fields").hidden = mode !== "style";
  $("llm-fields").hidden = mode !== "llmdiff";
  $("console").classList.toggle("asleep", mode !== "concepts");
  $("alpha-out").textContent = style.alpha;
  $("llm-out").textContent = llm.strength;
}

function spectrum(said) {
  const canvas = $("spectrum");
  let spectra = null;
  try {
    spectra = JSON.parse(said?.spectra || "null");
  } catch {
    spectra = null;
  }
  const read = Object.entries(spectra || {}).map(([name, one]) => [name, one?.singular_values]);
  const curves = read.filter(([, values]) => Array.isArray(values) && values.every(Number.isFinite));
  canvas.hidden = !curves.length;
  if (canvas.hidden) return;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const most = Math.max(...curves.flatMap(([, value]) => value));
  context.clearRect(0, 0, canvas.width, canvas.height);
  curves.forEach(([, values], number) => {
    context.strokeStyle = style.getPropertyValue(number === curves.length - 1 ? "--accent" : "--soft");
    context.beginPath();
    values.forEach((value, at) => {
      const x = 2 + ((canvas.width - 4) * at) / Math.max(values.length - 1, 1);
      context.lineTo(x, canvas.height - 2 - (canvas.height - 6) * (value / most));
    });
    context.stroke();
  });
  canvas.setAttribute("aria-label", `Singular spectrum: ${curves.map(([name]) => name).join(", ")}`);
}

// History.

function showHistory() {
  $("undo").disabled = store.history.length < 2;
  $("redo").disabled = !store.future.length;
  const list = $("history");
  list.replaceChildren();
  [...store.history].reverse().slice(0, 30).forEach((text, number) => {
    const mix = JSON.parse(text);
    const item = made("li");
    const strengths = mix.concepts.map((one) => `${one.name} ${one.strength.toFixed(2)}`).join(", ");
    const button = made("button", "past");
    button.type = "button";
    button.append(made("span", "", mix.prompt || "an empty prompt"), made("small", "", strengths));
    if (!number) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      store.mix = JSON.parse(text);
      showMix();
      split();
    });
    item.append(button);
    list.append(item);
  });
}

function travel(step) {
  if (!step()) return;
  showMix();
  split();
  showHistory();
}

// What is dropped.

async function recall(file) {
  try {
    const found = await send("/api/recall", file);
    const { mix } = store;
    Object.assign(mix, { prompt: found.prompt, steps: null });
    mix.seeds = { ...mix.seeds, first: found.seed, count: 1 };
    mix.axis = { key: "", values: "" };
    const steps = found.typed.find((word) => word.startsWith("method.sampling.num_inference_steps="));
    if (steps) mix.steps = Number(steps.split("=")[1]) || null;
    const of = found.typed.find((word) => word.startsWith("method=")) || "";
    mix.mode = of.includes("style_svd") ? "style" : of.includes("llmdiff") ? "llmdiff" : "concepts";
    Object.assign(mix.style, { path: found.style.style || "", words: found.style.style_prompt || "" });
    const value = (key) => found.typed.find((word) => word.startsWith(`${key}=`))?.split("=")[1];
    Object.assign(mix.style, { alpha: Number(value("method.alpha") ?? 1), blend: value("method.blend") !== "false", correct: value("method.correct") !== "false" });
    const own = ["method", "method.alpha", "method.blend", "method.correct", "method.sampling.num_inference_steps"];
    mix.typed = found.typed.filter((word) => !own.includes(word.split("=")[0])).join("\n");
    mix.concepts = [];
    await loadBanks();
    for (const [name, path] of Object.entries(found.banks)) {
      const bank = banks.find((one) => one.path === path) || { path, noun: name, pictures: [], method: "latexblend" };
      const { noun, steps: learnt, method, pictures } = bank;
      mix.concepts.push({ name, path, noun, steps: learnt, method, pictures, strength: 1, mute: false, solo: false });
    }
    takeStrengths();
    showMix();
    await split();
    toast(found.left_out.length ? found.left_out.join("; ") : "The picture's settings are on the desk again");
  } catch (error) {
    toast(error.message);
  }
}

async function style(file) {
  try {
    store.mix.style.path = (await send("/api/style", file)).path;
    store.mix.mode = "style";
    $("style-part").open = true;
    showMix();
    changed();
  } catch (error) {
    toast(error.message);
  }
}

function drops() {
  const veil = $("drop-veil");
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  let over = 0;
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    veil.hidden = $("learn-dialog").open;
    clearTimeout(over);
    over = setTimeout(() => (veil.hidden = true), 300);
    const target = event.target.closest?.("[data-drop]");
    for (const part of veil.children) part.classList.toggle("over", part === target);
  });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    veil.hidden = true;
    const files = [...event.dataTransfer.files];
    const chosen = event.target.closest?.("[data-drop]")?.dataset.drop;
    const what = $("learn-dialog").open ? "learn" : chosen || (files.length > 1 ? "learn" : "recall");
    if (what === "learn") take(files);
    else if (what === "style") style(files[0]);
    else recall(files[0]);
  });
}

// Keys and fields.

function fields() {
  const on = (id, event, does) => $(id).addEventListener(event, does);
  const number = (event, low, high) => Math.min(high, Math.max(low, Math.round(Number(event.target.value) || low)));
  on("prompt", "input", () => {
    store.mix.prompt = $("prompt").value.replace(/\n/g, " ");
    paintPrompt();
    mark();
    redraw({ draft: true, later: 250 });
  });
  on("prompt", "change", () => (takeStrengths(), changed()));
  on("prompt", "keydown", (event) => {
    if (event.key === "Enter") (event.preventDefault(), takeStrengths(), changed());
  });
  on("seed-count", "change", (event) => ((store.mix.seeds.count = number(event, 1, 16)), changed()));
  on("seed-first", "change", (event) => ((store.mix.seeds.first = number(event, 0, 999999999)), changed()));
  on("seed-lock", "change", (event) => ((store.mix.seeds.locked = event.target.checked), keep()));
  on("seed-new", "click", newSeeds);
  on("axis-key", "change", (event) => {
    const key = event.target.value;
    const usual = { "method.sampling.guidance_scale": "1,3,5", "method.sampling.num_inference_steps": "5,10,25", "method.blending_start": "0.5,0.7,0.9" };
    store.mix.axis = { key: key === "other" ? "method." : key, values: usual[key] || (key.startsWith("strength") ? "0,0.5,1,1.5" : "") };
    axes();
    split();
  });
  on("axis-other", "change", (event) => ((store.mix.axis.key = event.target.value.trim()), split()));
  on("axis-values", "change", (event) => ((store.mix.axis.values = event.target.value), split()));
  on("steps", "change", (event) => ((store.mix.steps = Number(event.target.value) || null), changed()));
  on("draft", "change", (event) => ((store.mix.draft = Number(event.target.value) || null), changed()));
  on("typed", "change", (event) => ((store.mix.typed = lines(event.target.value).join("\n")), changed()));
  on("numbers", "change", (event) => {
    store.mix.numbers = event.target.checked;
    keep();
    if (store.mix.numbers) for (const cell of cells.values()) if (cell.result && !cell.busy) score(cell);
  });
  on("mode", "change", (event) => ((store.mix.mode = event.target.value), modes(), changed()));
  on("style-words", "change", (event) => (Object.assign(store.mix.style, { words: event.target.value, path: "" }), showMix(), changed()));
  on("style-path", "change", (event) => (Object.assign(store.mix.style, { path: event.target.value.trim() }), changed()));
  on("alpha", "input", (event) => ((store.mix.style.alpha = Number(event.target.value)), modes(), changed(true)));
  on("alpha", "change", () => changed());
  on("blend", "change", (event) => ((store.mix.style.blend = event.target.checked), changed()));
  on("correct", "change", (event) => ((store.mix.style.correct = event.target.checked), changed()));
  on("adapter", "change", (event) => ((store.mix.llm.adapter = event.target.value.trim()), changed()));
  on("llm-strength", "input", (event) => ((store.mix.llm.strength = Number(event.target.value)), modes(), changed(true)));
  on("llm-strength", "change", () => changed());
  on("undo", "click", () => travel(undo));
  on("redo", "click", () => travel(redo));
  on("add", "click", () => (loadBanks(), $("bank-dialog").showModal()));
  on("learn", "click", openLearn);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

function newSeeds() {
  if (store.mix.seeds.locked) return toast("The seeds are locked");
  store.mix.seeds.first = Math.floor(Math.random() * 1e6);
  $("seed-first").value = store.mix.seeds.first;
  changed();
}

function keys() {
  const typing = () => document.activeElement?.matches("textarea, input:not([type=range]):not([type=checkbox]), select");
  addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    if (command && event.key.toLowerCase() === "z" && !typing()) {
      event.preventDefault();
      travel(event.shiftKey ? redo : undo);
    } else if (!command && !event.altKey && !typing() && !document.querySelector("dialog[open]")) {
      if (event.key === "p") plain(true);
      if (event.key === "r") newSeeds();
      if (event.key === "/") (event.preventDefault(), $("prompt").focus());
    }
  });
  addEventListener("keyup", (event) => event.key === "p" && plain(false));
  addEventListener("blur", () => plain(false));
}

// A first visit: the concepts that the desk was started with, and a prompt that names them.
async function first(desk) {
  await loadBanks();
  const given = banks.filter((one) => desk.given.includes(one.name) && !one.trouble).slice(0, desk.given.length);
  for (const bank of given) add(bank, false);
  const names = given.map((one) => `a <${one.name}>`);
  const list = names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
  store.mix.prompt = desk.prompt || (names.length ? `${list} on the grass` : "a red dog on the grass");
}

async function begin() {
  fields();
  keys();
  drops();
  startViewer(copy);
  startLearning();
  const [desk, kept] = await Promise.all([ask("/api/desk"), ask(`/api/state?page=${page}`)]);
  if (kept.mix) {
    store.mix = { ...emptyMix(), ...kept.mix };
    store.history = kept.history || [];
    store.future = kept.future || [];
    store.words = kept.words || [null];
  } else await first(desk);
  showMix();
  if (remember()) keep();
  showHistory();
  heardTraining(desk.training);
  if (desk.trouble) status(desk.trouble, "bad");
  if (desk.facts) ready(desk.facts);
  listen(news, (gone, again) => {
    if (gone) status("the desk does not answer; is it still running?", "bad");
    if (again) (forgetBusy(), ask("/api/desk").then((told) => told.facts && ready(told.facts)));
    if (!gone && facts?.model && $("status").dataset.kind === "bad") ready(facts);
  });
}

begin();
