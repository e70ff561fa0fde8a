"""The files of a new project, as text. They are the reader's from then on, so they are written to be read."""

import json
from typing import TYPE_CHECKING, Any

import yaml

from loopwright.data.sql import quote as _quote
from loopwright.registry.documents.sections import template

if TYPE_CHECKING:
    from loopwright.pipeline.scaffold import Plan

GATES = {
    "binary": ("roc_auc", ">= 0.5", "roc_auc", 0.01, "maximize"),
    "multiclass": ("accuracy", ">= {chance}", "accuracy", 0.01, "maximize"),
    "regression": ("r2", ">= 0", "rmse", None, "minimize"),
}


def render(plan: "Plan") -> dict[str, str]:
    """File name → content of everything but the contract."""
    return {
        "loop.yaml": _loop(plan),
        "features.py": _features(plan),
        "transform.py": _transform(plan),
        "train.py": _train(plan),
        "conf/train.yaml": _conf(plan),
        "tests/behaviour.py": _behaviour(plan),
        "card.md": template(plan.model),
        "README.md": _readme(plan),
        ".gitignore": "__pycache__/\n*.pyc\n.loopwright/\n",
    }


def _loop(plan: "Plan") -> str:
    gate, limit, metric, tolerance, direction = GATES[plan.task]
    limit = limit.format(chance=f"{1 / max(len(plan.classes), 1):.2f}")
    # RMSE is in the target's unit: 1 % of its spread.
    allowed = tolerance if tolerance is not None else float(f"{0.01 * plan.deviation:.3g}")
    time = f", event_time: {_yaml(plan.time)}" if plan.time else ""
    trials = 8 if plan.rows <= 200_000 else 4
    return f"""\
# A model's whole life in one file. Unknown keys are errors; every default is the safe one.
model: {_yaml(plan.model)}
team: my-team
project: {_yaml(plan.model)}
owner: ""
task: {plan.task}

data:
  sources:
    {plan.table}: {{uri: {_yaml(plan.uri)}, contract: contracts/{plan.table}.odcs.yaml{time}}}
  label: {{name: {_yaml(plan.target)}, available_after: 0s}}   # how long after a row its answer is known
  holdout: 20%                  # {"the newest rows" if plan.time else "rows drawn by hash"}, never trained on

features: features.py
card: card.md                   # what only people can say: intended use, limitations, risks
train: {{entry: "train.py:train", conf: conf/train.yaml, seed: 7}}
search: {{metric: {metric}, direction: {direction}, trials: {trials}}}

gates:                          # what a model must show before it is registered
  metrics: {{{gate}: "{limit}"}}     # better than guessing; raise it to what your users need
  latency_p99_ms: "<= 50"
  baseline: {{metric: {metric}, tolerance: {allowed:g}, confidence: 0.95}}
  behaviour: tests/behaviour.py
  # fairness: {{attribute: …, metric: …, max_gap: …}}   # tier high asks for it, or for {{not_applicable: why}}

# One person can take a first model live with this. Once others depend on it: medium (a second person, a card) or
# high (two people, a whole card, fairness, explainability); see `loopwright policy show high`.
policy: {{tier: low}}

delivery:
  strategy: canary
  shadow_first: 1h
  steps:
    - {{weight: 5%, hold: 1h, require: no_harm}}
    - {{weight: 25%, hold: 1d, require: no_harm}}
    - {{weight: 100%}}

monitoring:
  window: 1d

# Retrain by itself (a person still approves):
# retraining: {{schedule: weekly, on: [quality_drop], cooldown: 2d}}
"""


