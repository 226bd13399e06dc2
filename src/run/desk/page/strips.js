// The console: one strip for each concept, with its fader, mute and solo.

import { acting, mentionsOf, MOST_STRENGTH, store } from "./mix.js";

const strips = document.getElementById("strips");

function made(tag, classes = "", text = "") {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text) node.textContent = text;
  return node;
}

export function thumb(id, alt = "") {
  const image = made("img");
  image.src = `/api/shown/${id}`;
  image.alt = alt;
  image.loading = "lazy";
  return image;
}

function toggle(label, title, pressed, changed) {
  const button = made("button", "toggle", label);
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", title);
  button.setAttribute("aria-pressed", String(Boolean(pressed)));
  button.addEventListener("click", () => changed(button));
  return button;
}

// Builds all strips anew. `changed(dragging)` is told that the mix is another.
export function layStrips({ changed, removed, hold }) {
  strips.replaceChildren();
  for (const concept of store.mix.concepts) {
    const { name } = concept;
    const strip = made("section", "strip");
    strip.dataset.name = name;
    strip.setAttribute("aria-label", name);
    const head = made("button", "face");
    head.type = "button";
    head.title = "Hold to see the plain noun";
    head.setAttribute("aria-label", `Hold to see ${name} as a plain ${concept.noun}`);
    if (concept.pictures?.length) head.append(thumb(concept.pictures[0]));
    else head.append(made("span", "letter", name[0].toUpperCase()));
    head.addEventListener("pointerdown", () => hold(true));
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) head.addEventListener(end, () => hold(false));
    const title = made("p", "strip-name", name);
    const noun = made("p", "strip-noun", concept.noun + (concept.steps ? `, ${concept.steps} steps` : ""));

    const slot = made("div", "slot");
    const ticks = made("div", "ticks");
    for (const at of [1.5, 1, 0.5, 0]) ticks.append(made("span", at === 1 ? "one" : "", String(at)));
    const fader = made("input", "fader");
    Object.assign(fader, { type: "range", min: 0, max: MOST_STRENGTH, step: 0.01, value: concept.strength });
    fader.setAttribute("aria-label", `Strength of ${name}`);
    fader.setAttribute("aria-orientation", "vertical");
    const value = made("output", "strength");
    const read = () => {
      concept.strength = Number(fader.value);
      value.textContent = concept.strength.toFixed(2);
      fader.style.setProperty("--at", concept.strength / MOST_STRENGTH);
      mark();
    };
    fader.addEventListener("input", () => (read(), changed(true)));
    fader.addEventListener("change", () => (read(), changed(false)));
    fader.addEventListener("dblclick", () => ((fader.value = 1), read(), changed(false)));
    slot.append(fader, ticks);

    const flip = (key) => (button) => {
      concept[key] = !concept[key];
      button.setAttribute("aria-pressed", String(concept[key]));
      mark();
      changed(false);
    };
    const buttons = made("div", "toggles");
    buttons.append(
      toggle("M", `Mute ${name}`, concept.mute, flip("mute")),
      toggle("S", `Solo ${name}`, concept.solo, flip("solo")),
      toggle("\u00d7", `Remove ${name}`, false, () => removed(name)),
    );
    strip.append(head, title, noun, slot, value, buttons);
    strips.append(strip);
    value.textContent = concept.strength.toFixed(2);
    fader.style.setProperty("--at", concept.strength / MOST_STRENGTH);
  }
  mark();
}

// Greys the strips that do not act on the pictures now.
export function mark() {
  const named = new Set(mentionsOf(store.mix.prompt).map((one) => one.name));
  for (const strip of strips.children) {
    const concept = store.mix.concepts.find((one) => one.name === strip.dataset.name);
    if (!concept) continue;
    strip.classList.toggle("silent", acting(concept, store.mix.concepts) === 0);
    strip.classList.toggle("unused", !named.has(concept.name));
  }
}
