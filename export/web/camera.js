// The camera: its picture in a <video>, one frame of it as a file.

const ERRORS = {
  NotAllowedError: "The camera is blocked. Allow it for this page in the browser's settings.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera does not start; perhaps another program is using it.",
};

/**
 * Shows what the camera sees, of a phone's cameras the one at the back.
 *
 * @param {HTMLVideoElement} video where.
 * @throws {Error} with a sentence for the person who asked for it.
 */
export async function start(video) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the camera only to pages from localhost or over https.");
  }
  const wanted = { video: { facingMode: "environment" } };
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
    await video.play();
  } catch (error) {
    stop(video);
    throw new Error(ERRORS[error.name] ?? `The camera does not start: ${error.message}`);
  }
}

/** Takes a picture: the frame that the video shows, as a PNG file. */
export async function take(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new File([await canvas.convertToBlob()], "camera.png");
}

/** Switches the camera off, if it is on. */
export function stop(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}
