"""Training on: what makes up for weights that a step before took away, and the control beside what trains otherwise."""

from dataclasses import dataclass
from typing import ClassVar

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.network import TorchNetwork, torch_network
from loopwright.compression.steps import Work
from loopwright.compression.subject import Network


@dataclass(frozen=True)
class Finetune:
    """Train on the truth alone, with the network's own loss; the settings are those of `fitting.Training`."""

    name: ClassVar[str] = "finetune"

    epochs: int = 3
    rate: float = 1e-3
    batch: int = 64
    decay: float = 0.01
    rows: int | None = None

    def __post_init__(self) -> None:
        _ = self.training

    @property
    def training(self) -> Training:
        return Training(self.epochs, self.rate, self.batch, decay=self.decay, rows=self.rows)

    def reshape(self, network: Network, work: Work) -> TorchNetwork:
        """A copy, trained; its loss is noted as `finetune_loss`."""
        trained = torch_network(network).copy()
        fit(trained, work.samples.train, work, self.training, label="finetune")
        return trained
