"""Trained once per session and never changed: steps copy. `torch` is imported by the fixtures that need it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loopwright.compression.steps import Work
from loopwright.compression.subject import Samples, Subject

if TYPE_CHECKING:
    from loopwright.compression.networks.network import TorchNetwork


@pytest.fixture(scope="session")
def digits() -> Samples:
    from tests.unit.compression.example_networks import digits_samples

    return digits_samples()


@pytest.fixture(scope="session")
def digits_network(digits: Samples, tmp_path_factory: pytest.TempPathFactory) -> "TorchNetwork":
    """A CNN that reads at least 95 % of the test digits; the exported graph answers with probabilities."""
    import torch

    from tests.unit.compression.example_networks import DigitsCnn, network_of

    torch.set_num_threads(1)
    torch.manual_seed(7)
    return trained(network_of(DigitsCnn(), digits), digits, tmp_path_factory, epochs=4, rate=4e-3)


@pytest.fixture(scope="session")
def digits_subject(
    digits: Samples, digits_network: "TorchNetwork", tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    path = tmp_path_factory.mktemp("digits") / "model.onnx"
    digits_network.export(path)
    return Subject.of("digits", path, digits, "accuracy", network=digits_network)


@pytest.fixture(scope="session")
def texts() -> Samples:
    from tests.unit.compression.example_networks import texts_samples

    return texts_samples()


@pytest.fixture(scope="session")
def tiny_transformer(texts: Samples, tmp_path_factory: pytest.TempPathFactory) -> "TorchNetwork":
    """An encoder of four blocks and four heads; half of its table of tokens is never used; `tokens` varies."""
    import torch

    from tests.unit.compression.example_networks import Encoder, network_of

    torch.set_num_threads(1)
    torch.manual_seed(7)
    variable = {"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}
    network = network_of(Encoder(), texts, variable=variable)
    return trained(network, texts, tmp_path_factory, epochs=6, rate=3e-3)


@pytest.fixture(scope="session")
def transformer_subject(
    texts: Samples, tiny_transformer: "TorchNetwork", tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    path = tmp_path_factory.mktemp("texts") / "model.onnx"
    tiny_transformer.export(path)
    return Subject.of("texts", path, texts, "accuracy", network=tiny_transformer)


@pytest.fixture(scope="session")
def encoder_subject(texts: Samples, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The same with two blocks, where no more are needed: trained and exported in half of the time."""
    import torch

    from tests.unit.compression.example_networks import Encoder, network_of

    torch.set_num_threads(1)
    torch.manual_seed(3)
    variable = {"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}
    network = network_of(Encoder(layers=2), texts, variable=variable)
    trained(network, texts, tmp_path_factory, epochs=6, rate=4e-3)
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    network.export(path)
    return Subject.of("encoder", path, texts, "accuracy", network=network)


@pytest.fixture
def work_on(tmp_path: Path) -> Callable[..., Work]:
    """work_on(subject, notes=…) → what a step is given, in folders of this test's own."""

    def made(subject: Subject, **rest: Any) -> Work:
        folders = tmp_path / "work", tmp_path / "shared"
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return Work(subject, *folders, **rest)

    return made


def trained(
    network: "TorchNetwork", samples: Samples, folders: pytest.TempPathFactory, *, epochs: int, rate: float
) -> "TorchNetwork":
    """`network` itself, after some epochs on `samples.train`."""
    from types import SimpleNamespace

    from loopwright.compression.networks.fitting import Training, fit

    folder = folders.mktemp("trained")
    work = Work(SimpleNamespace(samples=samples), folder, folder)  # type: ignore[arg-type]  # there is no graph yet
    fit(network, samples.train, work, Training(epochs=epochs, rate=rate), label="train")
    return network
