"""The page at / in a browser: Debian's Chromium with a microphone that plays a file, against real servers."""

import base64
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_service import Pipe, Scheduler, running, until
from server_process import ROOT, server_process

from mindone_audio.generation.events import Overloaded
from mindone_audio.server.options import ServerOptions

pytestmark = pytest.mark.slow

CLIPS = ROOT / "examples" / "audio"
MODEL = "qwen2_audio_demo"
SECONDS = 30_000  # milliseconds that a test waits for what must come
EMPTY_MICROPHONE = """
if (navigator.mediaDevices) {
    navigator.mediaDevices.getUserMedia = async () => new AudioContext().createMediaStreamDestination().stream;
}
"""
NO_MICROPHONE = """
if (navigator.mediaDevices) {
    navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("none here", "NotFoundError"); };
}
"""
NO_SECURE_CONTEXT = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"


@contextmanager
def launched(microphone):
    """Chromium whose microphone plays a file once."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if path is None or sync_playwright is None:
        missing = "chromium and playwright are needed: apt-get install chromium; pip install playwright"
        if os.environ.get("MINDONE_AUDIO_TEST_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as driver:
        flags = ("no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run", "disable-sync")
        # Not use-fake-ui-for-media-stream, which allows the microphone to everybody: contexts have permissions.
        flags += ("disable-component-update", "use-fake-device-for-media-stream")
        flags += (f"use-file-for-fake-audio-capture={microphone}%noloop",)
        chromium = driver.chromium.launch(executable_path=path, args=[f"--{flag}" for flag in flags])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Its microphone says "open the door", after a second in which a page gets ready to hear it."""
    speech, rate = soundfile.read(CLIPS / "spoken_command.wav", dtype="int16")
    file = tmp_path_factory.mktemp("microphone") / "command.wav"
    soundfile.write(file, np.concatenate([np.zeros(rate, np.int16), speech]), rate)
    with launched(file) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def server():
    """The real one, which the last test kills."""
    with server_process("--port", 0) as process:
        yield process


class Tab:
    """A page that is open, as its user sees it."""

    def __init__(self, context, url):
        self.page, self.asked = context.new_page(), []
        self.page.set_default_timeout(SECONDS)
        self.page.on("request", lambda request: self.asked.append(request))
        self.page.goto(url)

    def choose(self, name, data=None):
        """Take a clip of examples/audio, another file, or bytes with a name and a type."""
        if data is None:
            self.page.set_input_files("#file", str(CLIPS / name))
        else:
            self.page.set_input_files("#file", {"name": name, "mimeType": data[0], "buffer": data[1]})

    def task(self, name):
        self.page.check(f"input[value={name}]", force=True)

    def hear(self):
        """Wait until the command has been said."""
        until(lambda: self.page.evaluate("document.querySelector('#level').value") > 0.3)
        self.page.wait_for_timeout(1700)

    def record(self):
        self.page.click("#record")
        self.hear()
        self.page.click("#finish")
        self.page.wait_for_selector("#attached .wave")

    def send(self, question=None):
        """Send the request, and the answer when it is complete."""
        if question is not None:
            self.page.fill("#question", question)
        self.page.click("#go")
        return self.answer()

    def answer(self):
        self.page.wait_for_selector("[aria-busy]", state="detached")
        return self.text()

    def text(self):
        """What is shown of the last answer."""
        last = self.page.locator(".turn .answer").last
        parts = [*last.locator(".segments span").all_inner_texts(), last.locator(".text").inner_text()]
        return " ".join(part.strip() for part in parts if part.strip())

    def notice(self):
        """The problem that is told, above the composer or below an answer."""
        self.page.wait_for_selector(".notice:visible")
        return " ".join(self.page.locator(".notice:visible").all_inner_texts())

    def bodies(self):
        """The conversations that were sent."""
        asked = [request for request in self.asked if request.url.endswith("/v1/chat/completions")]
        return [json.loads(request.post_data) for request in asked]

    def press(self, name, within="body"):
        self.page.locator(within).get_by_role("button", name=name, exact=True).last.click()

    def drop(self, event, name):
        """Drop or paste a clip of examples/audio."""
        data = base64.b64encode((CLIPS / name).read_bytes()).decode()
        self.page.evaluate(
            """([event, name, data]) => {
                const transfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "audio/ogg" }));
                const made = event === "paste" ? new ClipboardEvent(event, { clipboardData: transfer, bubbles: true })
                    : new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true });
                document.body.dispatchEvent(made);
            }""",
            [event, name, data],
        )
        self.page.wait_for_selector("#attached .wave")


