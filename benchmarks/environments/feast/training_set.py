"""Feast's side of benchmarks/training_set.py, run in Feast's own environment: FOLDER with asked and facts as Parquet.

Writes feast.parquet there and prints one line of JSON: seconds of the retrieval, rows, peak memory.
"""

import json
import os
import resource
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

os.environ["FEAST_USAGE"] = "False"
warnings.filterwarnings("ignore")

import pandas as pd  # noqa: E402  # the switches above must come first
import pyarrow.parquet as pq  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType  # noqa: E402
from feast.types import Float64  # noqa: E402


def main() -> None:
    folder, ttl = Path(sys.argv[1]), timedelta(seconds=float(sys.argv[2]))
    features = [name for name in pq.read_schema(folder / "facts.parquet").names if name.startswith("f")]
    store = FeatureStore(
        config=RepoConfig(
            project="bench", provider="local", registry=str(folder / "registry.db"), offline_store={"type": "file"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")}, entity_key_serialization_version=3,
        )
    )  # fmt: skip
    entity = Entity(name="k", join_keys=["k"], value_type=ValueType.INT64)
    source = FileSource(name="facts", path=str(folder / "facts.parquet"), timestamp_field="t")
    view = FeatureView(
        name="facts", entities=[entity], ttl=ttl, schema=[Field(name=n, dtype=Float64) for n in features],
        source=source, online=False,
    )  # fmt: skip
    store.apply([entity, view])
    began, cpu = time.perf_counter(), time.process_time()
    asked = pd.read_parquet(folder / "asked.parquet").rename(columns={"event_time": "event_timestamp"})
    found = store.get_historical_features(asked, [f"facts:{name}" for name in features]).to_df()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found.to_parquet(folder / "feast.parquet")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": len(found), "peak_mb": peak}))


if __name__ == "__main__":
    main()