def _features(plan: "Plan") -> str:
    renamed = {name: column for name, column in plan.columns.items() if name != column}
    inputs = "tuple(INPUTS)"
    if renamed:
        inputs = (
            "{" + ", ".join(f"{name!r}: {_quote(column)!r}" for name, column in plan.columns.items()) + "}"
        )
    classes = ""
    if plan.classes:
        which = (
            "the model gives the probability of the second"
            if plan.task == "binary"
            else "one probability each, in this order"
        )
        classes = f"\n# The classes of the label; {which}.\nCLASSES = {_tuple(plan.classes)}\n"
    time = f"    event_time={_py(_quote(plan.time))},\n" if plan.time else ""
    listed = "".join(f"    {_py(name)}: {_py(dtype)},\n" for name, dtype in plan.inputs.items())
    return f'''\
"""What the model is asked, and what is known at that moment. Expressions are SQL over the table's columns."""

from loopwright.features import Spine

# What a request brings: name and dtype (float64, int64, bool or string). Any of them may be null.
INPUTS = {{
{listed}}}
{classes}
spine = Spine(
    table={_py(plan.table)},
    key={_tuple(plan.key)},
{time}    label={_py(plan.label)},
    inputs={inputs},
)

# Lookups in other tables as of a row's time, and rates over past rows: FeatureView and WindowedRate.
views = []
'''


def _transform(plan: "Plan") -> str:
    return f'''\
"""Turns what a request brings into the model's numbers. One function, used in training and in serving; numpy only."""

import numpy as np

NUMBERS = {_tuple(tuple(plan.numbers), long=True)}
TEXTS = {_tuple(plan.texts, long=True)}
MOST_CODES = 500


def fit(inputs):
    """Learn from the training rows alone: the codes of texts, the most frequent first, ties by name."""
    codes = {{}}
    for name in TEXTS:
        seen = [value for value in inputs[name] if value is not None]
        values, counts = np.unique(np.array(seen, dtype=str), return_counts=True)
        order = np.lexsort((values, -counts))[:MOST_CODES]
        codes[name] = {{str(values[place]): code for code, place in enumerate(order)}}
    return {{"codes": codes}}


def transform(inputs, state):
    """Numbers stay numbers (NaN: not known); texts become codes (-1: not seen in training, NaN: not known)."""
    features = {{}}
    for name in NUMBERS:
        features[name] = np.asarray(inputs[name], dtype=np.float32)
    for name in TEXTS:
        codes = state["codes"][name]
        coded = [np.nan if value is None else codes.get(value, -1) for value in inputs[name]]
        features[name] = np.array(coded, dtype=np.float32)
    return features
'''


def _train(plan: "Plan") -> str:
    threads = 1 if plan.rows < 50_000 else 2  # a second thread costs more than it brings on few rows
    return f'''\
"""Fits the model: gradient-boosted trees. The same rows, parameters and seed give the same model."""

import lightgbm as lgb

FIXED = {{
    "objective": "{plan.task}",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": {threads},
    "verbose": -1,
}}


def search_space(trial):
    """What the search may choose; everything else stands in conf/train.yaml."""
    return {{
        "num_leaves": trial.suggest_int("num_leaves", 4, 31),
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.5, 1.0),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.01, 30.0, log=True),
    }}


def train(train, valid, params, seed, run):
    """Return a fitted Booster. `train.x`: float32 (rows, features); `train.y`: float64; `valid`, `run` may be None."""
    params = dict(params)
    rounds = params.pop("num_boost_round")
    booster = lgb.train({{**params, **FIXED, "seed": seed}}, lgb.Dataset(train.x, train.y), rounds)
    if run is not None:
        order = sorted(zip(train.names, booster.feature_importance("gain"), strict=True), key=lambda pair: -pair[1])
        run.text("".join(f"{{name}}\\t{{gain:.1f}}\\n" for name, gain in order), "importance.tsv")
    return booster
'''


