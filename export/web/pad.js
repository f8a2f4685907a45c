// The pad: a canvas to draw on, and the drawing as a picture such as those of MNIST.

// Of MNIST's images, in pixels: their side, that of the box which a digit fills, and how thick the
// strokes in it are.
const SIDE = 28;
const BOX = 20;
const STROKE = 2.4;

const ZOOM = 8; // a picture is first drawn so much larger, then averaged
const PEN = 0.06; // how thick strokes are on the pad, as a share of its side

/** A canvas that shows what is drawn on it with a mouse, a pen or a finger: white on black. */
export class Pad {
  #strokes = [];

  /** @param {() => void} changed is called after every change of the drawing. */
  constructor(changed) {
    this.changed = changed;
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: 560, height: 560, role: "img", ariaLabel: "Draw here" });
    this.canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.#go(event));
  }

  /** The drawing as `framed` makes it; null without any. */
  get picture() {
    return this.#strokes.length === 0 ? null : framed(this.#strokes);
  }

  clear() {
    this.#strokes = [];
    this.#show();
  }

  #begin(event) {
    if (event.button === 0) {
      this.canvas.setPointerCapture(event.pointerId); // also beyond the edge
      this.#strokes.push([this.#place(event)]);
      this.#show();
    }
  }

  #go(event) {
    if (this.canvas.hasPointerCapture(event.pointerId)) {
      // A browser reports several places at once.
      const between = event.getCoalescedEvents?.() ?? [];
      this.#strokes.at(-1).push(...[...between, event].map((each) => this.#place(each)));
      this.#show();
    }
  }

  /** Returns where an event is, as [x, y] in the canvas's pixels. */
  #place({ clientX, clientY }) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [
      ((clientX - left) / width) * this.canvas.width,
      ((clientY - top) / height) * this.canvas.height,
    ];
  }

  #show() {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    context.clearRect(0, 0, width, height);
    if (this.#strokes.length === 0) {
      Object.assign(context, { font: "2.5rem system-ui", fillStyle: "silver", textAlign: "center" });
      context.fillText("Draw here", width / 2, height / 2);
    }
    trace(context, this.#strokes, PEN * width);
    this.changed();
  }
}

/**
 * Draws strokes as MNIST has its digits: white on black, filling a box of 20 pixels, the centre of
 * mass in the middle of 28×28, as thick as they are there whatever their size was.
 *
 * @param {[number, number][][]} strokes the places [x, y] that each goes through, one at least.
 * @returns {OffscreenCanvas} of 28×28 pixels.
 */
export function framed(strokes) {
  const ranges = [0, 1].map((axis) => {
    const places = strokes.flat().map((place) => place[axis]);
    return [Math.min(...places), Math.max(...places)];
  });
  const extent = Math.max(...ranges.map(([low, high]) => high - low));
  // A dot stays one.
  const scale = (ZOOM * (BOX - STROKE)) / Math.max(extent, 1);
  const [middleX, middleY] = ranges.map(([low, high]) => (low + high) / 2);
  const half = (ZOOM * SIDE) / 2;
  const large = (x, y) =>
    drawn(2 * half, (context) => {
      const moved = strokes.map((stroke) =>
        stroke.map((place) => [half + scale * (place[0] - x), half + scale * (place[1] - y)]),
      );
      trace(context, moved, ZOOM * STROKE);
    });
  const [x, y] = centreOfMass(large(middleX, middleY)).map((place) => (place - half) / scale);
  return drawn(SIDE, (context) => {
    context.imageSmoothingQuality = "high";
    context.drawImage(large(middleX + x, middleY + y), 0, 0, SIDE, SIDE);
  });
}

/** Returns a black square with something drawn on it. */
function drawn(side, draw) {
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, side, side);
  draw(context);
  return canvas;
}

function trace(context, strokes, width) {
  Object.assign(context, {
    lineWidth: width,
    lineCap: "round",
    lineJoin: "round",
    strokeStyle: "white",
  });
  for (const [[x, y], ...rest] of strokes) {
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + 0.01, y); // of a line without any length, nothing would be drawn
    rest.forEach((place) => context.lineTo(...place));
    context.stroke();
  }
}

/** Returns [x, y], where white counts and black does not. */
function centreOfMass(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let [mass, x, y] = [0, 0, 0];
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    const white = data[4 * pixel];
    mass += white;
    x += white * ((pixel % width) + 0.5);
    y += white * (Math.floor(pixel / width) + 0.5);
  }
  return [x / mass, y / mass];
}
