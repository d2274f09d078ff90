from rar_jax.progress import Progress


def test_lines_of_a_log(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("rar_jax.progress.time.monotonic", lambda: now[0])
    caplog.set_level("INFO", "rar_jax")
    progress = Progress("work", 100, done=20, unit="image")
    for seconds, units in ((9, 10), (2, 10), (10, 0), (1, 60)):
        now[0] += seconds
        progress.update(units)
    progress.close()
    # A line every ten seconds, and one at the end. Units that were done earlier do not count for the rate.
    assert caplog.messages == [
        "work 40/100, 1.82 image/s, 00:33 left",
        "work 40/100, 0.952 image/s, 01:03 left",
        "work 100/100, 3.64 image/s, 00:00 left",
    ]


def test_nothing_done_yet_has_no_time_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("rar_jax.progress.time.monotonic", lambda: now[0])
    caplog.set_level("INFO", "rar_jax")
    progress = Progress("images of other processes", 100, done=50, unit="image")
    now[0] = 11
    progress.update(0, note="waiting")
    assert caplog.messages == ["images of other processes 50/100, 0 image/s, unknown time left, waiting"]
