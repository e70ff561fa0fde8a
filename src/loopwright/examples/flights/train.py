"""Fits the model. LightGBM is asked to be deterministic: the same rows, parameters and seed give the same
trees."""

import lightgbm as lgb

FIXED = {
    "objective": "binary",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}

# More late flights lately never make the next one less likely to be late: the trees are held to that.
RISING = "late_"


def search_space(trial):
    """What the search may choose; everything else stands in conf/train.yaml."""
    return {
        "num_leaves": trial.suggest_int("num_leaves", 7, 31),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 50, 500, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 0.9),
        "lambda_l2": trial.suggest_float("lambda_l2", 0.1, 100.0, log=True),
    }


def train(train, valid, params, seed, run):
    """Return a fitted Booster. `valid` and `run` are None where there is nothing to watch or nobody to
    tell."""
    params = dict(params)
    rounds = params.pop("num_boost_round")
    data = lgb.Dataset(train.x, train.y, feature_name=list(train.names), free_raw_data=True)
    params["monotone_constraints"] = [int(name.startswith(RISING)) for name in train.names]
    watched, history = {}, {}
    if run is not None:
        watched = {
            "valid_sets": [data],
            "valid_names": ["train"],
            "callbacks": [lgb.record_evaluation(history)],
        }
        params["metric"] = "binary_logloss"
    booster = lgb.train({**params, **FIXED, "seed": seed}, data, rounds, **watched)
    if run is not None:
        for step, value in enumerate(history["train"]["binary_logloss"]):
            run.metrics({"train_log_loss": value}, step=step)
        gains = booster.feature_importance("gain")
        order = sorted(zip(train.names, gains, strict=True), key=lambda pair: -pair[1])
        run.text("".join(f"{name}\t{gain:.1f}\n" for name, gain in order), "importance.tsv")
    return booster
