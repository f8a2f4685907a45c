// A .tflite image classifier: a file in, the most probable classes of a picture out.

const PACKAGE = "./node_modules/@mediapipe/tasks-vision";
const TOP = 5;
const IDENTIFIER = "TFL3"; // of a TFLite file, at its bytes 4 to 8

/**
 * Loads a model.
 *
 * @param {File} file a .tflite file with metadata: normalisation and class names.
 * @returns {Promise<Classifier>} ready to classify, its first and slow run behind it.
 * @throws {Error} with a sentence for the person who chose the file.
 */
export async function load(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (String.fromCharCode(...bytes.subarray(4, 8)) !== IDENTIFIER) {
    throw new Error(`${file.name} is not a TFLite model.`);
  }
  const classifier = new Classifier(await start(file.name, bytes), inputSize(bytes));
  const blank = new ImageData(classifier.width, classifier.height);
  const { classes } = await classifier.classify(blank).catch(({ message }) => {
    throw new Error(`${file.name} fails in this browser. Is WebGL switched off? (${message})`);
  });
  if (classes.some(({ name }) => name === "")) {
    classifier.close();
    throw withoutMetadata(file.name);
  }
  return classifier;
}

class Classifier {
  #task;

  constructor(task, [height, width]) {
    this.#task = task;
    this.width = width;
    this.height = height;
  }

  /**
   * Classifies a picture.
   *
   * @param {ImageBitmapSource} picture of any size.
   * @returns {Promise<{classes: {name: string, probability: number}[], milliseconds: number}>}
   *   the most probable classes, best first, and how long the model took.
   */
  async classify(picture) {
    // MediaPipe would resize it too, but without the antialiasing that pictures had in training.
    const resized = await createImageBitmap(picture, {
      resizeWidth: this.width,
      resizeHeight: this.height,
      resizeQuality: "high",
    });
    // What is transparent lies on white, as in training.
    const canvas = new OffscreenCanvas(this.width, this.height);
    const paper = canvas.getContext("2d", { alpha: false });
    paper.fillStyle = "white";
    paper.fillRect(0, 0, this.width, this.height);
    paper.drawImage(resized, 0, 0);
    resized.close();
    const begin = performance.now();
    const { classifications } = this.#task.classify(canvas);
    const milliseconds = performance.now() - begin;
    const classes = classifications[0].categories.map(({ categoryName, score }) => ({
      name: categoryName,
      probability: score,
    }));
    return { classes, milliseconds };
  }

  close() {
    this.#task.close();
  }
}

async function start(name, bytes) {
  try {
    const { FilesetResolver, ImageClassifier } = await import(`${PACKAGE}/vision_bundle.mjs`);
    return await ImageClassifier.createFromOptions(
      await FilesetResolver.forVisionTasks(`${PACKAGE}/wasm`),
      { baseOptions: { modelAssetBuffer: bytes }, maxResults: TOP },
    );
  } catch (error) {
    // What MediaPipe has against a model is an Error; what fails before it has seen it is not.
    if (error?.constructor !== Error) {
      throw new Error(
        "MediaPipe, which runs the model, could not be loaded: “make web-demo” installs it.",
      );
    }
    if (/metadata/i.test(error.message)) {
      throw withoutMetadata(name);
    }
    const reason = error.message.split(/[;\n]/)[0];
    throw new Error(`${name} cannot be used as an image classifier (${reason}).`);
  }
}

function withoutMetadata(name) {
  return new Error(
    `${name} has no metadata, which holds the class names and how to scale pixels. ` +
      "The files of “python -m export.tflite” have it.",
  );
}

/** Reads the height and width of a TFLite model's first input; MediaPipe doesn't tell them. */
function inputSize(bytes) {
  // The file is a FlatBuffer. The numbers below are those of the fields in TensorFlow Lite's
  // schema.fbs: Model.subgraphs 2, SubGraph.tensors 0 and .inputs 1, Tensor.shape 0.
  const view = new DataView(bytes.buffer);
  const follow = (at) => at + view.getUint32(at, true);
  const field = (table, number) => {
    const offsets = table - view.getInt32(table, true);
    return follow(table + view.getUint16(offsets + 4 + 2 * number, true));
  };
  const item = (vector, number) => vector + 4 + 4 * number; // a vector begins with its length
  const graph = follow(item(field(follow(0), 2), 0));
  const input = view.getInt32(item(field(graph, 1), 0), true);
  const shape = field(follow(item(field(graph, 0), input)), 0); // batch, height, width, channels
  return [1, 2].map((axis) => view.getInt32(item(shape, axis), true));
}