@pytest.fixture
def visit(browser):
    """Opens the page of a server in a window of its own. script: runs before the page's. prepare: is called with the
    context before it has a page. faults: the server is to answer with errors."""
    contexts = []

    def begin(
        url, *, width=1280, scheme="light", script=None, prepare=None, faults=False, permissions=("microphone",), tabs=1
    ):
        size = {"width": width, "height": 844}
        context = browser.new_context(viewport=size, color_scheme=scheme, permissions=list(permissions))
        wrong = []
        contexts.append((context, wrong))
        if script:
            context.add_init_script(script)
        if prepare:
            prepare(context)

        def said(message):
            is_fault = faults and message.text.startswith("Failed to load resource")
            if message.type == "error" and not is_fault or "Content Security Policy" in message.text:
                wrong.append(message.text)

        def left(request):
            if not request.url.startswith((url + "/", "blob:" + url)):
                wrong.append(request.url)

        context.on("console", said)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on("request", left)
        made = [Tab(context, url) for _ in range(tabs)]
        return made[0] if tabs == 1 else made

    yield begin
    for context, wrong in contexts:
        context.close()
        assert wrong == []


@pytest.fixture(scope="module")
def quick():
    """A server whose model answers at once, by what it is told: tests/fake_service.py."""
    with running() as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory):
    """A file in which somebody says the same for 30 minutes."""
    samples, rate = soundfile.read(CLIPS / "spoken_command.wav", dtype="int16")
    path = tmp_path_factory.mktemp("long") / "half_an_hour.wav"
    soundfile.write(path, np.resize(samples, 1800 * rate), rate, subtype="PCM_16")
    return path


def test_a_recording_is_transcribed(server, visit):
    """What was said, when, and as a file of each kind."""
    tab = visit(server.url)
    tab.task("transcribe")
    tab.page.click("#record")
    tab.hear()
    assert re.fullmatch("0:0[1-9]", tab.page.inner_text("#elapsed")) and tab.page.inner_text("#longest") == "10:00"
    tab.page.click("#finish")
    tab.page.wait_for_selector("#attached .wave")
    assert tab.send() == "open the door"
    assert tab.page.locator(".segments .at").all_inner_texts() == ["0:00"]
    tab.page.click(".segments .at")
    tab.page.wait_for_selector(".turn .play.playing")
    tab.page.wait_for_selector(".segments .heard")
    end = r"00:00:0[1-9]{}\d\d\d"
    wanted = {
        "txt": "open the door\n",
        "srt": rf"1\n00:00:00,000 --> {end.format(',')}\nopen the door\n",
        "vtt": rf"WEBVTT\n\n00:00:00\.000 --> {end.format('[.]')}\nopen the door\n",
    }
    for form, pattern in wanted.items():
        with tab.page.expect_download() as coming:
            tab.press(f"Download as {form}")
        name = coming.value.suggested_filename
        assert name.startswith("recording ") and name.endswith(f".{form}")
        assert re.fullmatch(pattern, Path(coming.value.path()).read_text())


