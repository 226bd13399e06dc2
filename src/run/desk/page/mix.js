// What the page shows and keeps: the mix. All that is drawn follows from it.

export const MOST_STRENGTH = 1.5;
const MENTION = /<([A-Za-z_][A-Za-z0-9_-]*)\s*(?::\s*([\d.]+))?\s*>/g;
const MOST_HISTORY = 60;

export function emptyMix() {
  return {
    prompt: "",
    concepts: [],
    seeds: { first: 0, count: 4, locked: false },
    axis: { key: "", values: "" },
    steps: null,
    draft: null,
    typed: "",
    numbers: false,
    mode: "concepts",
    style: { words: "", path: "", alpha: 1, blend: true, correct: true },
    llm: { adapter: "", strength: 1 },
  };
}

export const store = { mix: emptyMix(), words: [null], history: [], future: [], plain: false };

export function mentionsOf(prompt) {
  return [...prompt.matchAll(MENTION)].map((found) => ({
    name: found[1],
    strength: found[2] === undefined ? null : Number(found[2]),
    start: found.index,
    end: found.index + found[0].length,
  }));
}

// How strongly a concept acts now: its fader, unless it is muted, another is solo, or the plain noun is wanted.
export function acting(concept, concepts, plain = false) {
  if (plain || concept.mute) return 0;
  if (!concept.solo && concepts.some((one) => one.solo)) return 0;
  return concept.strength;
}

const written = (strength) => String(Math.round(strength * 100) / 100);

// The prompt as generate.py reads it: a mention without a strength of its own has that of its fader.
export function promptOf(mix, plain, changed = {}) {
  return mix.prompt.trim().replace(MENTION, (whole, name, own) => {
    const concept = mix.concepts.find((one) => one.name === name);
    if (!concept && own === undefined) return `<${name}>`;
    let strength = name in changed ? changed[name] : own !== undefined ? Number(own) : acting(concept, mix.concepts, plain);
    if (plain) strength = 0;
    return strength === 1 ? `<${name}>` : `<${name}:${written(strength)}>`;
  });
}

// The prompt with class nouns, for scores.
export function plainOf(mix) {
  return mix.prompt.trim().replace(MENTION, (whole, name) => mix.concepts.find((one) => one.name === name)?.noun || name);
}

export function lines(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

const AXIS_STRENGTH = /^strength of <(.+)>$/;

// Settings of one cell, in the order in which the command has them.
export function cellOf(mix, seed, word, { draft = false, plain = false } = {}) {
  const typed = lines(mix.typed);
  const changed = {};
  let own = seed;
  if (word) {
    const [key, value] = [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)];
    const strength = AXIS_STRENGTH.exec(key);
    if (strength) changed[strength[1]] = Number(value);
    else if (key === "seed") own = Number(value);
    else typed.push(word);
  }
  const settings = {};
  if (mix.mode === "style") settings.method = "style_svd";
  if (mix.mode === "llmdiff") settings.method = "llmdiff";
  settings.prompt = promptOf(mix, plain, changed);
  settings.seed = own;
  if (mix.mode === "concepts") {
    for (const { name } of mentionsOf(mix.prompt)) {
      const concept = mix.concepts.find((one) => one.name === name);
      if (concept) settings[`bank.${name}`] = concept.path;
      if (concept && concept.method !== "latexblend") settings.method = concept.method;
    }
  }
  if (mix.mode === "style") {
    const { words, path, alpha, blend, correct } = mix.style;
    if (path) settings.style = path;
    else if (words) settings.style_prompt = words;
    if (path || words) {
      settings["method.alpha"] = alpha;
      if (!blend) settings["method.blend"] = false;
      if (!correct) settings["method.correct"] = false;
    }
  }
  if (mix.mode === "llmdiff") {
    settings.adapter = mix.llm.adapter;
    settings["method.strength"] = mix.llm.strength;
  }
  const steps = draft ? mix.draft : mix.steps;
  const set = typed.some((one) => one.includes("num_inference_steps"));
  if (steps && mix.mode !== "style" && !set) settings["method.sampling.num_inference_steps"] = steps;
  return { settings, typed, alone: mix.mode === "style" };
}

export function seedsOf(mix) {
  return Array.from({ length: mix.seeds.count }, (_, number) => mix.seeds.first + number);
}

// Snapshots of the mix, for undo; equal ones are kept once.
export function remember() {
  const now = JSON.stringify(store.mix);
  if (store.history.at(-1) === now) return false;
  store.history.push(now);
  store.history = store.history.slice(-MOST_HISTORY);
  store.future = [];
  return true;
}

export function undo() {
  if (store.history.length < 2) return false;
  store.future.push(store.history.pop());
  store.mix = JSON.parse(store.history.at(-1));
  return true;
}

export function redo() {
  if (!store.future.length) return false;
  store.history.push(store.future.pop());
  store.mix = JSON.parse(store.history.at(-1));
  return true;
}
