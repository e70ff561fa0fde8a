"""MLflow's own scoring client against a running server."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

from loopwright import __version__
from loopwright.bundle.routes import Arm
from loopwright.bundle.testing import tiny_answer
from tests.integration.serving.conftest import Control, Server, eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def server(control: Control, serve: Callable[..., Server]) -> Server:
    control.route({1: control.bundle("a")}, Arm("stable", 1, 1.0))
    return serve(workers=1)


def test_mlflows_client_scores_frames_arrays_and_lists(control: Control, server: Server) -> None:
    client = ScoringServerClient("127.0.0.1", server.port)
    client.wait_server_ready(timeout=10)
    client.ping()
    assert client.get_version() == __version__

    frame = pd.DataFrame(
        {
            "carrier": ["UA", None, "AA"],
            "unknown": 1,
            "distance": [500.0, math.nan, 80.5],
            "hour": [6, 7, 23],
        },
        index=["x", "y", "z"],
    )
    wanted = [tiny_answer(500, 6, "UA"), tiny_answer(None, 7, None), tiny_answer(80.5, 23, "AA")]
    predicted = client.invoke(frame).get_predictions()
    assert predicted[0].tolist() == pytest.approx(wanted)

    records = frame[["distance", "hour", "carrier"]].replace({math.nan: None}).to_dict(orient="records")
    answer = client.invoke(records, params={"unit": "ana"})
    assert answer.get_predictions("ndarray", dtype="float64") == pytest.approx(np.array(wanted))
    array = np.array([[500.0, 6, "UA"]], dtype=object)
    assert client.invoke(array).get_predictions()[0].tolist() == pytest.approx(wanted[:1])

    with pytest.raises(
        Exception, match=r"error code 422.*input `hour` is missing.*did you mean it by `hours`"
    ):
        client.invoke(frame.rename(columns={"hour": "hours"}))
    with pytest.raises(Exception, match=r"error code 422.*models here take no parameter `threshold`"):
        client.invoke(frame, params={"threshold": 0.5})

    server.admin("flush")
    eventually(lambda: len(control.events) >= 7)
    assert [event.unit for event in control.events if event.unit == "ana"] == ["ana"] * 3
    assert [event.inputs for event in control.events][1] == [None, 7, None]


def test_csv_as_pandas_writes_it_is_scored(server: Server) -> None:
    frame = pd.DataFrame({"hour": [6, 7], "carrier": ["UA", None], "distance": [500.0, math.nan]})
    for address in ("invocations", "models/late/invocations", "models/late/versions/1/invocations"):
        answer = requests.post(
            f"http://127.0.0.1:{server.port}/{address}", data=frame.to_csv(),
            headers={"Content-Type": "text/csv; charset=utf-8"}, timeout=10,
        )  # fmt: skip
        assert answer.json() == {
            "predictions": pytest.approx([tiny_answer(500, 6, "UA"), tiny_answer(None, 7, None)])
        }
        assert answer.headers["X-Loopwright-Arm"] in ("stable", "direct")
