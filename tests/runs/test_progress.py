"""Progress fits the terminal, or none."""

import io
import time

import pytest

from rljax.runs.reports.progress import Progress, clock, short


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_is_a_line_at_once_few_between_and_the_last(monkeypatch):
    now, stream = [1000.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(1000, "ppo on X", True, stream=stream) as progress:
        assert stream.getvalue() == "ppo on X: compiling…\n"
        for step in range(1, 101):
            now[0] += 0.1
            progress.update(10 * step, 100.0, float(step))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # the first, one after 5 s, and the last after 10 s, each once
    assert "500/1,000 steps (50%)" in lines[1]
    assert "0:05 to go" in lines[1]
    assert "1,000/1,000 steps (100%)  100 steps/s  return 100  0:10 so far" in lines[2]


def test_lines_become_rarer_up_to_one_a_minute(monkeypatch):
    now, stream = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(1000, "dpo on X", True, unit="judgements", stream=stream) as progress:
        for second in range(1, 301):
            now[0] = second
            progress.update(second, 1.0, None, "training accuracy")
    lines = stream.getvalue().splitlines()[1:]
    when = [5, 15, 35, 75, 135, 195, 255, 300]
    assert [line.split(": ")[1].split("/")[0] for line in lines] == list(map(str, when))
    assert "5/1,000 judgements (0%)  1 judgements/s  training accuracy –" in lines[0]


def test_the_last_line_is_not_lost_when_it_comes_early():
    stream = io.StringIO()
    with Progress(1000, "ppo", True, stream=stream) as progress:
        progress.update(10, 5.0, None)
        progress.update(20, 5.0, float("nan"))
    (line,) = stream.getvalue().splitlines()[1:]
    assert line.startswith("ppo: 20/1,000 steps (2%)  5 steps/s  return –  0:00 so far")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_progress_that_is_off_is_silent(kind):
    stream = kind()
    with Progress(1000, "ppo", False, stream=stream) as progress:
        progress.update(10, 5.0, 1.0)
        progress.say("a word")
    assert stream.getvalue() == ""


def drawn(progress, width):
    """The bar as rich draws it in a terminal of this width."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(progress)
    return console.file.getvalue().rstrip("\n")


def test_the_bar_shows_steps_speed_return_and_time_to_go(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(1_000_000, "ppo on X", False)
    now[0] = 3.0
    assert "compiling… 0:03" in drawn(progress, 100)
    progress.update(100_000, 50_000.0, None)
    now[0] = 5.0
    progress.update(200_000, 51_000.0, -80.5)  # 100,000 steps in two seconds
    now[0] = 6.0
    shown = drawn(progress, 100)
    for part in ("ppo on X", "━", "200k/1M", "51k steps/s", "return -80.5", "ETA 0:15"):
        assert part in shown
    narrow = drawn(progress, 60)
    assert "\n" not in narrow
    for part in ("200k/1M", "51k steps/s", "return -80.5", "ETA 0:15"):
        assert part in narrow


def test_on_a_terminal_the_bar_appears_at_once_and_lines_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(1000, "ppo on X", True, stream=stream) as progress:
        assert "compiling…" in stream.getvalue()
        progress.say("8 members [on 2 devices]")
        progress.update(1000, 5.0, 1.5)
    assert "8 members [on 2 devices]" in stream.getvalue()
    assert "return 1.5" in stream.getvalue().rpartition("8 members")[2]
    before = stream.getvalue()
    progress.close()
    time.sleep(0.3)
    assert stream.getvalue() == before  # nothing draws any more


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    Progress(1000, "ppo on X", True, stream=stream).close()
    assert stream.getvalue() == "ppo on X: compiling…\n"


def test_progress_ends_with_an_error_too():
    stream = io.StringIO()

    def fail():
        with Progress(1000, "ppo", True, stream=stream) as progress:
            progress.update(10, 5.0, 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "10/1,000" in stream.getvalue()


def test_progress_in_a_stream_that_has_no_unicode():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Progress(1000, "ppo", True, stream=stream).close()
    assert raw.getvalue() == b"ppo: compiling?\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (999.7, "1k"), (12_345, "12.3k"), (1_500_000, "1.5M"), (2e9, "2G")],
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (10_800, "3:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
