from rar_jax.training.metrics import MetricsLog, read_metrics


def test_going_on_forgets_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"train/loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')  # cut short by a crash
    log = MetricsLog(tmp_path, 20)
    log.write(30, {"train/loss": 9.0})
    log.close()
    expected = [(10, 1.0), (20, 2.0), (30, 9.0)]
    assert [(entry["step"], entry["train/loss"]) for entry in read_metrics(tmp_path)] == expected
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1