def test_questions_about_a_recording(server, visit):
    tab = visit(server.url)
    tab.record()
    assert tab.send("What does the person say?") == "open the door"
    assert tab.send("Is anybody speaking?") == "Yes, somebody is speaking."
    tab.task("caption")
    assert tab.send() == "A woman says: open the door."
    first, second, caption = tab.bodies()
    clip = first["messages"][0]["content"][0]
    header = base64.b64decode(clip["input_audio"]["data"])[:44]
    assert header[:4] == b"RIFF" and header[20:36] == b"\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0"  # PCM, mono, 16 kHz
    assert second["messages"][0] == first["messages"][0] and second["messages"][1]["content"] == "open the door"
    assert second["messages"][2]["content"] == [{"type": "text", "text": "Is anybody speaking?"}]
    assert len(caption["messages"]) == 1 and caption["messages"][0]["content"][0] == clip


def test_files(server, visit):
    """Chosen, dropped and pasted ones."""
    tab = visit(server.url)
    tab.choose("siren.ogg")
    tab.page.wait_for_selector("#attached .wave")
    assert tab.send("What's that sound?") == "It is a siren."
    tab.drop("drop", "rain.mp3")
    assert "rain" in tab.send("What's that sound?")
    tab.drop("paste", "spoken_digits.flac")
    tab.send("What does the person say?")
    clips = [
        [part["type"] for message in body["messages"] for part in message["content"] if isinstance(part, dict)].count(
            "input_audio"
        )
        for body in tab.bodies()
    ]
    assert clips == [1, 1, 1]  # the bundled model was taught one clip alone
    assert tab.page.locator(".turn .wave").count() == 3 and tab.page.locator(".turn .name").nth(1).inner_text() == (
        "rain.mp3"
    )
    tab.press("Clear")
    assert tab.page.locator(".turn").count() == 0 and tab.page.is_visible("#welcome")


def test_examples_without_a_clip_of_ones_own(server, visit):
    tab = visit(server.url)
    tab.press("What’s that sound?")
    assert tab.page.input_value("#question") == "What's that sound?"
    tab.page.click("#go")
    assert "There is no clip yet" in tab.notice()
    tab.press("Take three beeps")
    assert tab.answer() == "Three beeps."


def test_the_wave_can_be_seen_and_played(server, visit):
    tab = visit(server.url)
    tab.choose("siren.ogg")
    wave = tab.page.locator("#attached .wave")
    wave.wait_for()
    inked = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert wave.evaluate(inked)
    wave.focus()
    tab.page.keyboard.press("End")
    assert float(wave.get_attribute("aria-valuenow")) == pytest.approx(4.8, abs=0.1)
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("Space")
    tab.page.wait_for_selector("#attached .play.playing")
    tab.press("Pause")
    tab.page.wait_for_selector("#attached .play:not(.playing)")


def test_half_an_hour(server, visit, half_an_hour):
    """It is too long for a question, which is told before it is sent; a transcription shows text while it goes on."""
    tab = visit(server.url)
    tab.page.set_input_files("#file", str(half_an_hour))
    tab.page.wait_for_selector("#attached .wave")
    tab.page.fill("#question", "What does the person say?")
    tab.page.click("#go")
    assert "30:00" in tab.notice() and "at most 10 s" in tab.notice() and tab.bodies() == []
    tab.press("Take the first 10 s")
    tab.page.wait_for_selector(".turn")
    assert tab.answer().startswith("open the door")
    tab.page.set_input_files("#file", str(half_an_hour))
    tab.page.wait_for_selector("#attached .wave")
    tab.task("transcribe")
    tab.page.click("#go")
    tab.page.locator(".turn .segments .at").nth(1).wait_for()
    tab.press("Stop")
    heard = tab.answer()
    assert heard.startswith("open the door") and "Stopped." in tab.page.inner_text(".turn:last-child")
    assert tab.page.is_visible("#go") and tab.page.is_hidden("#stop")
    tab.task("ask")
    tab.page.fill("#question", "Is anybody speaking?")
    tab.page.click("#go")  # about the last clip, which is too long
    assert "hears at most" in tab.notice() and len(tab.bodies()) == 1


