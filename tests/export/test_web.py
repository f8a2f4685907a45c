"""The web page, as `make web-demo` and `make demo` serve it, in a headless Chromium.

The model is the small network trained on scikit-learn's digits; expected names and probabilities
are what Keras gives for the same pixels.
"""

import base64
import contextlib
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
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from refilled_tf.data import pixels
from refilled_tf.data.resizing import to_square
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
def web(tmp_path_factory):
    """The folder of a fresh copy of the page."""
    folder = tmp_path_factory.mktemp("served") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "*.tflite"))
    return folder


@pytest.fixture(scope="module")
def address(web, tflite_folder):
    """Where it is served, the float model beside it."""
    with _made("web-demo", web, f"MODEL={tflite_folder / FLOAT}") as printed:
        yield printed


@contextlib.contextmanager
def _made(target, web, *arguments):
    """Runs make until it is left; yields the address that it prints."""
    log = web.parent / f"{target}.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["make", target, f"WEB={web}", "PORT=0", *arguments],
            cwd=digits.ROOT,
            # Without a screen, so that no other browser opens.
            env={name: x for name, x in os.environ.items() if "DISPLAY" not in name},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that make and what it has started end together
        )
    try:
        end = time.monotonic() + INSTALLING
        while not (
            printed := re.search(r"^Open (http://localhost:\d+/\S*) ", log.read_text(), re.M)
        ):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield printed[1].removesuffix("/")
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

    def wait_for_bars(self, wanted):
        """Waits until the bars have reached the per cent that are wanted by class name."""
        self._wait(lambda _: self.bars() == wanted, f"the bars do not become {wanted}")

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


# Drawing.

