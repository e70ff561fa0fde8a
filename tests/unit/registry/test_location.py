"""Where a client may ask for artifacts to be kept."""

import pytest

from loopwright.kernel.errors import Refused
from loopwright.registry.location import check_location, plain_location

HOME = "file:///home/ada/.loopwright/artifacts"


@pytest.mark.parametrize("location", [None, "", "mlflow-artifacts:/1", "s3://models/runs"])
def test_the_servers_default_and_remote_stores_are_fine(location: str | None) -> None:
    check_location(location)
    check_location(location, own=HOME)


@pytest.mark.parametrize("location", ["/etc", "file:///etc", "c:/windows", f"{HOME}/runs"])
def test_a_folder_of_the_server_is_refused(location: str) -> None:
    with pytest.raises(Refused, match="a folder of the server"):
        check_location(location, own="mlflow-artifacts:/")


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/x", "https://h/api/2.0/mlflow-artifacts/artifacts/x", "ftp://h/x", "hdfs://h/x", "data:,x",
     "mlflow-artifacts://h/x", "models:/late/1", "runs:/r/x"],
)  # fmt: skip
def test_another_machine_is_refused(location: str) -> None:
    with pytest.raises(Refused, match="other machines"):
        check_location(location, own="mlflow-artifacts:/")


def test_a_version_may_come_from_a_run_or_another_version_and_on_a_folder_from_the_disk() -> None:
    for source in (
        "runs:/r/model",
        "models:/late/1",
        "models:/m-1",
        "s3://b/x",
        "mlflow-artifacts:/1/r/artifacts/m",
    ):
        check_location(source, field="source")
    check_location("/home/ada/model", field="source", own="file:")
    with pytest.raises(Refused, match="a folder of the server"):
        check_location("/home/ada/model", field="source")


def test_without_a_server_the_homes_own_folder_is_fine() -> None:
    check_location(f"{HOME}/runs", own=HOME)


@pytest.mark.parametrize(
    "location",
    ["file:///etc", f"{HOME}-of-eve/runs", f"{HOME}/bundles/x", f"{HOME}/runs/../../keys", f"{HOME}/%2e%2e/keys",
     "mlflow-artifacts:/Bundles/x"],
)  # fmt: skip
def test_what_is_outside_of_it_or_belongs_to_bundles_is_refused(location: str) -> None:
    with pytest.raises(Refused):
        check_location(location, own=HOME)


@pytest.mark.parametrize(
    "spelled",
    ["mlflow-artifacts:/1/r/artifacts/m", "mlflow-artifacts:///1/r/artifacts/m", "mlflow-artifacts:1/r/artifacts/m",
     "mlflow-artifacts:/1/r/artifacts/m/", "mlflow-artifacts:/1//r/./artifacts/m"],
)  # fmt: skip
def test_a_place_on_the_server_has_one_spelling(spelled: str) -> None:
    """What is kept from being overwritten is found by it."""
    assert plain_location(spelled) == "mlflow-artifacts:/1/r/artifacts/m"


@pytest.mark.parametrize("sign", ["%20", "%", "?x", "#x", "\\"])
def test_a_place_that_could_be_read_as_another_is_refused(sign: str) -> None:
    with pytest.raises(Refused, match="could be read as another"):
        plain_location(f"mlflow-artifacts:/1/r/artifacts/m{sign}")
    assert plain_location(f"s3://bucket/m{sign}") == f"s3://bucket/m{sign}", (
        "another store's names are its own"
    )
