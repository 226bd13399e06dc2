"""Training under SLURM, as far as it shows without one: ranks, the job's folder, and going on after a requeue."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import src.run.cli  # noqa: F401  (registers the resolvers)
from tests.llmdiff_training import LatentData, trainer, training
from tests.llms import tiny_llm_folder

CONF = Path(__file__).parents[1] / "conf"
JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train"}
ONE = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"} | dict.fromkeys(
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"
)
LAST_OF_FOUR = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "node[7-8]",
}


def enter(monkeypatch: pytest.MonkeyPatch, task: dict[str, str]) -> None:
    for name, value in (JOB | task).items():
        monkeypatch.setenv(name, value)
    # What Lightning leaves behind ends with the test.
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
def test_a_task_finds_its_rank_and_all_tasks_share_the_folder_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, LAST_OF_FOUR)
    cfg = compose("train", ["+experiment=llmdiff", "trainer=slurm", "trainer.accelerator=cpu"])
    run = instantiate(cfg.trainer, logger=False, enable_checkpointing=False, _convert_="all")
    environment = run.strategy.cluster_environment
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    assert (run.world_size, run.num_nodes, run.global_rank, run.local_rank, run.node_rank) == (4, 2, 3, 1, 1)
    assert (environment.main_address, environment.main_port) == ("node7", 15000 + 4711)
    assert environment.creates_processes_externally and not run.is_global_zero
    # Lightning writes its checkpoint before a requeue there, and looks for it there.
    assert run.default_root_dir == cfg.paths.run_dir == "outputs/train/llmdiff/slurm-4711"
    assert cfg.callbacks.checkpoint.dirpath == f"{cfg.paths.run_dir}/checkpoints"


@pytest.mark.usefixtures("_hydra")
def test_the_script_starts_anew_once_and_then_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, ONE)
    text = (CONF / "trainer" / "slurm.yaml").read_text(encoding="utf-8")
    lines = text.partition("sbatch:\n")[2].partition("# The run folder")[0].splitlines()
    (tmp_path / "job.sh").write_text("\n".join(line.removeprefix("#   ") for line in lines), encoding="utf-8")
    command(tmp_path, "srun", "echo $@")

    def resume() -> bool:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = subprocess.run(
            ["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        python, file, *arguments = script.stdout.split()
        assert (python, file) == ("python", "train.py")
        cfg = compose("train", arguments)
        assert last == tmp_path / cfg.paths.run_dir / "checkpoints" / "last.ckpt"
        return cfg.resume

    last = tmp_path / "outputs" / "train" / "llmdiff" / "slurm-4711" / "checkpoints" / "last.ckpt"
    assert not resume()
    last.parent.mkdir(parents=True)
    last.touch()
    assert resume()


def command(folder: Path, name: str, body: str) -> None:
    """An executable in place of one of SLURM's."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


class Preempted(L.Callback):
    """SLURM's signal in the second step; the job is gone after it."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            trainer.should_stop = True


def test_a_requeued_job_ends_where_an_undisturbed_one_does_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny_llm_folder(tmp_path / "llm")
    whole, first, second = (training(tmp_path, llm, schedule="cosine") for _ in range(3))
    trainer(4, tmp_path / "undisturbed").fit(whole, LatentData())
    enter(monkeypatch, ONE)
    command(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = tmp_path / "slurm-4711"
    stopped, resumed = trainer(4, job, Preempted()), trainer(4, job)
    stopped.fit(first, LatentData(), weights_only=True)
    assert (tmp_path / "scontrol.log").read_text(encoding="utf-8") == "requeue 4711\n"
    assert [path.name for path in job.iterdir()] == ["hpc_ckpt_1.ckpt"]
    resumed.fit(second, LatentData(), weights_only=True)
    assert (stopped.global_step, resumed.global_step) == (2, 4)
    for ours, theirs in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
