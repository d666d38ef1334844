"""A real local Ray cluster: the profile of one process, also when a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest
import torch
from support import tiny_model

import act
import act.profiling.ray_data
from act.core.errors import ActError
from act.models.loading import load_model, load_tokenizer

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

RECORDS = [{"prompt": f"a b {number}", "completion": f" {number} c d " + "e " * (number % 9)} for number in range(320)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("ray")
    tiny_model("llama").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "") or os.getcwd(), "OMP_NUM_THREADS": "1"}
        },
    )
    yield
    ray.shutdown()


def kill_an_actor(killed: list[int]) -> None:
    """Kill the first actor that counts, once it runs; Ray gives its processes a title."""
    for _ in range(600):
        processes = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        pids = [int(line.split()[0]) for line in processes.splitlines() if "ray::MapWorker" in line]
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])
            return
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_bit(folder, cluster):
    dataset = ray.data.from_items(RECORDS)
    options = {"records_a_block": 40, "token_budget": 512}
    killed: list[int] = []
    thread = threading.Thread(target=kill_an_actor, args=(killed,))
    thread.start()
    disturbed = act.profiling.ray_data.profile_dataset(
        {"model": str(folder)}, dataset, str(folder), actors=2, **options
    )
    thread.join()
    assert killed
    torch.set_num_threads(1)
    corpus = act.Corpus.from_records(RECORDS, load_tokenizer(str(folder)))
    whole = act.profile(load_model(str(folder)), corpus, look_ahead=40, token_budget=512)
    assert disturbed.provenance.corpora[0].records == 320
    assert torch.equal(disturbed.count, whole.count)
    a, b = whole.moments.arena, disturbed.moments.arena
    assert float(((a - b).abs().amax(1) / a.abs().amax(1).clamp_min(1e-300)).max()) < 1e-12


@pytest.mark.slow
@pytest.mark.thorough
def test_bad_records_empty_blocks_and_abilities(folder, cluster):
    model, name = {"model": str(folder)}, str(folder)
    records: list[dict] = [{**record, "skill": "xy"[number % 2]} for number, record in enumerate(RECORDS[:80])]
    for number in (5, *range(20, 40), 50):  # 20 to 39 are a block
        records[number] = {**records[number], "completion": ""}
    dataset = ray.data.from_items(records)
    options = {"records_a_block": 20, "token_budget": 512}
    profile = act.profiling.ray_data.profile_dataset(model, dataset, name, skip_bad_records=22, **options)
    described = profile.provenance.corpora[0]
    assert described.records == 58 and described.irregular == {}
    assert [each.record for each in described.skipped] == [5, *range(20, 40), 50]
    assert described.skipped[-1].place == "ray dataset, record 50"
    with pytest.raises(ActError, match=r"record 50: .*after 21 others"):
        act.profiling.ray_data.profile_dataset(model, dataset, name, skip_bad_records=21, **options)
    labelled = act.profiling.ray_data.profile_dataset(
        model, dataset, name, skip_bad_records=22, corpus={"ability_column": "skill"}, **options
    )
    assert {ability: each.provenance.corpora[0].records for ability, each in labelled.items()} == {"x": 29, "y": 29}
    assert sum(each.provenance.corpora[0].counted for each in labelled.values()) == described.counted
    with pytest.raises(ActError, match="no token was counted"):
        act.profiling.ray_data.profile_dataset(model, ray.data.from_items(records[20:40]), name, skip_bad_records=20)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"model": "none"}, {}, "none"),
        (None, {"corpus": {"count": "some"}}, "count is 'some'"),
        (None, {"actors": 0}, "0 actors"),
    ],
)
def test_bad_options_are_refused_before_ray_starts(folder, models, options, message):
    with pytest.raises(ActError, match=message):
        act.profiling.ray_data.profile_dataset(models or {"model": str(folder)}, None, str(folder), **options)


@pytest.mark.slow
def test_a_model_that_actors_cannot_load_is_one_sentence(folder, cluster):
    dataset = ray.data.from_items(RECORDS[:10])
    with pytest.raises(ActError, match="dtype is 'float8'"):
        act.profiling.ray_data.profile_dataset(
            {"model": str(folder)}, dataset, str(folder), loading={"dtype": "float8"}
        )
