// What the page does: models, pictures, the camera and drawings in, bars out.

import * as camera from "./camera.js";
import { load } from "./classifier.js";
import { Pad } from "./pad.js";

const DEFAULT_MODEL = "model.tflite"; // beside this page, if the demo was started with one
const DRAW = "draw"; // a page whose address ends in ?draw opens with the pad

const element = (id) => document.getElementById(id);
const video = document.createElement("video");
Object.assign(video, { muted: true, playsInline: true, ariaLabel: "What the camera sees" });

let classifier = null;
let description = "None yet. Choose one, or drop it anywhere on this page.";
let picture = null; // what is classified
let still = element("hint"); // what is to be seen of it, in the frame where the camera is off

// Models and pictures.

async function useModel(file) {
  element("model").textContent = `Loading ${file.name}…`;
  try {
    const next = await load(file);
    classifier?.close();
    classifier = next;
    const kilobytes = Math.round(file.size / 1000).toLocaleString("en-GB");
    description = `${file.name}: ${kilobytes} kB, sees ${next.width}×${next.height} pixels`;
  } finally {
    element("model").textContent = description;
  }
  forget();
  await answer();
}

async function useDefaultModel() {
  element("model").textContent = description;
  const response = await fetch(DEFAULT_MODEL, { cache: "no-cache" });
  if (response.ok) {
    await useModel(new File([await response.blob()], DEFAULT_MODEL));
  }
}

async function usePicture(file) {
  const image = new Image();
  image.alt = file.name;
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    throw new Error(`${file.name} is not an image that this browser can show.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
  picture = image;
  still = image;
  show(still);
  forget();
  await answer();
}

/** Takes the bars away, which were another model's or another picture's. */
function forget() {
  element("bars").replaceChildren();
  element("note").textContent = "";
}

async function answer() {
  if (classifier === null || picture === null) {
    forget();
    element("note").textContent = `Waiting for a ${classifier === null ? "model" : "picture"}.`;
    return;
  }
  const { classes, milliseconds } = await classifier.classify(picture);
  element("bars").replaceChildren(...classes.map(bar));
  element("note").textContent = `${milliseconds.toFixed(1)} ms of inference on this device`;
}

function bar({ name, probability }) {
  const row = element("bar").content.cloneNode(true);
  row.querySelector(".name").textContent = name;
  row.querySelector(".percent").textContent = `${(100 * probability).toFixed(1)} %`;
  row.querySelector(".fill").style.width = `${100 * probability}%`;
  return row;
}

// The camera.

async function startCamera() {
  element("start").disabled = true; // while the browser asks for permission
  try {
    await camera.start(video);
  } finally {
    element("start").disabled = false;
  }
  show(video);
  element("take").focus();
}

async function takePicture() {
  const file = await camera.take(video);
  stopCamera();
  openPicture(file);
}

function stopCamera() {
  show(still);
  element("start").focus();
}

// The pad.

let drawn = false; // since the last answer

const pad = new Pad(() => {
  // Places come faster than answers.
  if (!drawn) {
    drawn = true;
    enqueue(useDrawing, "picture-error");
  }
});

async function useDrawing() {
  drawn = false;
  if (still === pad.canvas) {
    picture = pad.picture;
    await answer();
  }
}

function openPad() {
  still = pad.canvas;
  show(still);
  pad.clear();
}

/** Puts the pad, the camera's picture or another one into the frame, with the buttons it needs. */
function show(what) {
  if (what !== video) {
    camera.stop(video);
  }
  element("frame").replaceChildren(what);
  element("sources").hidden = what === video;
  element("shutter").hidden = what !== video;
  element("draw").hidden = what === pad.canvas;
  element("clear").hidden = what !== pad.canvas;
}

// What a person does.

/** Runs an action; its error is shown where it was caused, until the next attempt there. */
async function attempt(action, errorId) {
  element(errorId).textContent = "";
  try {
    await action();
  } catch (error) {
    element(errorId).textContent = error.message;
  }
}

let last = attempt(useDefaultModel, "model-error");

/** Attempts an action after those before it, as a small file must not overtake a large one. */
function enqueue(action, errorId) {
  last = last.then(() => attempt(action, errorId));
}

const openModel = (file) => enqueue(() => useModel(file), "model-error");
const openPicture = (file) => enqueue(() => usePicture(file), "picture-error");

for (const [id, open] of [["model-file", openModel], ["picture-file", openPicture]]) {
  element(id).addEventListener("change", ({ target }) => {
    [...target.files].forEach(open);
    target.value = ""; // so that the same file can be chosen again
  });
}

element("start").addEventListener("click", () => attempt(startCamera, "picture-error"));
element("take").addEventListener("click", () => attempt(takePicture, "picture-error"));
element("stop").addEventListener("click", stopCamera);
element("draw").addEventListener("click", openPad);
element("clear").addEventListener("click", () => pad.clear());

if (new URLSearchParams(location.search).has(DRAW)) {
  openPad();
}

const dragging = (on) => document.body.classList.toggle("dragging", on);

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  dragging(true);
});
document.addEventListener("dragleave", ({ relatedTarget }) => dragging(relatedTarget !== null));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(false);
  for (const file of event.dataTransfer.files) {
    (file.name.toLowerCase().endsWith(".tflite") ? openModel : openPicture)(file);
  }
});