def test_limits_of_the_server(visit):
    options = ServerOptions(served_model_name="demo", max_audio_seconds=3, max_body_mb=0.05)
    with running(options) as (url, _):
        tab = visit(url)
        tab.choose("siren.ogg")
        tab.page.wait_for_selector("#attached .wave")
        tab.task("transcribe")
        tab.page.click("#go")
        assert "too long" in tab.notice() and "at most 3 s" in tab.notice()
        assert not any("/v1/audio" in request.url for request in tab.asked)


def test_a_model_that_only_transcribes(visit):
    """There is nothing on the page to ask it."""

    class Recognition(Pipe):
        task = "automatic-speech-recognition"

    with running(ServerOptions(model="a/model"), pipe=Recognition()) as (url, _):
        tab = visit(url)
        until(lambda: tab.page.inner_text("#title") == "Write down speech")
        assert tab.page.locator(".tasks label:visible").all_inner_texts() == ["Transcribe"]
        assert tab.page.inner_text("#go") == "Transcribe"
        tab.page.click("summary")
        for hidden in ("#question", "#examples", "#beeps", "#seed", "#max-tokens", "#earlier"):
            assert not tab.page.is_visible(hidden), hidden
        for shown in ("#record", "#choose", "#language", "#words"):
            assert tab.page.is_visible(shown), shown


def test_a_model_that_speaks(visit):
    """The page says where programs send texts, and offers nothing to record."""

    class Speech(Pipe):
        task = "text-to-speech"

    with running(ServerOptions(model="a/model"), pipe=Speech()) as (url, _):
        tab = visit(url)
        until(lambda: tab.page.inner_text("#title") == "Speech from text")
        assert "/v1/audio/speech" in tab.page.inner_text("#lead")
        for hidden in ("#composer", "#record", "#examples"):
            assert not tab.page.is_visible(hidden), hidden


def test_a_file_that_is_no_audio(server, visit):
    tab = visit(server.url, faults=True)
    tab.choose("notes.txt", ("text/plain", b"no sound"))
    assert "“notes.txt” is not audio" in tab.notice()
    tab.choose("empty.wav", ("audio/wav", b""))
    tab.page.wait_for_selector("#notice:text('is empty')")
    tab.choose("broken.wav", ("audio/wav", b"RIFF" + b"x" * 500))  # may be known to the server, which says no
    tab.page.wait_for_selector("#attached .name")
    for task in ("ask", "transcribe"):
        tab.task(task)
        tab.send("What's that sound?" if task == "ask" else None)
        assert "The server says: the clip is not audio" in tab.notice() and "send wav, flac, mp3 or ogg" in tab.notice()
    tab.choose("siren.ogg")
    tab.page.wait_for_selector("#attached .wave")
    tab.task("ask")
    assert tab.send("What's that sound?") == "It is a siren."


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (NO_MICROPHONE, "No microphone was found"),
        (NO_SECURE_CONTEXT, "only over https or at localhost"),
        (NO_SECURE_CONTEXT, "--ssl-certfile"),
        (EMPTY_MICROPHONE, "The recording is "),
    ],
)
def test_nothing_can_be_recorded(quick, visit, script, words):
    tab = visit(quick[0], script=script)
    tab.page.click("#record")
    if script == EMPTY_MICROPHONE:
        tab.page.wait_for_selector("#finish:visible")
        tab.page.wait_for_timeout(300)
        tab.page.click("#finish")
    assert words in tab.notice()
    tab.choose("siren.ogg")  # a file still works
    tab.page.wait_for_selector("#attached .wave")
    assert tab.send("say fine") == "fine" and tab.page.is_hidden("#notice")


def test_the_microphone_is_refused(quick, visit):
    tab = visit(quick[0], permissions=())
    tab.page.click("#record")
    assert "The microphone was not allowed" in tab.notice() and tab.page.is_enabled("#record")


