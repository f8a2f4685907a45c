"""The web page, as `make web-demo` serves it, in a headless Chromium.

The model is the small network trained on scikit-learn's digits; expected names and probabilities
are what Keras gives for the same pixels.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time

import digits
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from refilled_tf.data import pixels
from refilled_tf.data.sources import decode_image
from refilled_tf.models import networks

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
MISSING = [program for program in (CHROMIUM, DRIVER, "npm") if not shutil.which(program)]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {', '.join(MISSING)}: install npm and Debian's chromium and chromium-driver",
)

WEB = digits.ROOT / "export/web"
FLOAT, INT8 = "student_none.tflite", "student_int8.tflite"
PATIENCE = 20  # seconds, more than any step takes
INSTALLING = 300  # seconds, more than npm takes


@pytest.fixture(scope="module")
def address(tflite_folder, tmp_path_factory):
    """Where a fresh copy of the page is served, the float model beside it."""
    folder = tmp_path_factory.mktemp("served")
    web, log = folder / "web", folder / "log"
    shutil.copytree(WEB, web, ignore=shutil.ignore_patterns("node_modules", "*.tflite"))
    with log.open("w") as output:
        server = subprocess.Popen(
            ["make", "web-demo", f"WEB={web}", f"MODEL={tflite_folder / FLOAT}", "PORT=0"],
            cwd=digits.ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that make and what it has started end together
        )
    try:
        end = time.monotonic() + INSTALLING
        while not (printed := re.search(r"http://\S*:(\d+)/", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f"http://localhost:{printed[1]}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _start_browser(folder, *arguments):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder}",
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser that pretends to have one camera."""
    folder = tmp_path_factory.mktemp("browser")
    with _start_browser(folder, "--use-fake-device-for-media-stream") as driver:
        yield driver


@pytest.fixture
def page(browser, address):
    """The page, freshly loaded; the model beside it is in use."""
    page = Page(browser, address)
    page.wait_for("model", "^model.tflite: ")
    return page


class Page:
    """What a person does on the page, and what there is to see."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def element(self, name):
        return self.browser.find_element(By.ID, name)

    def wait_for(self, name, pattern):
        """Waits until an element's text matches."""
        self._wait(lambda _: re.search(pattern, self.element(name).text), f"no {pattern!r}")

    def wait_for_picture(self, name):
        shown = (By.CSS_SELECTOR, f"#frame img[alt='{name}']")
        self._wait(lambda browser: browser.find_elements(*shown), f"{name} is not shown")

    def choose(self, kind, path):
        self.element(f"{kind}-file").send_keys(str(path))

    def use_model(self, path):
        self.choose("model", path)
        self.wait_for("model", f"^{path.name}: ")

    def use_picture(self, path):
        self.choose("picture", path)
        self.wait_for_picture(path.name)

    def drop(self, *paths):
        files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
        self.browser.execute_script(
            """
            const dataTransfer = new DataTransfer();
            for (const [name, content] of arguments[0]) {
              const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
              dataTransfer.items.add(new File([bytes], name));
            }
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
            """,
            files,
        )

    def bars(self):
        """Waits for the answer to what is shown; returns the per cent by class name, in order."""
        self.wait_for("note", r"^\d+\.\d ms of inference")
        rows = self.browser.find_elements(By.CSS_SELECTOR, "#bars li")
        return {name: float(percent.removesuffix(" %")) for name, percent in map(_lines, rows)}

    def _wait(self, condition, message):
        WebDriverWait(self.browser, PATIENCE).until(condition, message)


def _lines(element):
    return element.text.splitlines()


def _probabilities(model, images):
    """Returns Keras's probabilities by class name for each of the images."""
    outputs = networks.outputs_of(model.network, [images.astype(np.float32)])
    rows = tf.nn.softmax(outputs["logits"]).numpy()
    return [dict(zip(model.data.class_names, row.tolist(), strict=True)) for row in rows]


def _first(probabilities):
    return max(probabilities, key=probabilities.get)


