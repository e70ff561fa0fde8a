"""The twelve checks of benchmarks/checks.py by Great Expectations, on a pandas frame. Prints one line of JSON."""

import json
import os
import sys
import time
from pathlib import Path

os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd

CHECKS = {
    "id present": lambda: gxe.ExpectColumnValuesToNotBeNull(column="id"),
    "id unique": lambda: gxe.ExpectColumnValuesToBeUnique(column="id"),
    "customer present": lambda: gxe.ExpectColumnValuesToNotBeNull(column="customer"),
    "quantity in range": lambda: gxe.ExpectColumnValuesToBeBetween(
        column="quantity", min_value=1, max_value=100
    ),
    "price not negative": lambda: gxe.ExpectColumnValuesToBeBetween(column="price", min_value=0),
    "discount in range": lambda: gxe.ExpectColumnValuesToBeBetween(
        column="discount", min_value=0, max_value=1
    ),
    "currency known": lambda: gxe.ExpectColumnValuesToBeInSet(
        column="currency", value_set=["EUR", "USD", "GBP", "CHF"]
    ),
    "country of two letters": lambda: gxe.ExpectColumnValueLengthsToEqual(column="country", value=2),
    "email looks like one": lambda: gxe.ExpectColumnValuesToMatchRegex(
        column="email", regex=r"^[^@]+@[^@]+[.][a-z]+$"
    ),
    "shipped after created": lambda: gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="shipped_at", column_B="created_at", or_equal=True
    ),
    "rows": lambda: gxe.ExpectTableRowCountToBeBetween(min_value=1000),
    "mean price": lambda: gxe.ExpectColumnMeanToBeBetween(column="price", min_value=10, max_value=100),
}


def peak() -> float:
    """The most memory this process has had, in bytes (what getrusage says includes the parent's before exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    began, cpu = time.perf_counter(), time.process_time()
    frame = pd.read_parquet(sys.argv[1])
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("orders")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    expectations = []
    for name, make in CHECKS.items():
        expectation = make()
        expectation.meta = {"name": name}  # results come in an order of their own
        expectations.append(expectation)
    found = batch.validate(gx.ExpectationSuite("orders", expectations=expectations), result_format="SUMMARY")
    counts = {
        result.expectation_config.meta["name"]: int(
            result.result.get("unexpected_count", 0 if result.success else 1)
        )
        for result in found.results
    }
    print(json.dumps({
        "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "counts": counts,
        "peak": peak(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