def test_a_recording_ends_by_itself(quick, visit):
    """At the longest clip that the model takes in a conversation. In one second a page that is fast hears nothing."""
    type(quick[1].pipe.processor).longest_clip = 2
    try:
        tab = visit(quick[0])
        tab.page.click("#record")
        tab.page.wait_for_selector("#attached .wave")
        assert "The recording has 2 s" in tab.notice()
        assert tab.page.inner_text("#attached .time") == "2.0 s"
    finally:
        type(quick[1].pipe.processor).longest_clip = 30


def ready_tab(visit, url, **more):
    """A tab with a clip."""
    tab = visit(url, **more)
    tab.choose("three_beeps.wav")
    tab.page.wait_for_selector("#attached .wave")
    return tab


def test_stop(quick, visit):
    """What has come stays, the server computes no more, and the same question can be asked again."""
    url, service = quick
    tab = ready_tab(visit, url)
    service.scheduler.go.clear()
    tab.page.fill("#question", "hang on")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".turn .text:text('It')")
    assert tab.page.evaluate("document.activeElement.id") == "question" and tab.page.is_visible("#stop")
    tab.page.keyboard.press("Escape")
    assert tab.answer() == "It" and "Stopped." in tab.page.inner_text(".turn")
    until(lambda: service.scheduler.running == 0)
    service.scheduler.go.set()
    tab.press("Try again")
    assert tab.answer() == "It is a siren." and tab.page.locator(".turn").count() == 1


def test_a_conversation_about_several_clips(visit):
    """The server remembers nothing: each request has the earlier turns with their clips, each clip once."""
    with running(ServerOptions(model="a/model")) as (url, _):
        tab = ready_tab(visit, url)
        tab.send("say one")
        tab.send("say again")
        tab.task("transcribe")
        tab.send()
        tab.task("ask")
        tab.choose("siren.ogg")
        tab.page.wait_for_selector("#attached .wave")
        tab.send("say two")
        *_, last = tab.bodies()
        told = [(message["role"][0], message["content"]) for message in last["messages"]]
        kinds = "".join(role if isinstance(said, str) else role + str(len(said)) for role, said in told)
        assert kinds == "u2au1au1au2"
        assert [said for role, said in told if role == "a"][:2] == ["one", "again"]
        clips = [part for _, said in told if not isinstance(said, str) for part in said if part["type"] != "text"]
        assert clips[0] == tab.bodies()[0]["messages"][0]["content"][0] != clips[1]


def test_what_only_the_browser_can_decode(quick, visit):
    """It becomes WAV, so that a server without ffmpeg can read it."""
    tab = visit(quick[0])
    tab.page.evaluate(
        """async () => {
            const context = new AudioContext();
            const target = context.createMediaStreamDestination();
            const tone = new OscillatorNode(context);
            tone.connect(target);
            tone.start();
            const recorder = new MediaRecorder(target.stream, { mimeType: "audio/webm" });
            const transfer = new DataTransfer();
            const data = new Promise((resolve) => (recorder.ondataavailable = (event) => resolve(event.data)));
            recorder.start();
            setTimeout(() => recorder.stop(), 600);
            transfer.items.add(new File([await data], "tone.webm", { type: "audio/webm" }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }"""
    )
    tab.page.wait_for_selector("#attached .wave")
    assert tab.page.inner_text("#attached .name") == "tone.webm"
    assert tab.send("say heard") == "heard"
    clip = base64.b64decode(tab.bodies()[0]["messages"][0]["content"][0]["input_audio"]["data"])
    assert clip[:4] == b"RIFF" and clip[8:12] == b"WAVE"


