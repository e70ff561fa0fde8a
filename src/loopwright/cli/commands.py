"""Every command's place and its one line of help; nothing of it is imported until it is called."""

from loopwright.cli.lazy import LazyGroup, Section

SECTIONS = (
    Section("Start here", {
        "demo": ("demo:demo", "Take a model through its whole life on real data."),
        "init": ("start:init", "Scaffold a project for your own rows."),
        "run": ("start:run", "Take a project from data to a gated, registered version."),
        "apply": ("start:apply", "Make a changed loop.yaml count without training."),
        "up": ("processes:up", "Start the control plane: API, MLflow, controllers."),
        "serve": ("processes:serve", "Start the data plane: V2 serving on worker processes."),
        "worker": ("jobs:worker", "Answer jobs in the background, several workers side by side."),
        "export": ("exports:export", "Write configurations for what runs around: HAProxy."),
        "status": ("status:status", "One line per model: stage, traffic, health, drift, alerts."),
        "doctor": ("status:doctor", "Check this machine and the home, and say what to mend."),
    }),
    Section("Data and training", {
        "data": ("data:data", "Contracts, checks, tables, snapshots, incidents, quarantine."),
        "features": ("features:features", "Materialise, read and watch features; prove there is no skew."),
        "runs": ("runs:runs", "List, show and compare training runs."),
        "reproduce": ("runs:reproduce", "Run a recorded run again and compare the results."),
    }),
    Section("Registry", {
        "models": ("models:models", "List models, show versions and their lineage."),
        "lineage": ("lineage:lineage", "Show where a version comes from, and what data touched."),
        "promote": ("models:promote", "Ask for a version to be moved to a stage."),
        "approve": ("models:approve", "Say yes to a promotion."),
        "reject": ("models:reject", "Say no to a promotion."),
        "withdraw": ("models:withdraw", "Take back a request for a promotion."),
        "rollback": ("models:rollback", "Bring back the version that was in production before."),
        "compress": ("compressing:compress", "Make a version smaller and faster, as a version of its own."),
        "annotate": ("models:annotate", "Pin a note to a version; an empty VALUE takes it away."),
    }),
    Section("Delivery and monitoring", {
        "rollout": ("delivery:rollout", "Show, pause, resume, abort or promote a rollout."),
        "experiment": ("experiments:experiment", "Split traffic between approved versions, and see what comes of it."),
        "jobs": ("jobs:jobs", "Have rows answered in the background; fetch the results."),
        "labels": ("monitoring:labels", "Add the outcomes of past predictions."),
        "drift": ("monitoring:drift", "Show how far features and predictions moved, window by window."),
        "quality": ("monitoring:quality", "Show quality over time, on the labels known so far."),
        "log": ("log:log", "Send logged predictions to Kafka or ClickHouse."),
        "explain": ("explain:explain", "Explain a prediction: which inputs moved it, and how far."),
        "alerts": ("monitoring:alerts", "List and acknowledge alerts."),
        "retrains": ("retrains:retrains", "List what asked for a retraining, and what came of it."),
    }),
    Section("Governance", {
        "policy": ("governance:policy", "Show, test and set what promotions need."),
        "review": ("governance:review", "List and decide reviews of broken glass."),
        "audit": ("audit:audit", "Show, verify, anchor, export the audit log; report on a month."),
        "user": ("access:user", "Add, list, change and disable users."),
        "team": ("access:team", "Say who may do what with a team's models."),
        "token": ("access:token", "Create, list and revoke access tokens."),
        "keys": ("keys:keys", "List, rotate and revoke the keys that sign."),
        "trust": ("trust:trust", "Say which pickled models may be loaded."),
        "verify": ("verify:verify", "Check a bundle's folder, offline."),
        "whoami": ("access:whoami", "Say who you are here, and what you may do."),
    }),
)  # fmt: skip

loopwright = LazyGroup(
    "loopwright",
    SECTIONS,
    help="Carry a model through its whole life: data, training, registry, delivery, serving, monitoring, "
    "retraining. Every command works on a home: a folder (--home, LOOPWRIGHT_HOME, default ~/.loopwright) "
    "or a control plane (--url, LOOPWRIGHT_URL).",
)
