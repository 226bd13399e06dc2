// The gallery: runs to browse, two series side by side, blind votes. Text of others is only ever set as text.

const at = (id) => document.getElementById(id);
const KINDS = { train: "trainings", generate: "drawn", eval: "evaluations", sweep: "sweeps" };
const VIEWS = ["runs", "run", "compare", "vote", "wins"];
const LITTLE = 128;
const FEW = 3; // Scores under a picture; the large one has them all.

let runs = [];
const known = new Map(); // Series to its pictures.
let kind = "";
let shown = null; // The series whose pictures are shown, with its run.
const held = { a: null, b: null };
let pairs = { pairs: [], differences: {}, alone: 0 };
let trial = null;

async function ask(path, told) {
  const options = { cache: "no-store" };
  if (told) Object.assign(options, { method: "POST", body: JSON.stringify(told), headers: { "content-type": "application/json" } });
  const response = await fetch(path, options);
  const json = (response.headers.get("content-type") || "").includes("json");
  const answer = json ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Runs what a click asks for; what is refused is said at the top of the page.
function trying(act) {
  return async (event) => {
    at("trouble").hidden = true;
    try {
      await act(event);
    } catch (error) {
      at("trouble").textContent = error.message;
      at("trouble").hidden = false;
    }
  };
}

function made(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const address = (picture, small) => `api/gallery/pictures/${picture}${small ? "?small=1" : ""}`;

function picture(id, alt, small = false) {
  const image = made("img");
  image.alt = alt;
  image.loading = "lazy";
  image.addEventListener("load", () => image.classList.toggle("little", image.naturalWidth <= LITTLE));
  image.src = address(id, small);
  return image;
}

function show(view) {
  for (const name of VIEWS) at(name).hidden = name !== view;
  for (const tab of document.querySelectorAll("[data-view]")) tab.setAttribute("aria-pressed", String(tab.dataset.view === view));
  scrollTo(0, 0);
}

// --- Runs

async function readRuns() {
  const told = await ask("api/gallery/runs");
  runs = told.runs;
  known.clear();
  at("votes-command").textContent = `python -m src.eval.votes ${told.votes}`;
  drawKinds();
  drawCards();
}

function drawKinds() {
  const counts = Object.keys(KINDS).map((name) => [name, runs.filter((run) => run.kind === name).length]);
  at("kinds").replaceChildren(
    ...[["", runs.length], ...counts].map(([name, count]) => {
      const chip = made("button", "", `${KINDS[name] || "all"} ${count}`);
      chip.type = "button";
      chip.setAttribute("aria-pressed", String(kind === name));
      chip.addEventListener("click", () => {
        kind = name;
        drawKinds();
        drawCards();
      });
      return chip;
    }),
  );
}

function drawCards() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = runs.filter((run) => {
    const text = [run.kind, run.name, run.date, ...run.settings, ...run.series.map((one) => one.label)].join(" ").toLowerCase();
    return (!kind || run.kind === kind) && words.every((word) => text.includes(word));
  });
  at("cards").replaceChildren(...kept.map(card));
  at("none").hidden = runs.length > 0;
}

function card(run) {
  const item = made("li");
  const button = made("button", "card");
  button.type = "button";
  const cover = made("div", run.cover.length > 1 ? "cover" : "cover one");
  cover.append(...run.cover.map((id) => picture(id, "", true)));
  const text = made("div");
  const number = { train: "steps", sweep: "points" }[run.kind];
  const parts = [KINDS[run.kind], run.date, number && run.series.length ? `${run.series.length} ${number}` : ""];
  text.append(made("b", "", run.name), made("small", "", parts.filter(Boolean).join(" · ")));
  text.append(run.trouble ? made("small", "bad", run.trouble) : made("small", "", run.settings.map(typed).join(" ")));
  button.append(cover, text);
  button.addEventListener("click", trying(() => openRun(run)));
  item.append(button);
  return item;
}

// As short as a card is wide: no pluses of Hydra's, no folders of files.
const typed = (setting) => setting.replace(/^\++/, "").replace(/=[^=]*\/([^/]+)$/, "=$1");

// --- One run

async function openRun(run) {
  at("run-name").textContent = run.name;
  at("run-kind").textContent = `${KINDS[run.kind]} · ${run.date}`;
  at("run-settings").textContent = run.settings.join("\n");
  at("cells").replaceChildren();
  shown = null;
  for (const button of [at("hold-a"), at("hold-b")]) button.disabled = true;
  at("choose").replaceChildren(...(run.kind === "train" ? scrubber(run) : arms(run)));
  show("run");
  if (run.trouble) throw new Error(run.trouble);
  const last = run.kind === "train" ? run.series.length - 1 : 0;
  if (run.series.length) await openSeries(run, run.series[last]);
}

function scrubber(run) {
  if (run.series.length < 2) return run.series.map((one) => made("output", "", one.label));
  const range = made("input");
  Object.assign(range, { type: "range", min: 0, max: run.series.length - 1, value: run.series.length - 1 });
  range.setAttribute("aria-label", "Step");
  const label = made("output", "", run.series.at(-1).label);
  range.addEventListener("input", trying(async () => {
    const series = run.series[Number(range.value)];
    label.textContent = series.label;
    range.setAttribute("aria-valuetext", series.label);
    await openSeries(run, series);
  }));
  return [range, label];
}

function arms(run) {
  return run.series.map((series, index) => {
    const button = made("button", "", series.label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(index === 0));
    button.addEventListener("click", trying(async () => {
      for (const other of at("choose").children) other.setAttribute("aria-pressed", String(other === button));
      await openSeries(run, series);
    }));
    return button;
  });
}

async function openSeries(run, series) {
  shown = { id: series.id, name: `${run.name} ${run.date}, ${series.label}` };
  if (!known.has(series.id)) known.set(series.id, await ask(`api/gallery/series/${series.id}`));
  if (shown.id !== series.id) return; // The scrubber went on.
  const { cells, references } = known.get(series.id);
  drawReferences(at("references"), references);
  const figures = [...at("cells").children];
  // The same places keep their elements: under the scrubber only the pictures change.
  if (figures.length === cells.length && cells.every((cell, index) => figures[index].dataset.place === place(cell))) {
    cells.forEach((cell, index) => {
      figures[index].querySelector("img").src = address(cell.picture);
      figures[index].querySelector("button").onclick = () => enlarge(cell);
    });
  } else {
    at("cells").replaceChildren(...cells.map(figure));
  }
  for (const button of [at("hold-a"), at("hold-b")]) button.disabled = false;
}

function drawReferences(row, references) {
  row.hidden = !references.length;
  if (row.dataset.shown === references.join()) return;
  row.dataset.shown = references.join();
  row.replaceChildren(...references.map((id) => picture(id, "reference")));
}

const place = (cell) => [prompt(cell), cell.seed && `seed ${cell.seed}`].filter(Boolean).join(" | ");
const prompt = (cell) => cell.prompt.replace("{}", cell.of || "{}");
const told = (names, text) => names.slice(0, FEW).map(text).join(" · ");
const scores = (cell, names = Object.keys(cell.scores)) => told(names, (name) => `${name} ${cell.scores[name].toFixed(3)}`);

function framed(cell, act, alt = place(cell)) {
  const button = made("button", "frame");
  button.type = "button";
  button.append(picture(cell.picture, alt));
  button.onclick = act;
  return button;
}

function figure(cell) {
  const element = made("figure");
  element.dataset.place = place(cell);
  const caption = made("figcaption", "", prompt(cell));
  caption.append(made("small", "", [cell.seed && `seed ${cell.seed}`, scores(cell)].filter(Boolean).join(" · ")));
  element.append(framed(cell, () => enlarge(cell)), caption);
  return element;
}

function enlarge(cell, other = null) {
  at("large-first").src = address(cell.picture);
  at("large-first").alt = place(cell);
  at("large-second").hidden = at("wipe-label").hidden = !other;
  if (other) at("large-second").src = address(other.picture);
  const every = Object.keys(cell.scores).map((name) => change(name, cell, other));
  at("large-caption").textContent = [place(cell), ...every].join(" · ");
  at("wipe").value = 50;
  wipe();
  at("large").showModal();
}

function wipe() {
  at("large-second").style.clipPath = `inset(0 0 0 ${at("wipe").value}%)`;
}

// --- Side by side

async function hold(side) {
  held[side] = shown;
  at(`held-${side}`).textContent = shown.name;
  at("tray").hidden = false;
  const both = held.a && held.b;
  for (const view of ["compare", "vote"]) document.querySelector(`[data-view=${view}]`).disabled = !both;
  if (both) await compare();
}

async function compare() {
  pairs = { pairs: [], differences: {}, alone: 0 };
  drawPairs();
  show("compare");
  at("compare-name").textContent = `${held.a.name}  and  ${held.b.name}`;
  pairs = await ask(`api/gallery/compared?first=${held.a.id}&second=${held.b.id}`);
  const orders = [["", "as drawn"], ...Object.keys(pairs.differences).flatMap((name) => [[`+${name}`, `B gains most ${name}`], [`-${name}`, `B loses most ${name}`]])];
  at("order").replaceChildren(...orders.map(([value, text]) => Object.assign(made("option", "", text), { value })));
  at("alone").hidden = !pairs.alone;
  at("alone").textContent = `${pairs.alone} pictures have no partner and are not shown.`;
  drawPairs();
}

function drawPairs() {
  const rows = Object.entries(pairs.differences).map(([name, { mean, low, high }]) => {
    const sure = low > 0 ? "good" : high < 0 ? "bad" : "";
    return [[name], [signed(mean), sure], [`[${signed(low)}, ${signed(high)}]`, "soft"]];
  });
  const sure = Object.entries(pairs.differences).filter(([, { low, high }]) => low > 0 || high < 0);
  at("sure").textContent = sure.length ? sure.map(([name, { mean }]) => `${name} ${signed(mean)}`).join(", ") : "no interval excludes 0";
  at("numbers").hidden = !rows.length;
  table(at("differences"), rows.length ? ["B less A", "difference", "95% interval"] : [], rows);
  const order = at("order").value;
  const gain = ({ first, second }) => (second.scores[order.slice(1)] ?? 0) - (first.scores[order.slice(1)] ?? 0);
  const sorted = order ? pairs.pairs.toSorted((one, other) => (order[0] === "+" ? gain(other) - gain(one) : gain(one) - gain(other))) : pairs.pairs;
  at("pairs").replaceChildren(...sorted.map(({ first, second }) => {
    const element = made("div", "pair");
    const both = made("div");
    both.append(framed(first, () => enlarge(first, second), `A: ${place(first)}`), framed(second, () => enlarge(first, second), `B: ${place(second)}`));
    const names = Object.keys(first.scores).filter((name) => name in second.scores);
    const ordered = order ? [order.slice(1), ...names.filter((name) => name !== order.slice(1))] : names;
    element.append(both, made("p", "", place(first)), made("p", "", told(ordered, (name) => change(name, first, second))));
    return element;
  }));
}

function change(name, cell, other) {
  const values = [cell, other].filter((one) => one && name in one.scores).map((one) => one.scores[name].toFixed(3));
  return `${name} ${values.join(" → ")}`;
}

const signed = (value) => (value === null ? "undefined" : `${value < 0 ? "" : "+"}${value.toFixed(3)}`);

function table(element, columns, rows) {
  const line = (tag, cells) => {
    const row = made("tr");
    row.append(...cells.map(([text, className]) => made(tag, className, text)));
    return row;
  };
  const head = made("thead");
  const body = made("tbody");
  head.append(line("th", columns.map((column) => [column])));
  body.append(...rows.map((row) => line("td", row)));
  element.replaceChildren(...(rows.length ? [head, body] : []));
}

// --- Votes

const asked = () => ({ first: held.a.id, second: held.b.id, rater: at("rater").value, question: at("question").value });

async function next() {
  trial = await ask(`api/gallery/trial?${new URLSearchParams(asked())}`);
  const over = !trial.sides;
  at("trial").hidden = over;
  at("done").hidden = !over;
  if (over) {
    at("done").textContent = `All ${trial.number} pairs are voted on. Thank you.`;
    await wins();
    return;
  }
  at("left").textContent = `${trial.left} of ${trial.number} left.`;
  at("prompt").textContent = prompt(trial);
  drawReferences(at("subject"), trial.references);
  for (const [side, id] of [["left", trial.sides[0]], ["right", trial.sides[1]]]) {
    at(`side-${side}`).src = address(id);
    at(`side-${side}`).onload = ({ target }) => target.classList.toggle("little", target.naturalWidth <= LITTLE);
  }
}

async function vote(choice) {
  const { sides } = trial;
  trial = { left: 0 }; // A second key press finds nothing to vote on.
  await ask("api/gallery/votes", { ...asked(), sides, choice });
  await next();
}

async function wins() {
  const { preferences } = await ask("api/gallery/votes");
  const percent = (value) => (value === null ? "?" : `${Math.round(100 * value)}%`);
  const rows = preferences.map((one) => {
    const { mean, low, high } = one.share;
    const counts = [one.won, one.tied, one.lost].map((count) => [String(count)]);
    const share = `${percent(mean)} [${percent(low)}, ${percent(high)}]`;
    const sure = { preferred: "good", "not preferred": "bad" }[one.word];
    return [[one.method], [one.other], [one.question], ...counts, [share], [one.word, sure]];
  });
  table(at("preferences"), ["", "beside", "which one", "won", "tied", "lost", "share preferred", "verdict"], rows);
  show("wins");
}

// --- What is clicked

at("search").addEventListener("input", drawCards);
at("back").addEventListener("click", () => show("runs"));
at("hold-a").addEventListener("click", trying(() => hold("a")));
at("hold-b").addEventListener("click", trying(() => hold("b")));
at("order").addEventListener("change", drawPairs);
at("wipe").addEventListener("input", wipe);
at("close").addEventListener("click", () => at("large").close());
at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  document.activeElement.blur();
  trying(next)();
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", trying(() => vote(button.dataset.choice)));
}
const acts = {
  runs: async () => {
    show("runs");
    await readRuns();
  },
  compare,
  vote: async () => {
    trial = null;
    at("trial").hidden = at("done").hidden = true;
    show("vote");
    at("rater").focus();
  },
  wins,
};
for (const tab of document.querySelectorAll("[data-view]")) tab.addEventListener("click", trying(acts[tab.dataset.view]));
document.addEventListener("keydown", (event) => {
  const choice = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" }[event.key];
  if (!choice || at("vote").hidden || at("trial").hidden || !trial?.sides || event.target.matches("input")) return;
  event.preventDefault();
  trying(() => vote(choice))();
});

trying(readRuns)();