def test_a_server_that_is_not_there_yet(quick, visit):
    """As it is started anew: the page tells it, and goes on by itself."""
    url, _ = quick
    away = [True]

    def route(context):
        context.route("**/v1/models", lambda route: route.abort() if away else route.continue_())

    tab = visit(url, faults=True, prepare=route)
    assert "cannot be reached" in tab.notice() and "by itself" in tab.notice()
    away.clear()
    tab.page.wait_for_selector("#model option:text('demo')", state="attached")
    tab.page.wait_for_selector("#notice", state="hidden")


def test_what_a_model_says_is_only_text(quick, visit):
    tab = ready_tab(visit, quick[0])
    text = "<img src=/nothing onerror=alert(1)><script>alert(2)</script> & <b>bold</b> **x**"
    assert tab.send(f"say {text}") == text
    assert tab.page.locator("#turns img, #turns script, #turns b").count() == 0
    assert tab.page.inner_text(".question") == f"say {text}"


def test_settings_reach_the_model(quick, visit):
    url, service = quick
    tab = ready_tab(visit, url)
    tab.page.select_option("#model", "tuned")
    tab.page.click("summary")
    for name, value in (("max-tokens", "2"), ("temperature", "0.5"), ("seed", "7"), ("language", "de")):
        tab.page.fill(f"#{name}", value)
    assert tab.send("say one two three") == "one two" and "Cut at the longest answer" in tab.page.inner_text(".turn")
    asked = service.scheduler.submitted[-1]
    settings = asked.prepared.settings
    assert asked.adapter == "tuned" and (settings.max_new_tokens, settings.temperature) == (2, 0.5)
    assert settings.do_sample and settings.seed == 7
    tab.task("transcribe")
    assert tab.send().startswith("window of")
    assert service.scheduler.submitted[-1].prepared.request.language == "de"
    tab.page.fill("#temperature", "9")
    tab.page.click("#go")
    assert "Temperature" in tab.notice()


def test_without_the_earlier_turns(quick, visit):
    tab = ready_tab(visit, quick[0])
    tab.send("say one")
    tab.page.click("summary")
    tab.page.uncheck("#earlier")
    assert tab.send("say two") == "two"
    assert [len(body["messages"]) for body in tab.bodies()] == [1, 1]
    assert all(body["messages"][0]["content"][0]["type"] == "input_audio" for body in tab.bodies())