# A 7, and a 9 whose tail is a stroke of its own, as shares of a square's side.
SEVEN = [[(0.0, 0.0), (0.6, 0.0), (0.45, 0.4), (0.2, 1.0)]]
NINE = [
    [(0.6, 0.2), (0.3, 0.0), (0.0, 0.25), (0.3, 0.5), (0.6, 0.2)],
    [(0.6, 0.2), (0.5, 1.0)],
]
WINDOWS = {
    "mouse": {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    "touch": {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
}


@pytest.fixture(params=list(WINDOWS))
def pad(request, browser, address):
    """The page with its canvas, in a desktop's window or in a phone's; and how one points there."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WINDOWS[request.param])
    try:
        page = Page(browser, f"{address}/?draw")
        page.wait_for("model", "^model.tflite: ")
        yield page, PointerInput(request.param, request.param)
    finally:
        ActionBuilder(browser).clear_actions()  # lifts what is still on the canvas
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _draw(browser, pointer, strokes, lift=True):
    """Draws on the canvas, from a tenth of its side on, each stroke up to .8 of it long.

    Returns:
        The strokes in the pixels of the canvas.
    """
    canvas = browser.find_element(By.CSS_SELECTOR, "#frame canvas")
    side, pixels = canvas.size["width"], int(canvas.get_attribute("width"))
    drawn = []
    for stroke in strokes:
        actions = ActionBuilder(browser, mouse=pointer, duration=20)
        # From the middle, in whole pixels of the window.
        offsets = [[int((0.1 + 0.8 * share - 0.5) * side) for share in place] for place in stroke]
        for number, offset in enumerate(offsets):
            actions.pointer_action.move_to(canvas, *offset)
            if number == 0:
                actions.pointer_action.pointer_down()
        if lift:
            actions.pointer_action.pointer_up()
        actions.perform()
        drawn.append([[(each / side + 0.5) * pixels for each in offset] for offset in offsets])
    return drawn


def _framed(browser, strokes):
    """Returns the [28, 28] uint8 that the page's own function makes of strokes."""
    grey = browser.execute_async_script(
        """
        const [strokes, done] = arguments;
        import("./pad.js").then(({ framed }) => {
          const { data } = framed(strokes).getContext("2d").getImageData(0, 0, 28, 28);
          done([...data].filter((_, place) => place % 4 === 0));
        });
        """,
        strokes,
    )
    return np.array(grey, np.uint8).reshape(28, 28)


@pytest.mark.parametrize("strokes", [SEVEN, NINE], ids=["7", "9"])
def test_drawing_is_framed_as_mnist_has_it(strokes, page):
    """In a box of 20 pixels, its centre of mass in the middle, wherever and how large it was."""
    frames = [
        _framed(page.browser, [[[x0 + size * x, y0 + size * y] for x, y in s] for s in strokes])
        for x0, y0, size in ((0, 0, 560), (400, 30, 60))
    ]
    np.testing.assert_allclose(*[frame.astype(int) for frame in frames], atol=3)
    frame, places = frames[0].astype(float), np.arange(28) + 0.5
    for axis in (0, 1):
        centre = frame.sum(axis) @ places / frame.sum()
        assert centre == pytest.approx(14, abs=0.1)
    # Taller than wide. Moved by parts of a pixel, it may lie on one row more than it is high.
    rows = np.flatnonzero(frame.max(axis=1) > 20)
    assert 19 <= rows[-1] - rows[0] + 1 <= 21
    # MNIST's own strokes are two to three pixels thick.
    stem = frame[rows[-6]].sum() / 255
    assert 2 <= stem <= 3


def test_tap_is_a_dot_in_the_middle(page):
    frame = _framed(page.browser, [[[10, 550]]])
    assert frame[13:15, 13:15].min() > 200
    assert frame[:12].max() == frame[16:].max() == 0


@pytest.mark.parametrize("strokes", [SEVEN, NINE], ids=["7", "9"])
def test_bars_are_kerass_of_what_is_drawn(strokes, pad, model):
    page, pointer = pad
    drawn = _draw(page.browser, pointer, strokes)
    frame = _framed(page.browser, drawn)[..., np.newaxis].repeat(3, axis=-1)
    resized = to_square(frame, model.data.test.images.shape[1]).numpy()
    (expected,) = _probabilities(model, resized[None])
    wanted = {name: pytest.approx(100 * p, abs=5) for name, p in expected.items()}
    page.wait_for_bars(wanted)


def test_bars_live_while_one_draws_and_are_in_the_window(pad):
    page, pointer = pad
    _draw(page.browser, pointer, SEVEN, lift=False)
    assert len(page.bars()) == 5
    window = "return [innerHeight, innerWidth, document.documentElement.scrollWidth, scrollY]"
    height, width, needed, scrolled = page.browser.execute_script(window)
    assert needed <= width
    assert scrolled == 0  # a finger draws and moves nothing
    first = page.browser.find_element(By.CSS_SELECTOR, "#bars li")
    for shown in (first, page.element("clear"), page.element("frame")):
        assert shown.rect["y"] + shown.rect["height"] <= height
    assert page.element("frame").rect["width"] >= 300


def test_clear_takes_drawing_and_bars_away(pad, known, tmp_path):
    page, pointer = pad
    _draw(page.browser, pointer, SEVEN)
    page.bars()
    page.element("clear").click()
    page.wait_for("note", "^Waiting for a picture.$")
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#bars li")

    # A picture takes the place of the canvas, which comes back empty.
    page.use_picture(_png(tmp_path / "digit.png", known[0][0]))
    page.bars()
    assert not page.element("clear").is_displayed()
    page.element("draw").click()
    page.wait_for("note", "^Waiting for a picture.$")
    assert not page.element("draw").is_displayed()


def test_demo_opens_with_the_canvas_on_the_model(pad, web, tflite_folder):
    """The file is taken for the one of `make train`, and no older than that (-o)."""
    page, pointer = pad
    # Beside the page, as the targets of make have no spaces in their names.
    file = shutil.copy(tflite_folder / FLOAT, web.parent / "digits.tflite")
    with _made("demo", web, f"DIGITS={file}", f"--old-file={file}") as printed:
        assert printed.endswith("/?draw")
        page = Page(page.browser, printed)
        page.wait_for("model", "^model.tflite: ")
        _draw(page.browser, pointer, SEVEN)
        assert len(page.bars()) == 5


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