def _conf(plan: "Plan") -> str:
    leaf = max(3, min(50, plan.rows // 50))
    rounds = 100 if plan.task == "multiclass" else 150
    text = f"""\
# Parameters of train.py; the search overrides those of its search space.
num_boost_round: {rounds}
learning_rate: 0.05
num_leaves: 15
min_data_in_leaf: {leaf}
feature_fraction: 0.9
bagging_fraction: 0.8
bagging_freq: 1
lambda_l2: 1.0
max_bin: 127
"""
    return text + (f"num_class: {len(plan.classes)}\n" if plan.task == "multiclass" else "")


def _behaviour(plan: "Plan") -> str:
    if plan.task == "regression":
        reach = plan.high - plan.low
        sane = f"(predictions[:, 0] > {plan.low - reach:.6g}) & (predictions[:, 0] < {plan.high + reach:.6g})"
        within = "within twice the range of the data"
    else:
        sane = "((predictions >= 0) & (predictions <= 1)).all(axis=1)"
        within = "probabilities"
    unseen = ""
    if plan.texts:
        unseen = f"""

@minimum_functionality(share=1.0)
def a_text_never_seen_before_gets_an_answer(inputs):
    strange = {{name: np.full(len(inputs[name]), "never seen before", dtype=object) for name in TEXTS}}
    return {{**inputs, **strange}}, sane


TEXTS = {_tuple(plan.texts, long=True)}
"""
    return f'''\
"""What the model must do whatever its metrics say. Add what you know of your field:

@directional("up") for changes that may only raise the answer, @invariance() for changes that must not matter.
"""

import numpy as np

from loopwright.quality.behaviour import minimum_functionality


def sane(predictions):
    """Answers are {within}."""
    return {sane}


@minimum_functionality(share=1.0)
def every_row_gets_a_sane_answer(inputs):
    return inputs, sane


@minimum_functionality(share=1.0)
def a_row_of_nothing_but_nulls_gets_an_answer(inputs):
    def empty(values):
        return np.full(len(values), np.nan) if values.dtype.kind == "f" else np.full(len(values), None, dtype=object)

    return {{name: empty(values) for name, values in inputs.items()}}, sane
{unseen}'''


def _readme(plan: "Plan") -> str:
    kinds = {"string": "BYTES", "bool": "BOOL", "int64": "INT64", "float64": "FP64"}
    values: dict[str, Any] = {"string": "text", "bool": True, "int64": 1, "float64": 1.5}
    asked = [
        {"name": name, "shape": [1], "datatype": kinds[dtype], "data": [values[dtype]]}
        for name, dtype in plan.inputs.items()
    ]
    request = json.dumps({"inputs": asked}, ensure_ascii=False).replace("'", "'\\''")
    return f"""\
# {plan.model}

Predicts `{plan.target}` ({plan.task}) from {len(plan.inputs)} columns of `{plan.uri}`.

```sh
loopwright run                          # in this folder: check the data, train, gate, register version 1
loopwright promote {plan.model} 1 --to production
loopwright approve {plan.model} 1
loopwright up                           # and, beside it: loopwright serve --control http://127.0.0.1:8080 --port 8081
```

Then ask it (Open Inference Protocol V2; any value may be null):

```sh
curl -s http://127.0.0.1:8081/v2/models/{plan.model}/infer -d '{request}'
```

| file | what it says |
|---|---|
| `loop.yaml` | the model's whole life: data, gates, approvals, delivery, monitoring |
| `contracts/{plan.table}.odcs.yaml` | what the data promises; rows that break it are set aside with reasons |
| `features.py`, `transform.py` | what a request brings, and how it becomes numbers |
| `train.py`, `conf/train.yaml` | how the model is fitted |
| `tests/behaviour.py` | what the model must do whatever its metrics say |
| `card.md` | what people must say about it; answer its questions before others depend on the model |
"""


def _yaml(value: Any) -> str:
    """`value` as a YAML scalar on one line."""
    text = (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=100_000)
        .removesuffix("\n...\n")
        .strip()
    )
    plain = text == value and not any(mark in text for mark in "{}[],:#&*!|>'\"%@`")
    return text if plain else json.dumps(value, ensure_ascii=False)


def _tuple(values: tuple[str, ...], *, long: bool = False) -> str:
    if long and len(values) > 6:
        return "(\n" + "".join(f"    {_py(value)},\n" for value in values) + ")"
    return "(" + ", ".join(_py(value) for value in values) + ("," if len(values) == 1 else "") + ")"


def _py(text: str) -> str:
    """`text` as a Python literal, in double quotes where that needs no escapes."""
    return repr(text) if '"' in text or "'" in text else f'"{repr(text)[1:-1]}"'