def test_copy(quick, visit):
    tab = ready_tab(visit, quick[0], permissions=("microphone", "clipboard-read", "clipboard-write"))
    tab.send("say some words")
    tab.press("Copy")
    tab.page.wait_for_selector("button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "some words"


def test_two_tabs(quick, visit):
    """Each has its own conversation and its own answer under way."""
    url, service = quick
    first, second = visit(url, tabs=2)
    service.scheduler.go.clear()
    for tab in (first, second):
        tab.choose("three_beeps.wav")
        tab.page.wait_for_selector("#attached .wave")
        tab.page.fill("#question", "hang on")
        tab.page.click("#go")
        tab.page.wait_for_selector(".turn .text:text('It')")
    first.press("Stop")
    service.scheduler.go.set()
    assert first.answer() == "It" and second.answer() == "It is a siren."


def test_an_error_in_the_middle_of_an_answer(quick, visit):
    tab = ready_tab(visit, quick[0])
    assert tab.send("break runtime") == "It"
    assert "the server has failed on this request" in tab.notice() and "secret" not in tab.notice()
    assert tab.send("say well") == "well"


def test_an_error_says_what_the_server_says(quick, visit):
    url, service = quick
    tab = ready_tab(visit, url, faults=True)
    tab.send("fail value")
    assert "logit_bias has the token 5000" in tab.notice()
    service.scheduler.refuse = Overloaded("the queue is full: ask again soon", "queue", 1.0)
    tab.page.fill("#question", "say back")
    tab.page.click("#go")
    tab.page.wait_for_selector(".state:text('the queue is full. Asking again')")
    service.scheduler.refuse = None
    assert tab.answer() == "back"


def test_while_the_model_is_loaded(visit):
    """The page works, says so, and asks again by itself."""
    with running(loaded=False) as (url, service):
        tab = visit(url, faults=True)
        assert "still loading" in tab.notice()
        tab.choose("three_beeps.wav")
        tab.page.wait_for_selector("#attached .wave")
        tab.page.fill("#question", "say here")
        tab.page.click("#go")
        tab.page.wait_for_selector(".state:text('still loading. Asking again in')")
        service.pipe = Pipe()
        service.scheduler = Scheduler(service.pipe)
        assert tab.answer() == "here"


def test_a_key(visit):
    with running(keys=["rïght"]) as (url, _):
        tab = visit(url, faults=True)
        tab.page.wait_for_selector("#keys:visible")
        field, composer = (tab.page.locator(name).bounding_box() for name in ("#key", "#composer"))
        assert field["y"] + field["height"] < composer["y"]  # not behind it
        for key in ("wrong", "rïght"):
            tab.page.fill("#key", key)
            tab.page.keyboard.press("Enter")
            if key == "wrong":
                tab.page.wait_for_selector("#key-text:text('does not know this key')")
        tab.page.wait_for_selector("#keys", state="hidden")
        tab.choose("three_beeps.wav")
        tab.page.wait_for_selector("#attached .wave")
        assert tab.send("say in") == "in"
        tab.page.reload()  # the tab keeps it
        tab.page.wait_for_selector("#model option:text('demo')", state="attached")
        assert tab.page.is_hidden("#keys")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_it_fits(quick, visit, width, scheme):
    tab = ready_tab(visit, quick[0], width=width, scheme=scheme)
    tab.send("say " + "long" * 60 + " words and more of them" * 8)
    tab.task("transcribe")
    tab.send()
    tab.page.click("summary")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("#go", "#record", "#choose", "#model", "#clear", "summary", ".turn .wave >> nth=0"):
        box = tab.page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 15, name
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    back, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in tab.page.evaluate(colours))
    assert (back < 150 and ink > 600) if scheme == "dark" else (back > 600 and ink < 200)


def test_by_keyboard_alone(server, visit):
    tab = visit(server.url)
    keyboard = tab.page.keyboard

    def go_to(name):
        for _ in range(20):
            keyboard.press("Tab")
            if tab.page.evaluate("document.activeElement.id") == name:
                return
        raise AssertionError(name)

    go_to("record")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.page.evaluate(outline) == "solid"
    keyboard.press("Enter")
    tab.hear()
    keyboard.press("Enter")
    tab.page.wait_for_selector("#attached .wave")
    assert tab.page.evaluate("document.activeElement.id") == "question"
    keyboard.type("What does the person say?")
    keyboard.press("Enter")
    assert tab.answer() == "open the door"
    for _ in range(4):  # past the three buttons, to the tasks
        keyboard.press("Shift+Tab")
    keyboard.press("ArrowRight")
    assert tab.page.is_checked("input[value=caption]")
    go_to("go")
    keyboard.press("Enter")
    assert tab.answer() == "A woman says: open the door."
    assert tab.page.get_by_role("log", name="Conversation").locator(".turn").count() == 2


def test_a_server_that_is_killed_in_the_middle_of_an_answer(server, visit, half_an_hour):
    """The last of this server: what has come stays, and the page can be used when there is a server again."""
    tab = visit(server.url, faults=True)
    tab.page.set_input_files("#file", str(half_an_hour))
    tab.page.wait_for_selector("#attached .wave")
    tab.task("transcribe")
    tab.page.click("#go")
    tab.page.locator(".turn .segments .at").nth(1).wait_for()
    server.end()
    heard = tab.answer()
    assert heard.startswith("open the door") and "ended before the answer did" in tab.notice()
    tab.press("Try again")
    tab.page.wait_for_selector(".answer .notice:text('cannot be reached')")
    assert tab.page.is_visible("#go")
