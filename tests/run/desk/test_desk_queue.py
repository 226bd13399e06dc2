"""The queue by itself: which job is next, what is dropped, and what survives a worker that dies."""

import pytest

from src.run.desk.queue import MOST_DEATHS, MOST_WAITING, Job, Queue


class Recorder:
    """Stands where a worker does: keeps what it is sent, and answers when the test says so."""

    def __init__(self):
        self.sent = []

    def send(self, *message):
        self.sent.append(message)

    def stop(self):
        self.sent.append(("stop",))


@pytest.fixture
def desk():
    workers, told, to_all = [], [], []

    def start():
        workers.append(Recorder())
        return workers[-1]

    queue = Queue(start, lambda job, event: told.append((job.page, job.cell, event["kind"])), to_all.append)
    queue.received(workers[0], ("ready", 0, {"model": "sd"}))
    return queue, workers, told, to_all


def job(cell, page="p", kind="draw"):
    return Job(page, cell, kind, [cell])


def finish(queue, worker):
    queue.received(worker, ("done", queue.running.ticket, {}))


def test_one_at_a_time_in_order_and_pictures_before_scores(desk):
    queue, [worker], told, _ = desk
    for each in (job("a"), job("b", kind="numbers"), job("c")):
        queue.add(each)
    for _ in range(3):
        finish(queue, worker)
    assert [message[0] for message in worker.sent] == ["draw", "draw", "numbers"]
    assert [cell for _, cell, _ in told] == ["a", "c", "b"]


def test_a_newer_job_of_a_cell_replaces_the_one_that_waits_in_its_place_and_ends_the_one_that_runs(desk):
    queue, [worker], told, _ = desk
    queue.add(job("a"))
    running = queue.running.ticket
    for cell in ("b", "c", "b"):
        queue.add(job(cell))
    assert queue.waiting == 2
    queue.add(job("a"))
    assert worker.sent[-1] == ("cancel", running)
    queue.received(worker, ("cancelled", running))
    assert told == []  # A newer one is on its way: nothing to say of the older.
    assert queue.running.cell == "b"


def test_pages_are_not_mixed_up(desk):
    queue, [worker], told, _ = desk
    queue.add(job("a", "first"))
    queue.add(job("a", "second"))
    assert queue.waiting == 1 and ("cancel", 1) not in worker.sent
    queue.cancel("second")
    finish(queue, worker)
    assert told == [("second", "a", "cancelled"), ("first", "a", "draw")]


def test_scores_give_way_to_pictures_and_are_done_later(desk):
    queue, [worker], _, _ = desk
    queue.add(job("a", kind="numbers"))
    queue.add(job("b"))
    assert worker.sent[-1] == ("cancel", 1)
    queue.received(worker, ("cancelled", 1))
    assert queue.running.kind == "draw" and queue.waiting == 1


def test_a_dead_worker_is_replaced_and_the_queue_is_kept_in_order(desk):
    queue, workers, told, to_all = desk
    for cell in ("a", "b"):
        queue.add(job(cell))
    queue.received(workers[0], ("died",))
    assert to_all[-1] == {"kind": "restarting", "waiting": 2}
    queue.received(workers[0], ("done", 1, {}))  # What the dead one still had to say.
    queue.received(workers[1], ("ready", 0, {"model": "sd"}))
    assert queue.running.cell == "a" and queue.waiting == 1 and told == []


def test_a_job_at_which_workers_die_is_given_up_and_the_next_is_done(desk):
    queue, workers, told, _ = desk
    queue.add(job("deadly"))
    queue.add(job("good"))
    for _ in range(MOST_DEATHS):
        queue.received(workers[-1], ("died",))
        queue.received(workers[-1], ("ready", 0, {"model": "sd"}))
    assert told == [("p", "deadly", "failed")]
    assert queue.running.cell == "good"


def test_a_worker_that_never_gets_ready_is_not_started_for_ever(desk):
    queue, workers, _, to_all = desk
    for _ in range(10):
        queue.received(workers[-1], ("died",))
    assert len(workers) <= MOST_DEATHS + 2
    assert to_all[-1]["kind"] == "trouble"


def test_a_model_that_cannot_be_loaded_is_said_and_cells_of_other_models_are_drawn(desk):
    _, _, _, to_all = desk
    workers = []

    def start():
        workers.append(Recorder())
        return workers[-1]

    queue = Queue(start, lambda *_: None, to_all.append)
    queue.received(workers[0], ("failed", 0, "there is no folder x"))
    assert to_all[-1] == {"kind": "trouble", "sentence": "there is no folder x"}
    queue.add(job("a"))
    assert workers[0].sent == [("draw", 1, "a")]


def test_too_many_waiting_are_refused_in_a_sentence(desk):
    queue, *_ = desk
    for number in range(MOST_WAITING + 1):
        queue.add(job(str(number)))
    with pytest.raises(ValueError, match="600 pictures wait already; wait for some"):
        queue.add(job("more"))