def _png(path, image):
    path.write_bytes(tf.io.encode_png(image).numpy())
    return path


@pytest.fixture(scope="module")
def known(model):
    """The test images, and Keras's probabilities for each."""
    images = model.data.test.images
    return images, _probabilities(model, images)


# Answers.


def test_bars_are_kerass_probabilities(page, known, tmp_path):
    images, wanted = known
    row = min(range(len(images)), key=lambda row: max(wanted[row].values()))  # the least clear
    page.use_picture(_png(tmp_path / "digit.png", images[row]))
    bars = page.bars()
    assert list(bars.values()) == sorted(bars.values(), reverse=True)
    assert bars == pytest.approx({n: 100 * p for n, p in wanted[row].items()}, abs=0.1)


@pytest.mark.parametrize("name", [FLOAT, INT8])
def test_first_bar_is_kerass_class(name, page, tflite_folder, known, tmp_path):
    images, wanted = known
    page.use_model(tflite_folder / name)
    for label in wanted[0]:
        row = max(range(len(images)), key=lambda row: wanted[row][label])  # the surest
        page.use_picture(_png(tmp_path / f"{label}.png", images[row]))
        bars = page.bars()
        assert len(bars) == 5
        assert next(iter(bars)) == _first(wanted[row]) == label


def test_large_picture_is_resized_as_in_training(page, known, model, tmp_path):
    # Every pixel of the digit becomes 20×20, black at the corners and in the middle. Averages, by
    # which the project's own decoding resizes, hardly change; samples there would be all black.
    images, wanted = known
    row = max(range(len(images)), key=lambda row: max(wanted[row].values()))
    large = images[row].repeat(20, axis=0).repeat(20, axis=1)
    dark = np.isin(np.arange(len(large)) % 20, [0, 9, 10, 19])
    large[np.ix_(dark, dark)] = 0
    path = _png(tmp_path / "large.png", large)

    page.use_picture(path)
    decoded = decode_image(path.read_bytes(), None, images.shape[1]).numpy()
    (expected,) = _probabilities(model, decoded[None])
    bars = page.bars()
    assert next(iter(bars)) == _first(expected)
    assert bars == pytest.approx({name: 100 * p for name, p in expected.items()}, abs=5)


@pytest.mark.parametrize("kind", ["turned", "transparent", "palette"])
def test_pixels_are_those_of_a_viewer(kind, page, known, model, tmp_path):
    """Stored on its side with EXIF that turns it back; or a digit that is a hole in black paper."""
    images, wanted = known
    row = max(range(len(images)), key=lambda row: max(wanted[row].values()))
    path = tmp_path / f"{kind}.png"
    if kind == "turned":
        exif = PIL.Image.Exif()
        exif[pixels.ORIENTATION] = 6
        PIL.Image.fromarray(np.rot90(images[row]).copy()).save(path, exif=exif)
    else:
        alpha = 255 - images[row].max(axis=-1, keepdims=True)  # ink is bright: cut it out
        image = PIL.Image.fromarray(np.concatenate([0 * images[row], alpha], axis=-1))
        if kind == "palette":
            image = image.quantize(16, method=PIL.Image.Quantize.FASTOCTREE)
        image.save(path)
    seen = pixels.decode(path.read_bytes())
    (expected,) = _probabilities(model, seen[None])
    page.use_picture(path)
    bars = page.bars()
    assert next(iter(bars)) == _first(expected)
    assert bars == pytest.approx({name: 100 * p for name, p in expected.items()}, abs=1)


def test_dropped_files_are_told_apart_by_their_names(page, tflite_folder, known, tmp_path):
    images, wanted = known
    picture = _png(tmp_path / "digit.png", images[0])
    page.drop(tflite_folder / INT8, picture)
    page.wait_for_picture("digit.png")
    assert INT8 in page.element("model").text
    assert page.bars().keys() == wanted[0].keys()


