"""Feast's local store, run in its own environment by benchmarks/online.py: materialise, then read. Prints JSON."""

import json
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

warnings.filterwarnings("ignore")

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType  # noqa: E402
from feast.types import Float64  # noqa: E402


def main(rows: str, folder: str, entities: str, seed: str) -> None:
    import random

    place = Path(folder)
    columns = [f"f{n}" for n in range(20)]
    source = FileSource(name="rows", path=rows, timestamp_field="event_time")
    entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="view", entities=[entity], ttl=timedelta(days=3650),
        schema=[Field(name=name, dtype=Float64) for name in columns], source=source, online=True,
    )  # fmt: skip
    store = FeatureStore(
        config=RepoConfig(
            project="bench", provider="local", registry=str(place / "registry.db"),
            online_store={"type": "sqlite", "path": str(place / "online.db")}, entity_key_serialization_version=3,
        )
    )  # fmt: skip
    store.apply([entity, view])
    began = time.perf_counter()
    store.materialize(datetime(2024, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))
    seconds = time.perf_counter() - began

    names, chance, held = [f"view:{name}" for name in columns], random.Random(int(seed)), int(entities)

    def read(count: int) -> float:
        asked = [{"entity_id": chance.randrange(held)} for _ in range(count)]
        start = time.perf_counter()
        found = store.get_online_features(features=names, entity_rows=asked).to_dict()
        took = time.perf_counter() - start
        assert len(found["f0"]) == count and found["f0"][0] is not None, found
        return took

    for _ in range(20):
        read(1)
    print(
        json.dumps({
            "materialize_seconds": seconds,
            "one": [read(1) for _ in range(2_000)],
            "hundred": [read(100) for _ in range(100)],
        })
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
