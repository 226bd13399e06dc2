"""No test may reach for the network, and a small machine stays usable beside a test run."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra import initialize_config_dir  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402

from src.run import targets  # noqa: E402

# Parts that tests make, beside what a user's configuration may build.
targets.PACKAGES = (*targets.PACKAGES, "tests")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an entry point that runs inside of a test tells its processes ends with the test."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("ATELIER_RUN_DIR", "")


@pytest.fixture
def configurations() -> Iterator[None]:
    """Hydra composes from conf/."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder with one folder of real photos per subject."""
    folder = os.environ.get("ATELIER_PHOTOS")
    if not folder:
        pytest.skip("set ATELIER_PHOTOS to a folder that holds one folder of photos per subject")
    return Path(folder)
