from typing import Any

from msdv.model.plan import Planner
from msdv.model.settings import Settings, step_down
from tests.unit.model.test_plan import JOB


def test_stepping_down_takes_ever_less() -> None:
    planner = Planner(JOB, budget=1)
    settings: Settings | None = Settings("partial", 2, offload_optim=True)
    peaks: list[int] = []
    seen: list[Any] = []
    while settings is not None and len(peaks) < 4:
        peaks.append(planner.estimate(settings).peak_bytes)
        seen.append(settings)
        settings = step_down(settings)
    assert peaks == sorted(peaks, reverse=True) and len(set(seen)) == len(seen)
    assert all(step.offload_optim for step in seen)
