"""The page's talk in Chromium: its microphone plays a file in which somebody speaks twice."""

import re

import numpy as np
import pytest
import soundfile
from fake_service import Pipe, running, until
from test_server_page_browser import CLIPS, SECONDS, launched
from test_voice_conversation import Answering, Speaker

from mindone_audio.server.options import ServerOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A second of silence, "open the door", three seconds of silence, and the same again; then nothing."""
    speech, rate = soundfile.read(CLIPS / "spoken_command.wav", dtype="float32")
    silence = np.zeros(rate, np.float32)
    file = tmp_path_factory.mktemp("microphone") / "twice.wav"
    soundfile.write(file, np.concatenate([silence, speech, *[silence] * 3, speech, *[silence] * 30]), rate)
    with launched(file) as chromium:
        yield chromium


@pytest.fixture
def talking(browser):
    """Opens the page of a server whose model answers what `instructions` say, and talks: (page, service)."""
    opened = []

    def begin(instructions, speaker=None, width=1280, **options):
        server = running(ServerOptions(served_model_name="demo", **options))
        url, service = server.__enter__()
        service.scheduler, service.speaker = Answering(service.pipe), speaker
        context = browser.new_context(viewport={"width": width, "height": 844}, permissions=["microphone"])
        page, wrong = context.new_page(), []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        opened.append((server, service, context, wrong))
        page.set_default_timeout(SECONDS)
        page.goto(url)
        page.fill("#question", instructions)
        page.click("#talk")
        page.wait_for_selector("#talking:visible")
        return page, service

    yield begin
    for server, service, context, wrong in opened:
        service.scheduler.go.set()
        context.close()
        until(lambda service=service: service.active == 0)
        server.__exit__(None, None, None)
        assert wrong == []


def comes(locator, text):
    """Wait for a text: the page's policy lets nobody wait for a function."""
    from playwright.sync_api import expect

    expect(locator).to_have_text(text, timeout=SECONDS)


@pytest.mark.parametrize("width", (1280, 390))
def test_two_turns_and_an_interruption(talking, width):
    """The first answer hangs behind its first word until the second turn begins."""
    page, service = talking("hang on a minute", width=width)
    comes(page.locator(".turn .text").first, "It")
    comes(page.locator("#talk-state"), "It answers. Speak to interrupt.")
    comes(page.locator(".turn .state").first, "Interrupted.")
    until(lambda: service.scheduler.cancelled)
    service.scheduler.go.set()
    comes(page.locator(".turn .text").nth(1), "It is a siren.")
    comes(page.locator(".turn .question"), [re.compile("window of .*")] * 2)
    assert page.locator(".turn .text").all_inner_texts() == ["It", "It is a siren."]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.click("#leave")
    page.wait_for_selector("#source:visible")
    until(lambda: service.active == 0)


def test_the_server_hears_how_much_of_an_answer_sounded(talking):
    """Five seconds of sound, of which about three are heard before the second turn begins."""
    page, service = talking("say One. Two. Three. Four. Five. Six. Seven. Eight. Nine. Ten.", Speaker())
    comes(page.locator(".turn .text").first, re.compile(".*Ten[.]"))
    page.wait_for_selector(".turn:nth-of-type(2)")
    until(lambda: len(service.scheduler.submitted) >= 3)
    page.click("#leave")
    page.wait_for_selector("#source:visible")


def test_a_model_that_transcribes_is_listened_to(browser):
    class Whisper(Pipe):
        task = "automatic-speech-recognition"

    with running(ServerOptions(served_model_name="demo"), pipe=Whisper()) as (url, service):
        service.scheduler = Answering(service.pipe)
        context = browser.new_context(permissions=["microphone"])
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.goto(url)
        page.click("#talk")
        comes(page.locator(".turn .question").first, re.compile("window of .*"))
        context.close()
        until(lambda: service.active == 0)


def test_a_server_that_goes_ends_the_talk(talking):
    page, service = talking("hang on a minute")
    service.draining = True
    page.wait_for_selector("#source:visible")


def test_no_microphone_no_talk(browser):
    with running(ServerOptions(served_model_name="demo")) as (url, service):
        context = browser.new_context(permissions=[])
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.goto(url)
        page.click("#talk")
        page.wait_for_selector("#notice:visible")
        assert "microphone" in page.locator("#notice").inner_text()
        context.close()