def test_picture_from_the_camera(page):
    _permit_camera(page.browser, "granted")
    page.element("start").click()
    page.wait_for("shutter", "Take picture")
    page.element("take").click()
    page.wait_for_picture("camera.png")
    assert len(page.bars()) == 5


def test_nothing_is_asked_of_another_host(page, address, tflite_folder):
    page.browser.get_log("performance")
    page.browser.get_log("browser")
    page.browser.refresh()
    page.wait_for("model", "^model.tflite: ")
    page.use_model(
        tflite_folder / INT8
    )  # the first one is closed, and MediaPipe would report its use
    refusal = "odml.pa.googleapis.com.*violates.*Content Security Policy"
    log = []

    def refused(browser):
        log.extend(entry["message"] for entry in browser.get_log("browser"))
        return any(re.search(refusal, message) for message in log)

    WebDriverWait(page.browser, PATIENCE).until(refused, "MediaPipe has not tried to report")
    events = [
        json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")
    ]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert f"{address}/model.tflite" in asked
    assert not [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))]


# Bad input.


def _permit_camera(browser, setting):
    browser.execute_cdp_cmd(
        "Browser.setPermission", {"permission": {"name": "camera"}, "setting": setting}
    )


def _without_metadata(model):
    return model.replace(b"TFLITE_METADATA", b"TFLITE_NOTADATA")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (FLOAT, lambda model: b"a,b\n", "bad.tflite is not a TFLite model."),
        (
            FLOAT,
            lambda model: model[: len(model) // 2],
            "bad.tflite cannot be used as an image classifier "
            "(INVALID_ARGUMENT: The model is not a valid Flatbuffer buffer).",
        ),
        # Without it MediaPipe cannot scale pixels for the one, and would run the other nameless.
        (FLOAT, _without_metadata, "bad.tflite has no metadata, which holds the class names"),
        (INT8, _without_metadata, "bad.tflite has no metadata, which holds the class names"),
    ],
    ids=["no-model", "half", "float-without-metadata", "int8-without-metadata"],
)
def test_bad_model_is_refused_and_the_last_one_stays(
    name, spoil, message, page, tflite_folder, known, tmp_path
):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(spoil((tflite_folder / name).read_bytes()))
    page.choose("model", bad)
    page.wait_for("model-error", re.escape(message))
    assert page.element("model").text.startswith("model.tflite: ")

    page.use_picture(_png(tmp_path / "digit.png", known[0][0]))
    assert len(page.bars()) == 5
    page.use_model(tflite_folder / FLOAT)
    assert page.element("model-error").text == ""


def test_bad_image_is_refused_and_the_last_one_stays(page, known, tmp_path):
    page.use_picture(_png(tmp_path / "digit.png", known[0][0]))
    bars = page.bars()
    bad = tmp_path / "bad.png"
    bad.write_bytes((tmp_path / "digit.png").read_bytes()[:20])
    page.choose("picture", bad)
    page.wait_for("picture-error", "^bad.png is not an image that this browser can show.$")
    page.wait_for_picture("digit.png")
    assert page.bars() == bars


@pytest.mark.parametrize("file", ["vision_bundle.mjs", "vision_wasm_internal.*"])
def test_mediapipe_that_does_not_load(file, browser, address):
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": [f"*/{file}"]})
    try:
        Page(browser, address).wait_for("model-error", "make web-demo. installs it")
    finally:
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


def test_camera_that_is_refused(page):
    _permit_camera(page.browser, "denied")
    page.element("start").click()
    page.wait_for("picture-error", "^The camera is blocked. Allow it for this page")


def test_browser_without_a_camera_and_webgl(address, tmp_path):
    arguments = (
        "--use-fake-device-for-media-stream=device-count=0",
        "--disable-software-rasterizer",
    )
    with _start_browser(tmp_path, *arguments) as browser:
        page = Page(browser, address)
        page.wait_for("model-error", "^model.tflite fails in this browser. Is WebGL switched off?")
        page.element("start").click()
        page.wait_for("picture-error", "^No camera was found on this device.$")
