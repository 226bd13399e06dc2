// A new concept from dropped photos: the command of train.py, its progress, its samples as they come.

import { fresh, send, tell } from "./wire.js";

const $ = (id) => document.getElementById(id);
const dialog = $("learn-dialog");
let batch = fresh();
let photos = 0;

function trouble(sentence) {
  $("learn-trouble").textContent = sentence;
  $("learn-trouble").hidden = !sentence;
}

export async function take(files) {
  if (!dialog.open) dialog.showModal();
  trouble("");
  for (const file of files) {
    try {
      const { number } = await send(`/api/photos?batch=${batch}`, file);
      photos = number;
      const image = document.createElement("img");
      image.alt = "";
      image.src = URL.createObjectURL(file);
      $("photo-shown").append(image);
    } catch (error) {
      trouble(`${file.name}: ${error.message}`);
    }
  }
}

export function openLearn() {
  if (!dialog.open) dialog.showModal();
}

// Shows how a training gets on; returns the bank when it is done.
export function training(state) {
  const running = ["starting", "training", "stopping", "keeping"].includes(state.state);
  $("learn-start").hidden = running;
  $("learn-stop").hidden = !running;
  $("learn-stop").disabled = state.state !== "training";
  $("learn-progress").hidden = state.state === "none";
  if (state.state === "none") return null;
  $("learn-bar").value = state.share || 0;
  const left = state.left > 90 ? `${Math.round(state.left / 60)} minutes left` : `${Math.round(state.left || 0)} seconds left`;
  const says = {
    starting: `${state.name}: starting`,
    training: `${state.name}: ${Math.round(100 * state.share)} %${state.left ? `, ${left}` : ""}`,
    stopping: `${state.name}: stopping after this step`,
    keeping: `${state.name}: keeping what was learnt`,
    done: `${state.name} is learnt, and stands on the desk`,
    failed: state.sentence,
  };
  $("learn-text").textContent = says[state.state];
  $("learn-text").title = state.command || "";
  const grid = (state.grids || []).at(-1);
  $("learn-grid").hidden = !grid;
  if (grid) $("learn-grid").src = `/api/shown/${grid}`;
  return state.state === "done" ? state.bank : null;
}

export function startLearning() {
  const drop = $("photo-drop");
  $("photo-files").addEventListener("change", (event) => take([...event.target.files]));
  drop.addEventListener("dragover", (event) => event.preventDefault());
  $("learn-start").addEventListener("click", async () => {
    trouble("");
    const steps = Number($("learn-steps").value) || null;
    try {
      if (!photos) throw new Error("drop photos first: 3 to 10 of the same subject");
      await tell("/api/train", { batch, name: $("learn-name").value, noun: $("learn-noun").value, steps });
      [batch, photos] = [fresh(), 0];
      $("photo-shown").replaceChildren();
    } catch (error) {
      trouble(error.message);
    }
  });
  $("learn-stop").addEventListener("click", () => tell("/api/train", { stop: true }));
}
