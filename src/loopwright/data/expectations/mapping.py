"""What each expectation says in a contract's words, or why there are none."""

from loopwright.data.expectations import measures, rows
from loopwright.data.expectations.effect import MAPPINGS, Effect, Unmapped
from loopwright.data.expectations.suite import Expectation

__all__ = ["map_expectation", "measures", "rows"]
_HINTS = {
    "expect_column_values_to_be_dateutil_parseable": "dateutil guesses; say logicalType: timestamp with its format",
    "expect_column_values_to_be_json_parseable": "what is inside a text is not parsed; say logicalType: object",
    "expect_column_values_to_match_json_schema": "what is inside a text is not parsed; say logicalType: object",
    "expect_column_values_to_be_increasing": "rows of a table have no order",
    "expect_column_values_to_be_decreasing": "rows of a table have no order",
    "expect_column_kl_divergence_to_be_less_than": "say {metric: drift, distance: psi, against: SNAPSHOT}",
    "expect_column_value_z_scores_to_be_less_than": "say {metric: outlier, method: robustZ}: a plain z hides outliers",
    "expect_column_most_common_value_to_be_in_set": "say {metric: categoryShare, value: …}",
    "expect_table_column_count_to_equal": "the contract lists the columns",
    "expect_table_column_count_to_be_between": "the contract lists the columns",
    "expect_table_row_count_to_equal_other_table": "say it as type: sql, with a relationship to the other table",
    "expect_query_results_to_match_comparison": "two data sources are not compared here",
}


def map_expectation(one: Expectation) -> Effect:
    """The rules of an expectation; raises Unmapped with the reason."""
    mapping = MAPPINGS.get(one.type)
    if mapping is None:
        raise Unmapped(_HINTS.get(one.type, "no rule of this system says the same"))
    if one.kwargs.get("row_condition"):
        raise Unmapped("its row_condition is another engine's; say it as a SQL condition: NOT (…) OR (…)")
    for key, value in one.kwargs.items():
        if isinstance(value, dict) and "$PARAMETER" in value:
            raise Unmapped(f"{key} is known only when the suite runs ({value['$PARAMETER']})")
    effect = mapping(one)
    severity = "warn" if one.severity.lower() in ("warning", "info") else None
    for _, entry in effect.quality:
        if one.notes:
            entry.setdefault("description", one.notes)
        if severity:
            entry.setdefault("customProperties", []).append({"property": "severity", "value": severity})
    if severity and (effect.properties or effect.options):
        for column in {*effect.properties, *effect.options}:
            effect.properties.setdefault(column, {})["customProperties"] = [
                {"property": "severity", "value": severity}
            ]
    return effect
