import pytest

from devices.tasks.classification import Classification
from devices.training.trainer import TorchTrainer
from tests.devices.training.tiny_task import (
    TARGETS,
    make_config,
    make_dataset,
    make_trainer,
    save_model,
)


@pytest.fixture(scope="session")
def dataset() -> Classification:
    return make_dataset()


@pytest.fixture(scope="session")
def tiny(dataset: Classification) -> TorchTrainer:
    """Return a trainer in fp32 on the model that needs no file."""
    return make_trainer(make_config(), dataset)


@pytest.fixture(scope="session", params=TARGETS)
def family_trainer(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    dataset: Classification,
) -> TorchTrainer:
    """Return a trainer on a local directory, one for each family."""
    directory = save_model(tmp_path_factory.mktemp(request.param), request.param)
    return make_trainer(make_config(str(directory), targets=TARGETS[request.param]), dataset)
